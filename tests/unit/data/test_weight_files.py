"""Files of a model that are not what they seem are refused before anything runs, without reading weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubealign_components.data.models import find_adapter, find_model
from kubealign_components.errors import EngineError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 134\n".format("a" * 64)
WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def changed(model: Path, **settings: object) -> None:
    config = model / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_weights_that_are_cut_anywhere_are_refused(model: Path, tiny_model: Path, share: float) -> None:
    whole = (tiny_model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(model / WEIGHTS, "pt"):
        pass
    with pytest.raises(EngineError, match=rf"{WEIGHTS}.* (is cut|header says)"):
        find_model(str(model))


@pytest.mark.parametrize("body", [b"", b"<html>404</html>", b"\xff" * 64, b"\2\0\0\0\0\0\0\0[]"], ids=repr)
def test_what_is_no_safetensors_file_is_refused(model: Path, body: bytes) -> None:
    (model / WEIGHTS).write_bytes(body)
    with pytest.raises(EngineError, match="is cut, or no safetensors file"):
        find_model(str(model))


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_torch_save_are_whole_or_refused(model: Path, legacy: bool) -> None:
    weights = safetensors.torch.load_file(model / WEIGHTS)
    (model / WEIGHTS).unlink()
    file = model / "pytorch_model.bin"
    torch.save(weights, file, _use_new_zipfile_serialization=not legacy)
    assert find_model(str(model)).weights() == [file.name]
    file.write_bytes(file.read_bytes()[: 8 if legacy else -100])
    with pytest.raises(EngineError, match=r"is cut, or no file of torch\.save"):
        find_model(str(model))


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_clone_without_its_large_files_is_refused_with_the_remedy(model: Path, name: str) -> None:
    (model / name).write_text(POINTER)
    with pytest.raises(EngineError, match=rf"{name} is a pointer of Git LFS .*git lfs pull"):
        find_model(str(model))


def test_pointers_to_what_no_run_reads_are_let_be(model: Path) -> None:
    for name in ("README.md", "figure.png", "model.onnx"):
        (model / name).write_text(POINTER)
    assert find_model(str(model)).weights() == [WEIGHTS]


@pytest.mark.parametrize("nested", [False, True])
def test_an_embedding_of_another_vocabulary_is_named(model: Path, nested: bool) -> None:
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    changed(model, **({"text_config": {"vocab_size": rows + 64}} if nested else {"vocab_size": rows + 64}))
    with pytest.raises(EngineError, match=rf"embedding of {rows} tokens .* vocab_size of {rows + 64}"):
        find_model(str(model))


def test_an_encoder_decoder_is_refused(model: Path) -> None:
    changed(model, model_type="t5", is_encoder_decoder=True)
    with pytest.raises(EngineError, match=r"is an encoder-decoder \(t5\)"):
        find_model(str(model))


def test_a_damaged_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    file = tmp_path / "adapter_model.safetensors"
    safetensors.torch.save_file({"lora_A.weight": torch.zeros(2, 4)}, file)
    assert find_adapter(str(tmp_path), "adapter").weights() == [file.name]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EngineError, match="header says"):
        find_adapter(str(tmp_path), "adapter")
    file.write_text(POINTER)
    with pytest.raises(EngineError, match="Git LFS"):
        find_adapter(str(tmp_path), "adapter")


def test_layers_that_the_config_has_and_the_weights_have_not_are_named(model: Path) -> None:
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    changed(model, num_hidden_layers=layers + 2)
    with pytest.raises(EngineError, match=rf"lack 2 of the {layers + 2} layers .*model\.layers\.{layers}, "):
        find_model(str(model))
    changed(model, num_hidden_layers=1)  # what is left over is told when the model is loaded
    assert find_model(str(model)).weights() == [WEIGHTS]


def test_shards_hold_what_the_index_says(model: Path) -> None:
    weights = safetensors.torch.load_file(model / WEIGHTS)
    (model / WEIGHTS).unlink()
    names = sorted(weights)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for shard, part in zip(shards, (names[::2], names[1::2])):
        safetensors.torch.save_file({name: weights[name] for name in part}, model / shard)
    index = {"weight_map": {name: shards[i % 2] for i, name in enumerate(names)}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_model(str(model)).weights() == shards
    safetensors.torch.save_file({name: weights[name] for name in names[3::2]}, model / shards[1])
    with pytest.raises(EngineError, match=rf"says that {names[1]} is in {shards[1]}, where it is not"):
        find_model(str(model))
