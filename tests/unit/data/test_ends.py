"""Which tokens end a turn is read from the files of a model, whatever stands in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kubealign_components.data.chat.ends import ids_of_files
from kubealign_components.errors import EngineError


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.parametrize(
    ("named", "ids"), [("5", {2, 5}), ("[5, 1]", {1, 2, 5}), ("null", {2}), ("-1", {2}), ("[-1, 5]", {2, 5})]
)
def test_ends_are_those_of_generation_config_and_tokenizer(model: Path, named: str, ids: set[int]) -> None:
    (model / "generation_config.json").write_text(f'{{"eos_token_id": {named}}}')
    assert ids_of_files(model) == ids


@pytest.mark.parametrize("named", ['"2"', '[2, "<|im_end|>"]', "true", "2.5", '{"id": 2}'])
def test_an_end_that_is_no_token_id_is_named(model: Path, named: str) -> None:
    (model / "generation_config.json").write_text(f'{{"eos_token_id": {named}}}')
    with pytest.raises(EngineError, match="expected a token id or a list of them"):
        ids_of_files(model)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("body", ["{", "[]", "\x00"])
def test_settings_that_are_none_are_named(model: Path, name: str, body: str) -> None:
    (model / name).write_text(body)
    with pytest.raises(EngineError, match=rf"{name} (is no JSON|holds a)"):
        ids_of_files(model)
