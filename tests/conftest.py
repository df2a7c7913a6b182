"""Fixtures: a tiny random Llama for plumbing, SmolLM2 and real data where the claim is about them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from kubealign import quickstart
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import (
    PROMPTS,
    canonical_json,
    new_completion,
    offline_completion_id,
    prompt_id,
)
from kubealign_components.data.stats import Stats
from kubealign_components.engines.generation import GenerationEngine, Prompt, Sampled

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: threads of one would spin while they wait for a core that another has.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines are noisy: how long an example takes says nothing about whether it holds.
hypothesis.settings.register_profile("kubealign", deadline=None)
hypothesis.settings.load_profile("kubealign")

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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight Llama of two layers; loads in milliseconds."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


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


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Dataset]:
    """``make_dataset(rows, schema=PROMPTS)`` publishes rows as a dataset of that kind."""
    made = 0

    def make(rows: Sequence[dict[str, Any]], schema: str = PROMPTS, **options: Any) -> Dataset:
        nonlocal made
        made += 1
        shards = options.pop("shards", 1)
        params = {"rows": json.loads(json.dumps(len(rows)))} | options.pop("params", {})
        provenance = derive(options.pop("stage", "test"), 1, params, **options)
        size = -(-len(rows) // shards) or 1
        with DatasetWriter(str(tmp_path / f"dataset-{made}"), schema, provenance) as writer:
            for start in range(0, len(rows), size):
                writer.write_rows(rows[start : start + size])
                writer.close_shard()
            return writer.commit(Stats(rows_in=len(rows), rows_out=len(rows)))

    return make


def in_order(engine: GenerationEngine, prompts: Sequence[Prompt]) -> list[list[Sampled]]:
    """The completions of each prompt, in the order of the prompts."""
    sampled = dict(engine.generate(prompts))
    return [sampled[prompt.prompt_id] for prompt in prompts]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory."""
    return quickstart.smollm2()


@pytest.fixture(scope="session")
def preference_rows() -> list[dict[str, Any]]:
    """Real preference pairs in ShareGPT form."""
    rows: list[dict[str, Any]] = json.loads((quickstart.preferences() / "dpo_en_demo.json").read_text())
    return rows
