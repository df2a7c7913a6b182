"""Several training processes on this machine give what one gives, sharded or not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from kubealign_components.data.dataset import Dataset
from kubealign_components.errors import DriftError
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.stage import run
from kubealign_components.training.checkpoints import MARKERS
from support.tiny import build_tiny_model
from support.training_data import losses, make_training, score, training_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need no GPU or two"),
]


@pytest.fixture
def pairs(make_dataset: Callable[..., Dataset], tiny_model: Path) -> Dataset:
    return make_training(make_dataset, tiny_model, score(training_rows(12, validation=4), tiny_model))


def settings(policy: Path) -> TrainConfig:
    return TrainConfig(
        policy=str(policy),
        max_steps=4,
        batch_size=5,  # 5, 5 and 2 of the 12 examples: the shares are uneven
        micro_batch_tokens=40,
        learning_rate=1e-3,
        dtype="float32",
        processes=1,
    )


def weights(model: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(model).state_dict()


@pytest.mark.parametrize(
    ("strategy", "adapter"), [("none", "none"), ("zero1", "none"), ("fsdp2", "lora"), ("zero3", "lora")]
)
def test_two_processes_train_what_one_trains(
    pairs: Dataset, tiny_model: Path, tmp_path: Path, strategy: str, adapter: str
) -> None:
    """Same losses and same weights; and the sharded checkpoint of step 2 leads to the same end."""
    alone = replace(settings(tiny_model), adapter=adapter)
    run(alone, training=pairs, output=str(tmp_path / "one"))
    both = replace(
        alone, strategy=strategy, processes=2, save_every=2, keep_checkpoints=9, work=str(tmp_path / "work")
    )
    run(both, training=pairs, output=str(tmp_path / "two"))
    for marker in (tmp_path / "work").rglob(f"{MARKERS}/*.json"):
        if json.loads(marker.read_text())["step"] == 4:
            marker.unlink()
    run(both, training=pairs, output=str(tmp_path / "resumed"))
    for other in ("two", "resumed"):
        assert losses(tmp_path / other) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
        expected, actual = weights(tmp_path / "one"), weights(tmp_path / other)
        for name, weight in expected.items():
            torch.testing.assert_close(actual[name], weight, atol=1e-5, rtol=1e-4)
    assert losses(tmp_path / "one")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(tmp_path / "one")[-1] < 0.65


def test_errors_of_the_processes_reach_the_caller(
    make_dataset: Callable[..., Dataset], tiny_model: Path, tmp_path: Path
) -> None:
    data = make_training(
        make_dataset, tiny_model, score(training_rows(4), build_tiny_model(tmp_path / "x", seed=1))
    )
    with pytest.raises(DriftError, match="nats per token on average"):
        run(replace(settings(tiny_model), processes=2), training=data, output=str(tmp_path / "out"))
