"""What is saved computes what was trained, and everything beside the weights is the policy's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from kubealign_components.data.models import find_model
from kubealign_components.errors import EngineError
from kubealign_components.train.config import TrainConfig
from kubealign_components.training.models import load_policy, trained_weights
from kubealign_components.training.saving import merged, save_policy, saved_dtype, trained_state
from support.tiny import CHATML, build_tiny_model

CHAT = [{"role": "user", "content": "?"}]
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A policy whose head is the embedding, and one whose head is not."""
    folder = tmp_path_factory.mktemp("models")
    return {tied: build_tiny_model(folder / f"tied-{tied}", tied=tied) for tied in (True, False)}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(IDS).logits
    return result


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def trained(config: TrainConfig, source: Path) -> Any:
    """The policy after a step in a random direction."""
    model = load_policy(config, source)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in trained_weights(model).values():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return model


def save(config: TrainConfig, model: Any, source: Path, target: Path, **change: Any) -> Path:
    save_policy(
        model,
        source,
        target,
        name=config.policy,
        adapter=config.adapter,
        merge_adapter=config.merge_adapter,
        save_dtype=config.save_dtype,
        **change,
    )
    return target


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "targets",
    [(), ("lm_head",), ("embed_tokens",), ("lm_head", "embed_tokens"), ("lm_head", "q_proj")],
    ids=str,
)
def test_adapters_saved_either_way_give_the_logits_that_were_trained(
    models: dict[bool, Path], tmp_path: Path, targets: tuple[str, ...], tied: bool
) -> None:
    source = models[tied]
    config = TrainConfig(policy=str(source), adapter="lora", lora_r=4, lora_targets=targets)
    model = trained(config, source)
    expected = logits(model)
    whole = save(config, model, source, tmp_path / "whole")
    alone = TrainConfig(policy=str(source), adapter="lora", merge_adapter=False)
    apart = save(alone, model, source, tmp_path / "apart")
    assert (expected - logits(loaded(source))).abs().max() > 0.1
    torch.testing.assert_close(logits(loaded(whole)), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(loaded(source), str(apart))), expected, atol=1e-5, rtol=1e-5
    )
    settings = json.loads((whole / "config.json").read_text())
    assert settings["tie_word_embeddings"] is (tied and not {"lm_head", "embed_tokens"} & {*targets})


@pytest.mark.parametrize("copies", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]], ids=str)
def test_trained_copies_of_tied_layers_are_merged_as_they_are(
    models: dict[bool, Path], copies: list[str]
) -> None:
    settings = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=copies, init_lora_weights=False)
    model = get_peft_model(loaded(models[True]), settings)
    with torch.no_grad():
        for weight in trained_weights(model).values():
            weight += 0.1 * torch.randn_like(weight)
    whole = merged(loaded(models[True]), settings, trained_state(model), "default")
    torch.testing.assert_close(logits(whole), logits(model), atol=1e-4, rtol=1e-4)
    assert whole.config.tie_word_embeddings is False


def test_adapters_of_other_names_are_refused_and_not_left_out(models: dict[bool, Path]) -> None:
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    state = trained_state(get_peft_model(loaded(models[True]), settings))
    others = {name.replace("q_proj", "query"): weight for name, weight in state.items()}
    with pytest.raises(EngineError, match=r"do not fit the policy: \S*query"):
        merged(loaded(models[True]), settings, others, "default")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("gathered", [True, False], ids=["gathered", "whole"])
def test_full_training_saves_the_weights_that_were_trained(
    models: dict[bool, Path], tmp_path: Path, tied: bool, gathered: bool
) -> None:
    config = TrainConfig(policy=str(models[tied]))
    model = trained(config, models[tied])
    expected = logits(model)
    state = {name: weight.clone() for name, weight in model.state_dict().items()} if gathered else None
    out = save(config, model, models[tied], tmp_path / "out", state=state)
    torch.testing.assert_close(logits(loaded(out)), expected)
    names = [set(safetensors.torch.load_file(p / "model.safetensors")) for p in (out, models[tied])]
    assert names[0] == names[1]


