"""Tokenizers and chat templates of model families, without weights, and tiny random models of them.

The templates are the published ones: those that TRL ships, and, for families that it lacks, written here
after the model cards. The tokenizers are small, with the special tokens, normalisers and flags of theirs.
"""

# ruff: noqa: E501  templates and chats stand as they are written
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'"
    " + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PHI_4 = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + "
    "'<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
GRANITE = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set rest = messages[1:] %}{%- else %}"
    "{%- set system = \"Knowledge Cutoff Date: April 2024.\\nToday's Date: \" + strftime_now('%B %d, %Y') + "
    '".\\nYou are Granite, developed by IBM." %}{%- set rest = messages %}{%- endif %}'
    "{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}"
    "{%- for message in rest %}{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + "
    "message['content'] + '<|end_of_text|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"
)
ALPACA = (
    "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n"
    "{% elif m.role == 'assistant' %}### Response:\n{{ m.content }}\n\n{% else %}{{ m.content }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a family's tokenizer directory holds."""

    template: str
    """The template, or the name of one that TRL ships."""
    specials: Sequence[str]
    """Special tokens in the order of their ids."""
    eos: str
    bos: str | None = None
    pad: str | None = None
    kind: str = "bytes"
    """bytes (byte-level BPE), prepend (Llama 2), first or always (Metaspace)."""
    added: Sequence[str] = ()
    """Added tokens that are not special."""
    rstrip: bool = False
    """Whether special tokens swallow the blanks after them, as those of Phi-3 do."""
    adds_bos: bool = False
    """Whether the tokenizer writes BOS before plain text."""
    ends: Sequence[str] = ()
    """Tokens that its generation config names as ends."""
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Of the template."""
        if "{" in self.template:
            return self.template
        return files("trl").joinpath(f"chat_templates/{self.template}.jinja").read_text()


_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SP = ("<unk>", "<s>", "</s>")
_LLAMA_3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
            "<|eot_id|>", "<|python_tag|>")  # fmt: skip
_THINK = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
_DEEPSEEK_TOOLS = tuple(f"<｜tool▁{t}｜>" for t in (
    "calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep", "outputs▁begin", "outputs▁end",
    "output▁begin", "output▁end"))  # fmt: skip

FAMILIES: dict[str, Family] = {
    "llama2": Family(template=LLAMA_2, specials=_SP, bos="<s>", eos="</s>", kind="prepend", adds_bos=True),
    "llama3": Family(template="llama3", specials=_LLAMA_3, bos="<|begin_of_text|>", eos="<|eot_id|>", adds_bos=True),
    "llama3.1": Family(template="llama3_1", specials=_LLAMA_3, bos="<|begin_of_text|>", eos="<|eot_id|>",
                       ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), adds_bos=True),
    "llama3.2": Family(template="llama3_2", specials=_LLAMA_3, bos="<|begin_of_text|>", eos="<|eot_id|>",
                       ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), adds_bos=True),
    "mistral-v1": Family(template=MISTRAL, specials=_SP, bos="<s>", eos="</s>", kind="first", adds_bos=True),
    "mistral-v3": Family(template=MISTRAL, specials=(*_SP, "[INST]", "[/INST]", "[TOOL_CALLS]"), bos="<s>",
                         eos="</s>", kind="always", adds_bos=True),
    "ministral": Family(template=MISTRAL, specials=(*_SP, "[INST]", "[/INST]"), bos="<s>", eos="</s>"),
    "zephyr": Family(template=ZEPHYR, specials=_SP, bos="<s>", eos="</s>", kind="prepend", adds_bos=True),
    "qwen2.5": Family(template="qwen2_5", specials=_IM, eos="<|im_end|>", pad="<|endoftext|>", added=_THINK[2:],
                      ends=("<|im_end|>", "<|endoftext|>")),
    "qwen3": Family(template="qwen3", specials=_IM, eos="<|im_end|>", pad="<|endoftext|>", added=_THINK),
    "gemma2": Family(template="gemma", specials=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
                     added=("\n\n", "<table>"), bos="<bos>", eos="<eos>", pad="<pad>", adds_bos=True,
                     ends=("<eos>", "<end_of_turn>")),
    "gemma3": Family(template="gemma3", specials=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
                     added=("\n\n", "<table>"), bos="<bos>", eos="<eos>", pad="<pad>", adds_bos=True),
    "phi3": Family(template="phi3", specials=(*_SP, "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>",
                   "<|user|>"), bos="<s>", eos="<|endoftext|>", kind="prepend", rstrip=True,
                   ends=("<|end|>", "<|assistant|>", "<|endoftext|>")),
    "phi4": Family(template=PHI_4, specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"),
                   bos="<|endoftext|>", eos="<|im_end|>"),
    "smollm2": Family(template=SMOLLM2, specials=_IM, bos="<|im_start|>", eos="<|im_end|>"),
    "smollm3": Family(template="qwen3", specials=_IM, eos="<|im_end|>", added=_THINK),
    "deepseek-v3": Family(template="deepseekv3", specials=(*_DEEPSEEK[:2],), added=(*_DEEPSEEK[2:], *_DEEPSEEK_TOOLS,
                          *_THINK[:2]), bos=_DEEPSEEK[0], eos=_DEEPSEEK[1], adds_bos=True),
    "deepseek-r1": Family(template="deepseek_r1_distill", specials=(*_DEEPSEEK[:2],), added=(*_DEEPSEEK[2:],
                          *_DEEPSEEK_TOOLS, *_THINK[:2]), bos=_DEEPSEEK[0], eos=_DEEPSEEK[1], adds_bos=True),
    "granite": Family(template=GRANITE, specials=("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
                      bos="<|end_of_text|>", eos="<|end_of_text|>"),
    "alpaca": Family(template=ALPACA, specials=_SP, bos="<s>", eos="</s>", kind="prepend", adds_bos=True),
}  # fmt: skip

_WORDS = (
    "user assistant system model Hello there Plum Yes No the cat sat on the mat . What is 2+2 ? Four 4 "
    "[INST] [/INST] ### Instruction: Response: Name a fruit, a town or a number : ; \n \n\n think <think>"
)


def build_tokenizer(family: Family) -> Any:
    """The family's tokenizer, trained on a few words."""
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted({*map(chr, range(33, 127)), "\u2581"})
    if family.kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet, extra = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        extra = [f"<0x{i:02X}>" for i in range(256)]
        # SentencePiece merges nothing across a blank, which stands at the beginning of a piece.
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
        backend.decoder = decoders.Sequence(
            [
                decoders.Replace("\u2581", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + len(extra) + len(family.specials) + 150,
        special_tokens=[*family.specials, *extra],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator([_WORDS] * 20, trainer)
    if family.kind == "prepend":
        steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        backend.normalizer, backend.pre_tokenizer = normalizers.Sequence(steps), None
    elif family.kind != "bytes":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=family.kind, split=False)
    if extra:  # bytes are pieces like others: only training wants them as special tokens
        body = json.loads(backend.to_str())
        body["added_tokens"] = [t for t in body["added_tokens"] if t["content"] in family.specials]
        backend = Tokenizer.from_str(json.dumps(body))
    backend.add_special_tokens(
        [AddedToken(s, normalized=False, special=True, rstrip=family.rstrip) for s in family.specials]
    )
    backend.add_tokens([AddedToken(a, normalized=False, special=False) for a in family.added])
    if family.adds_bos and family.bos:
        bos = (family.bos, backend.token_to_id(family.bos))
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos[0]} $A", pair=f"{bos[0]} $A $B", special_tokens=[bos]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.pad or family.eos,
        chat_template=family.text,
        clean_up_tokenization_spaces=False,
    )


def build_family(family: Family, folder: Path, *, weights: bool = False) -> Path:
    """A model directory of the family: its tokenizer, a config and, if asked, two random layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer(family)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    if weights:
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if family.ends:
        ends = tokenizer.convert_tokens_to_ids(list(family.ends))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return folder
