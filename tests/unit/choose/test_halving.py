"""choose at the rungs of successive halving: who is trained further, and what stays of the others."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kfp import dsl

from kubealign_components.choose.config import ChooseConfig
from kubealign_components.choose.stage import run, survivors
from kubealign_components.data.bounds import simultaneous_intervals
from kubealign_components.data.choice_rows import CHOICE, ChoiceRow
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import EVALUATION, MODEL
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError, DataError, GateError
from kubealign_components.variant import name_variant, named_variants
from support.pages import Page
from support.run_folders import completions

PROMPTS = 40
BETAS = (0.1, 0.2, 0.3, 0.4, 0.5)
FIRST = {0.1: 0.30, 0.2: -0.10, 0.3: 0.20, 0.4: 0.25, 0.5: 0.00}
"""What each beta gained at the first rung, in the mean."""
LAST = {0.1: 0.40, 0.3: 0.55, 0.4: 0.35}


def evaluation(folder: Path, beta: float, gain: float, share: float, *, kl: float = 1.0) -> Dataset:
    """Of a model of ``beta`` after the ``share`` of its training, with the same noise at every rung."""
    params: dict[str, Any] = {"beta": beta} | ({"stop_after": share} if share < 1 else {})
    model = folder / f"model-{beta}-{share:.2f}"
    with DatasetWriter(str(model), MODEL, derive("train", 1, params)) as writer:
        writer.commit(Stats())
    noise = np.random.default_rng(int(1000 * beta)).normal(0, 0.05, PROMPTS)
    rows = [
        {
            "prompt_id": f"{prompt:03d}",
            "messages": "[]",
            "reference": completions("before", [0.0]),
            "aligned": completions("after", [gain + noise[prompt] - noise.mean()]),
            "reward_difference": gain,
        }
        for prompt in range(PROMPTS)
    ]
    inputs = {"model": Dataset.open(str(model), allow_empty=True)}
    made = derive("evaluate", 1, {"reward": {"function": "brevity"}}, inputs=inputs)
    stats = Stats(rows_in=len(rows), rows_out=len(rows))
    stats.numbers |= {"reward_gain": gain, "kl_per_completion": kl, "kl_standard_error": 0.1}
    uri = str(folder / f"evaluation-{made.fingerprint[:12]}")
    with DatasetWriter(uri, EVALUATION, made) as writer:
        writer.write_rows(rows)
        writer.commit(stats)
    return Dataset.open(uri)


def rung(
    folder: Path, name: str, evaluations: list[Dataset], **given: Any
) -> tuple[Dataset, list[ChoiceRow]]:
    earlier = given.pop("earlier", None)
    output = str(folder / name)
    run(
        ChooseConfig(**given),
        evaluations=evaluations,
        earlier=earlier,
        output=output,
        report=f"{output}.html",
    )
    made = Dataset.open(output, CHOICE)
    return made, list(made.iter_rows(of=ChoiceRow))


def first_rung(folder: Path, **given: Any) -> tuple[Dataset, list[ChoiceRow]]:
    evaluations = [evaluation(folder, beta, gain, 0.5) for beta, gain in FIRST.items()]
    return rung(folder, "first", evaluations, reduction_factor=2, **given)


def beta_of(row: ChoiceRow) -> float:
    return float(json.loads(row["settings"])["train_beta"])


def test_one_in_so_many_goes_on_by_the_lower_bound(tmp_path: Path) -> None:
    made, rows = first_rung(tmp_path, min_gain=1.0)  # a bound for the one of all, which no rung is held to
    kept = {row["evaluation"]: row for row in rows if row["dropped"] is None}
    assert survivors(made) == list(kept)
    assert {beta_of(row) for row in kept.values()} == {0.1, 0.3, 0.4}
    lowest = min(row["gain_low"] for row in kept.values())
    assert not any(row["chosen"] for row in rows)
    for row in rows:
        assert (row["rung"], row["share"]) == (1, 0.5)
        assert (row["dropped"] is None) == (row["gain_low"] >= lowest)
        assert row["behind"] == pytest.approx(0.30 - row["gain"])
    [dropped] = [row for row in rows if beta_of(row) == 0.2]
    assert f"{dropped['gain_low']:+.4f} is not above {lowest:+.4f}" in str(dropped["dropped"])
    page = Page((tmp_path / "first.html").read_text())
    assert "3 of 5 variants are trained further, after 50.0% of their steps" in page.text
    assert "one in 2 is trained further" in page.text
    assert "Dropped by successive halving" in (tmp_path / "first.html").read_text()


def test_the_last_choice_tells_of_those_that_were_dropped(tmp_path: Path) -> None:
    earlier, before = first_rung(tmp_path)
    evaluations = [evaluation(tmp_path, beta, gain, 1.0) for beta, gain in LAST.items()]
    made, rows = rung(tmp_path, "last", evaluations, earlier=earlier)
    assert [beta_of(row) for row in rows if row["chosen"]] == [0.3]
    assert [(beta_of(row), row["rung"], row["share"]) for row in rows] == [
        *((beta, 2, 1.0) for beta in LAST),
        *((beta, 1, 0.5) for beta in (0.2, 0.5)),
    ]
    assert rows[3:] == [row for row in before if row["dropped"] is not None]
    assert {row["variant"] for row in rows} == {f"train_beta={beta}" for beta in BETAS}
    assert {step["stage"] for step in made.manifest.recipe.values()} == {"train", "evaluate", "choose"}
    page = Page((tmp_path / "last.html").read_text())
    assert "Chosen is train_beta=0.3" in page.text
    assert "2 were dropped by what these same prompts said" in page.text
    table = [row for row in page.rows if row and row[0] == "train_beta=0.2"]
    assert table[0][2:4] == ["1", "50.0%"]
    assert not page.loaded


def test_one_variant_that_is_left_is_named_and_chosen(tmp_path: Path) -> None:
    evaluations = [evaluation(tmp_path, beta, FIRST[beta], 0.5) for beta in (0.1, 0.2)]
    earlier, _ = rung(tmp_path, "first", evaluations, reduction_factor=2)
    _, rows = rung(tmp_path, "last", [evaluation(tmp_path, 0.1, 0.4, 1.0)], earlier=earlier)
    assert [(row["variant"], row["chosen"]) for row in rows] == [
        ("train_beta=0.1", True),
        ("train_beta=0.2", False),
    ]
    with pytest.raises(GateError, match="min_gain"):
        rung(tmp_path, "held", [evaluation(tmp_path, 0.1, 0.4, 1.0)], earlier=earlier, min_gain=0.5)


def test_who_keeps_to_no_limit_goes_on_after_all_others(tmp_path: Path) -> None:
    evaluations = [
        evaluation(tmp_path, beta, gain, 0.5, kl=9.0 if beta == 0.1 else 1.0) for beta, gain in FIRST.items()
    ]
    _, rows = rung(tmp_path, "first", evaluations, reduction_factor=2, max_kl=5.0)
    assert {beta_of(row) for row in rows if row["dropped"] is None} == {0.3, 0.4, 0.5}
    [outside] = [row for row in rows if beta_of(row) == 0.1]
    assert outside["dropped"] == "it does not keep to the limits"
    _, rows = rung(tmp_path, "none", evaluations, reduction_factor=2, max_kl=0.5)
    assert {beta_of(row) for row in rows if row["dropped"] is None} == {0.1, 0.3, 0.4}


@pytest.mark.parametrize("factor", [1, -2])
def test_a_factor_that_drops_none_is_refused(factor: int) -> None:
    with pytest.raises(ConfigError, match="reduction_factor"):
        ChooseConfig(reduction_factor=factor)


def test_a_variant_is_known_by_what_its_artifact_says() -> None:
    artifact, other = (dsl.Dataset(uri=f"gs://bucket/evaluation-{number}") for number in range(2))
    name_variant(artifact, {})
    assert artifact.metadata == {}
    own = {"train": {"beta": 0.1, "lora_targets": ["q"]}, "select": {}}
    name_variant(artifact, own)
    assert named_variants([artifact, other]) == [own, {}]


def test_evaluations_that_lost_whose_they_are_train_no_other_variant_further() -> None:
    lost = [dsl.Dataset(uri=f"gs://bucket/evaluation-{number}") for number in range(3)]
    name_variant(lost[0], {"train": {"beta": 0.1}})
    with pytest.raises(DataError, match="2 of 3 evaluations do not say in their metadata which variant"):
        named_variants(lost)


def test_intervals_of_rows_that_were_picked_hold_as_often_as_they_say() -> None:
    """Of ten rows without any gain the best two are told of. Told as if they were all that there were, a
    lower bound is above 0 in too many of the draws."""
    draw, picked, draws = np.random.default_rng(0), 2, 150
    missed = {"picked": 0, "alone": 0}
    for number in range(draws):
        values = draw.normal(0, 1, (10, 40))
        best = values[np.argsort(-values.mean(axis=1))[:picked]]
        for name, among in (("picked", 10), ("alone", 0)):
            low, _ = simultaneous_intervals(best, seed=number, resamples=2000, among=among)
            missed[name] += bool((low > 0).any())
    error = math.sqrt(0.05 * 0.95 / draws)
    assert missed["picked"] / draws <= 0.05 + 2 * error
    assert missed["alone"] / draws > 0.05 + 2 * error
