"""A tiny random Llama, and rows of prompts, for whatever is plumbing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kubealign_components.data.schemas import canonical_json, new_completion, offline_completion_id, prompt_id
from kubealign_components.engines.generation import GenerationEngine, Prompt, Sampled

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tiny_model(
    folder: Path, *, seed: int = 0, layers: int = 2, hidden: int = 32, tied: bool = False
) -> Path:
    """A random-weight Llama with a byte-level ChatML tokenizer, saved as a Hugging Face directory."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate([*specials, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHATML,
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prompt_row(
    text: str, completions: Sequence[str] = (), *, source: str = "test", **columns: Any
) -> dict[str, Any]:
    """A ``kubealign.prompts/v1`` row with one user turn and offline completions."""
    messages = [{"role": "user", "content": text}]
    name = prompt_id(messages, None)
    return {
        "prompt_id": name,
        "source": source,
        "source_weight": 1.0,
        "messages": canonical_json(messages),
        "tools": None,
        "answers": [],
        "metadata": None,
        "prompt_token_ids": None,
        "prompt_tokens": None,
        "completions": [
            new_completion(
                completion_id=offline_completion_id(name, [{"role": "assistant", "content": c}]),
                reference=False,
                model="offline",
                messages=canonical_json([{"role": "assistant", "content": c}]),
            )
            for c in completions
        ],
        "dropped_completions": None,
        **columns,
    }


def in_order(engine: GenerationEngine, prompts: Sequence[Prompt]) -> list[list[Sampled]]:
    """The completions of each prompt, in the order of the prompts."""
    sampled = dict(engine.generate(prompts))
    return [sampled[prompt.prompt_id] for prompt in prompts]
