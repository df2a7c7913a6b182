"""evaluate with people's labels in place of a reward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kubealign_components.config import from_mapping
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import new_completion
from kubealign_components.engines.generation import SamplingSpec
from kubealign_components.errors import ConfigError
from kubealign_components.evaluate.comparison import preference_accuracy
from kubealign_components.evaluate.measures import labelled_completions
from kubealign_components.evaluate.stage import EvaluateConfig, run
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as filter_prompts
from support.tiny import prompt_row

SAMPLING = SamplingSpec(engine="transformers", n=2, max_new_tokens=6, dtype="float32")


def config(policy: Path) -> EvaluateConfig:
    return EvaluateConfig(policy=str(policy), sampling=SAMPLING, validation_fraction=0.9, kl_prompts=2)


@pytest.fixture
def labelled(make_dataset: Callable[..., Dataset], tiny_model: Path, tmp_path: Path) -> Dataset:
    """Prompts with a chosen and a rejected answer, tokenised and never sampled for."""
    rows = [prompt_row(f"question {i}?", ["good", "bad"]) for i in range(8)]
    for row in rows:
        for completion, label in zip(row["completions"], ("chosen", "rejected"), strict=True):
            completion["label"] = label
    filter_prompts(
        FilterConfig(policy=str(tiny_model)), prompts=make_dataset(rows), output=str(tmp_path / "tokenized")
    )
    return Dataset.open(str(tmp_path / "tokenized"))


def test_a_policy_has_no_preference_over_itself(labelled: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    stats = run(config(tiny_model), rewarded=labelled, model=str(tiny_model), output=output)
    assert stats.numbers["preference_accuracy"] == 0.5
    assert stats.numbers["preference_margin"] == 0.0
    assert stats.numbers["preference_pairs"] == stats.numbers["prompts"]
    assert {"length_ratio", "kl_per_token"} <= set(stats.numbers)
    assert not any(name.startswith(("reward", "win_rate")) for name in stats.numbers)
    assert [row["reward_difference"] for row in Dataset.open(output).iter_rows()] == [None] * stats.rows_out


def test_the_report_tells_what_people_preferred_and_no_reward(
    labelled: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    places = {"output": str(tmp_path / "out"), "report": str(report)}
    run(config(tiny_model), rewarded=labelled, model=str(tiny_model), **places)
    text = report.read_text()
    assert "moved towards the chosen completion in 50.0%" in text
    assert "reward" not in text.replace("no reward", "")


def test_a_gain_cannot_be_asked_for_without_a_reward(tiny_model: Path) -> None:
    settings = {"policy": str(tiny_model), "sampling": {"engine": "fake"}, "min_gain": 0.1}
    with pytest.raises(ConfigError, match=r"min_gain=0\.1: expected null without a reward"):
        from_mapping(EvaluateConfig, settings, "evaluate")


def test_the_accuracy_counts_prompts_once_and_ties_half() -> None:
    margins = [np.array([1.0, -1.0]), np.array([2.0]), np.array([0.0])]
    numbers = preference_accuracy(margins, seed=0)
    assert numbers["preference_accuracy"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert numbers["preference_pairs"] == 4
    assert numbers["preference_accuracy_low"] <= numbers["preference_accuracy"]
    assert preference_accuracy([], seed=0) == {}


def test_pairs_of_a_prompt_go_by_their_order() -> None:
    made = [("a", "chosen"), ("b", "rejected"), ("c", "chosen"), ("d", None)]
    completions = [{**new_completion(completion_id=i, label=label), "token_ids": [1]} for i, label in made]
    found = [(a["completion_id"], b["completion_id"]) for a, b in labelled_completions(completions)]
    assert found == [("a", "b"), ("c", "b")]


def test_pairs_of_a_prompt_are_the_comparisons_whose_sides_are_there() -> None:
    made = {"a": ([0], []), "b": ([1], [0]), "c": ([2], [1]), "empty": ([], [2])}
    completions = [
        {**new_completion(completion_id=name, wins=wins, losses=losses), "token_ids": [1] * (name != "empty")}
        for name, (wins, losses) in made.items()
    ]
    found = [(a["completion_id"], b["completion_id"]) for a, b in labelled_completions(completions)]
    assert found == [("a", "b"), ("b", "c")]