# What the library reads and would refuse to write, and files of which it knows nothing.
BESIDE = {
    "generation_config.json": '{"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}',
    "additional_chat_templates/tool_use.jinja": "tools " + CHATML,
    "preprocessor_config.json": '{"a":1}',
    "tekken.json": "{}",
    "spiece.model": "not read by anyone here",
    "LICENSE": "mine",
}
NOT_COPIED = {
    "modeling_own.py": "raise SystemExit",
    ".gitattributes": "",
    "manifest.json": "{}",
    "shard-00000-0123456789ab.parquet": "",
    "consolidated.safetensors": "",
    "original/consolidated.00.pth": "",
    "adapter/adapter_config.json": "{}",
    "checkpoint-5/config.json": "{}",
    "checkpoint-5/tokenizer.json": "{}",
}


def with_files(source: Path, target: Path, files: dict[str, str]) -> Path:
    build_tiny_model(target)
    for name, text in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text)
    return target


@pytest.mark.parametrize(
    "change", [{}, {"adapter": "lora"}, {"adapter": "lora", "merge_adapter": False}], ids=str
)
def test_everything_beside_the_weights_is_taken_over_byte_for_byte(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    source = with_files(tmp_path, tmp_path / "policy", BESIDE | NOT_COPIED)
    settings = json.loads((source / "config.json").read_text())
    # Of another library, and what the library would refuse to write into a config.
    settings |= {"use_cache": True, "attention_dropout": 0.1, "temperature": 0.7, "my_own": [1, {"b": 2}]}
    (source / "config.json").write_text(json.dumps(settings))
    config = TrainConfig(policy=str(source), **change)
    out = save(config, trained(config, source), source, tmp_path / "out")
    for name in [*BESIDE, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert not [name for name in NOT_COPIED if (out / name).exists()]
    if config.merge_adapter:
        assert json.loads((out / "config.json").read_text()) == settings
        assert find_model(str(out)).tokenizer_digest() == find_model(str(source)).tokenizer_digest()
        tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
        shown = AutoTokenizer.from_pretrained(out).apply_chat_template(CHAT, tools=tools, tokenize=False)
        assert shown.startswith("tools")


@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("gathered", [True, False], ids=["gathered", "whole"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_saved_one_by_one(tmp_path: Path, family: str, adapter: str, gathered: bool) -> None:
    """They are one weight in memory, and in files under the names that the source has."""
    source = build_tiny_model(tmp_path / "model")
    config = AutoConfig.for_model(
        family, vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=2, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, num_experts=4, num_local_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(source)
    settings = TrainConfig(policy=str(source), adapter=adapter)
    model = trained(settings, source)
    expected = logits(model)
    state = {name: weight.clone() for name, weight in trained_state(model).items()} if gathered else None
    whole = save(settings, model, source, tmp_path / "whole", state=state)
    assert torch.allclose(logits(loaded(whole)), expected, atol=1e-4)
    weights = "model.safetensors"
    kept, original = (safetensors.torch.load_file(folder / weights) for folder in (whole, source))
    assert {n: w.shape for n, w in kept.items()} == {n: w.shape for n, w in original.items()}


@pytest.mark.parametrize("own", ["bfloat16", "float16", "float32"])
def test_auto_saves_in_the_policy_s_own_precision(tmp_path: Path, own: str) -> None:
    source = build_tiny_model(tmp_path / "policy")
    AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, own)).save_pretrained(source)
    config = TrainConfig(policy=str(source))
    out = save(config, trained(config, source), source, tmp_path / "out")
    assert loaded(source).dtype == torch.float32
    assert AutoModelForCausalLM.from_pretrained(out).dtype == getattr(torch, own)
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "dtype"}))
    assert saved_dtype("saved", source) == getattr(torch, own)


def test_a_template_of_ones_own_takes_the_place_of_all_others(
    models: dict[bool, Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(models[True], source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    template = "{{ messages[0].content }}"
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "old"}))
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/tool_use.jinja").write_text("tools")
    (source / "notes.txt").write_text("kept")
    config = TrainConfig(policy=str(source))
    out = save(config, trained(config, source), source, tmp_path / "out", template=template)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == template
    assert tokenizer.apply_chat_template(CHAT, tools=[{"name": "f"}], tokenize=False) == "?"
    assert json.loads((out / "tokenizer_config.json").read_text()) == settings
    assert (out / "notes.txt").read_text() == "kept"
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
