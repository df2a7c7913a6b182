"""Several processes train the reward model that one trains, sharded or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from kubealign_components.data.dataset import Dataset
from kubealign_components.train_reward_model.config import RewardModelConfig
from kubealign_components.train_reward_model.model import load_head
from kubealign_components.train_reward_model.stage import run
from support.preference_data import build_learner, make_preferences, preference_rows, write_files
from support.training_data import losses

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need no GPU or two"),
]


def weights(model: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForSequenceClassification.from_pretrained(model).state_dict()
    return state


@pytest.mark.parametrize(("strategy", "adapter"), [("none", "lora"), ("zero3", "none"), ("zero3", "lora")])
def test_two_processes_train_what_one_trains(
    make_dataset: Callable[..., Dataset], tmp_path: Path, strategy: str, adapter: str
) -> None:
    """Same losses and same weights, from a start with a head."""
    policy = build_learner(tmp_path / "policy")
    template, principles = write_files(tmp_path)
    rows = preference_rows(12, validation=4)
    data = make_preferences(make_dataset, rows)
    alone = RewardModelConfig(
        policy=str(policy),
        template=str(template),
        principles=str(principles),
        adapter=adapter,
        head="normal",
        max_steps=4,
        batch_size=5,  # 5, 5 and 2 of the 12 pairs: the shares are uneven
        micro_batch_tokens=120,
        learning_rate=1e-3,
        dtype="float32",
        processes=1,
    )
    run(alone, preferences=data, output=str(tmp_path / "start"))
    start = Dataset.open(str(tmp_path / "start"))
    both = replace(alone, strategy=strategy, processes=2)
    run(alone, preferences=data, start=start, output=str(tmp_path / "one"))
    run(both, preferences=data, start=start, output=str(tmp_path / "two"))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    actual = weights(tmp_path / "two")
    for name, weight in weights(tmp_path / "one").items():
        torch.testing.assert_close(actual[name], weight, atol=1e-5, rtol=1e-4)
    assert losses(tmp_path / "one")[0] != pytest.approx(math.log(2), abs=1e-3)
    if adapter == "lora":
        heads = [load_head(tmp_path / name / "adapter") for name in ("start", "one", "two")]
        torch.testing.assert_close(heads[2], heads[1], atol=1e-5, rtol=1e-4)
        assert not torch.equal(heads[1], heads[0])
