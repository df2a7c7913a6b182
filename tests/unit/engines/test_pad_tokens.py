"""No stage pads a policy's input, so what its tokenizer says of padding changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.models import find_model
from kubealign_components.engines.generation import Prompt, SamplingSpec, open_engine
from kubealign_components.engines.packing import Group
from kubealign_components.engines.scoring import Scorer
from kubealign_components.errors import ConfigError
from support.tiny import in_order

CHAT = [{"role": "user", "content": "Name a colour."}]


def results(model: Path) -> tuple[list[int], list[list[int]], list[float]]:
    """Token ids of a prompt, two sampled completions, and their log-probabilities."""
    prompt = ChatTemplate(find_model(str(model))).prompt_ids(CHAT)
    spec = SamplingSpec(engine="transformers", n=2, max_new_tokens=6, dtype="float32")
    with open_engine(spec, model) as engine:
        [sampled] = in_order(engine, [Prompt("0" * 32, prompt)])
    completions = [s.token_ids for s in sampled]
    with Scorer(model, device="cpu") as scorer:
        [sums] = scorer.score([Group(prompt, completions)])
    return prompt, completions, sums


def with_pad(model: Path, target: Path, pad: str | None) -> Path:
    """A copy of ``model`` whose tokenizer and configuration have another pad token, or none."""
    shutil.copytree(model, target)
    settings: dict[str, Any] = json.loads((target / "tokenizer_config.json").read_text())
    settings.pop("pad_token", None)
    (target / "tokenizer_config.json").write_text(json.dumps(settings | ({"pad_token": pad} if pad else {})))
    for name in ("config.json", "generation_config.json"):
        body = json.loads((target / name).read_text())
        body["pad_token_id"] = body["eos_token_id"] if pad else None
        (target / name).write_text(json.dumps(body))
    return target


@pytest.mark.parametrize("pad", [None, "<|im_end|>"], ids=["none", "eos"])
def test_a_pad_token_changes_nothing(tiny_model: Path, tmp_path: Path, pad: str | None) -> None:
    changed = with_pad(tiny_model, tmp_path / "model", pad)
    assert ChatTemplate(find_model(str(changed))).tokenizer.pad_token == pad
    assert results(changed) == results(tiny_model)


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "model", "nobody/no-such-model-anywhere"])
def test_an_unknown_model_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match="expected a model directory"):
        find_model(name)
