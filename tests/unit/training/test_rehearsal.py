"""What would refuse saving at the end of a training refuses it before the first step; nothing else does."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from kubealign_components.errors import ConfigError, EngineError
from kubealign_components.train.config import TrainConfig
from kubealign_components.train_ppo.config import PpoConfig
from kubealign_components.train_reward_model.config import RewardModelConfig
from kubealign_components.train_reward_model.model import rehearse_reward_model
from kubealign_components.training.rehearsal import rehearse_saving
from support.tiny import build_tiny_model

SHAPE: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
}  # fmt: skip
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "phi3", "mistral", "mixtral", "qwen3_moe", "granite", "gpt2")


@pytest.fixture
def no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of its own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random model of each family, under the tiny tokenizer."""
    folder = tmp_path_factory.mktemp("families")
    tiny = build_tiny_model(folder / "tiny")
    for name in FAMILIES:
        config = AutoConfig.for_model(name, **({} if name == "gpt2" else SHAPE))
        if name == "gpt2":
            config.update({"vocab_size": 259, "n_embd": 16, "n_layer": 1, "n_head": 2})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(tiny).save_pretrained(folder / name)
    return {name: folder / name for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_can_be_saved_is_not_refused(families: dict[str, Path], name: str, no_leftovers: Path) -> None:
    source = families[name]
    for adapter, merge in (("none", True), ("lora", True), ("lora", False), ("qlora", True)):
        rehearse_saving(TrainConfig(policy="p", adapter=adapter), source, merge_adapter=merge)
    rehearse_saving(PpoConfig(policy="p"), source)
    if name == "granite":  # of which transformers has no reward model
        with pytest.raises(EngineError, match="could not be saved and loaded again"):
            rehearse_reward_model(RewardModelConfig(policy="p"), source)
        return
    for adapter in ("none", "lora"):
        rehearse_reward_model(RewardModelConfig(policy="p", adapter=adapter), source)
    assert not list(no_leftovers.iterdir())


@pytest.mark.parametrize("targets", [("lm_head",), ("embed_tokens",)])
@pytest.mark.parametrize("tied", [True, False])
def test_adapters_on_head_and_embedding_can_be_saved(
    tmp_path: Path, targets: tuple[str, ...], tied: bool, no_leftovers: Path
) -> None:
    source = build_tiny_model(tmp_path / "model", tied=tied)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    config = TrainConfig(policy="p", adapter="lora", lora_targets=targets)
    for merge in (True, False):
        rehearse_saving(config, source, merge_adapter=merge)
    assert not list(no_leftovers.iterdir())
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def changed(source: Path, name: str, change: dict[str, Any]) -> None:
    body = json.loads((source / name).read_text())
    (source / name).write_text(json.dumps(body | change))


REFUSED = {
    "dtype": (
        "config.json",
        {"dtype": "float8_e4m3fn"},
        r"dtype 'float8_e4m3fn', which training cannot save",
    ),
    "quantised": (
        "config.json",
        {"quantization_config": {"quant_method": "gptq"}},
        r"are quantised \(gptq\)",
    ),
    "tokenizer": ("tokenizer.json", {"model": 3}, "cannot load the tokenizer"),
    "config": ("config.json", {"num_attention_heads": "many"}, "cannot read the config"),
}


@pytest.mark.parametrize("change", [{}, {"adapter": "lora"}], ids=str)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_saved_is_refused_by_name(
    tmp_path: Path, name: str, change: dict[str, Any], no_leftovers: Path
) -> None:
    source = build_tiny_model(tmp_path / "model")
    file, spoiled, message = REFUSED[name]
    changed(source, file, spoiled)
    with pytest.raises(EngineError, match=message):
        rehearse_saving(TrainConfig(policy="p", **change), source)
    assert not list(no_leftovers.iterdir())


def test_layers_that_do_not_exist_are_refused(tiny_model: Path) -> None:
    config = TrainConfig(policy="p", adapter="lora", lora_targets=("no_such_layer",))
    with pytest.raises(ConfigError, match="no_such_layer"):
        rehearse_saving(config, tiny_model)


def test_a_generation_config_that_the_library_would_not_write_is_none_of_its_business(
    tmp_path: Path, no_leftovers: Path
) -> None:
    source = build_tiny_model(tmp_path / "model")
    written = '{"temperature": 0.6, "eos_token_id": 2}'
    (source / "generation_config.json").write_text(written)
    rehearse_saving(TrainConfig(policy="p"), source)
    assert not list(no_leftovers.iterdir())
    assert (source / "generation_config.json").read_text() == written
