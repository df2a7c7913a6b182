"""choose among variants of which some ended early: they are told of, never chosen, and dropped at a rung."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kubealign_components.choose.config import ChooseConfig
from kubealign_components.choose.stage import run
from kubealign_components.choose.variants import ended_variants
from kubealign_components.data.choice_rows import CHOICE, ENDED, ChoiceRow
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.early_end import end_early, pass_on
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import EVALUATION, MODEL, SELECTION, TRAINING
from kubealign_components.data.stats import Stats
from kubealign_components.errors import GateError
from kubealign_components.mix.stage import MixConfig
from kubealign_components.mix.stage import run as mix
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.stage import run as train
from support.datasets import MakeDataset
from support.pages import Page
from support.run_folders import completions

REASON = "after step 3: the training has diverged"


@pytest.fixture
def training(make_dataset: MakeDataset) -> Dataset:
    return make_dataset([], TRAINING)


def diverged(folder: Path, training: Dataset, beta: float) -> Dataset:
    """The evaluation of a variant that ended without a model."""
    model, output = str(folder / f"model-{beta}"), str(folder / f"ended-{beta}")
    own = {"params": {"beta": beta, "seed": 0}, "inputs": {"training": training}}
    end_early(REASON, stage="train", version=1, schema=MODEL, output=model, **own)
    made = Dataset.open(model)
    pass_on("model", made, stage="evaluate", version=1, schema=EVALUATION, output=output)
    return Dataset.open(output)


def sound(folder: Path, training: Dataset, beta: float, gain: float) -> Dataset:
    """The evaluation of a variant that gained so much."""
    made = derive("train", 1, {"beta": beta, "seed": 0}, inputs={"training": training})
    with DatasetWriter(str(folder / f"model-{beta}"), MODEL, made) as writer:
        model = writer.commit(Stats())
    noise = np.random.default_rng(int(1000 * beta)).normal(0, 0.05, 20)
    rows = [
        {
            "prompt_id": f"{prompt:03d}",
            "messages": "[]",
            "reference": completions("before", [0.0]),
            "aligned": completions("after", [gain + noise[prompt]]),
            "reward_difference": gain,
        }
        for prompt in range(20)
    ]
    stats = Stats(rows_in=20, rows_out=20, numbers={"reward_gain": gain})
    compared = derive("evaluate", 1, {"reward": {}, "max_prompts": 20}, inputs={"model": model})
    with DatasetWriter(str(folder / f"evaluation-{beta}"), EVALUATION, compared) as writer:
        writer.write_rows(rows)
        return writer.commit(stats)


def test_a_variant_that_ended_early_is_told_of_and_not_chosen(training: Dataset, tmp_path: Path) -> None:
    evaluations = [sound(tmp_path, training, 0.1, 0.2), diverged(tmp_path, training, 0.9)]
    output, page = str(tmp_path / "choice"), tmp_path / "choice.html"
    stats = run(ChooseConfig(), evaluations=evaluations, output=output, report=str(page))
    choice = Dataset.open(output, CHOICE)
    [row] = choice.iter_rows(of=ChoiceRow)
    assert row["chosen"]
    assert row["evaluation"] == evaluations[0].manifest.fingerprint
    assert choice.manifest.extra[ENDED] == [["train_beta=0.9", REASON]]
    assert not choice.ended_early
    assert (stats.rows_in, stats.rows_out, stats.dropped["ended_early"]) == (2, 1, 1)
    assert evaluations[1].manifest.fingerprint in choice.manifest.recipe
    assert ["train_beta=0.9", REASON] in Page(page.read_text()).rows


def test_where_all_ended_early_the_run_fails_with_all_reasons(training: Dataset, tmp_path: Path) -> None:
    evaluations = [diverged(tmp_path, training, beta) for beta in (0.1, 0.9)]
    output, page = tmp_path / "choice", tmp_path / "choice.html"
    with pytest.raises(
        GateError, match=r"no variant of 2 came to its end: train_beta=0\.\d: after step 3.*; tr.*report"
    ):
        run(ChooseConfig(), evaluations=evaluations, output=str(output), report=str(page))
    assert [file.name for file in output.iterdir()] == ["report.html"], "there is nothing to choose from"
    for written in (page, output / "report.html"):
        rows = Page(written.read_text()).rows
        assert sorted(rows[-2:]) == [["train_beta=0.1", REASON], ["train_beta=0.9", REASON]]


def test_a_variant_of_which_nothing_is_selected_ends_alone_and_under_its_settings(
    training: Dataset, tmp_path: Path
) -> None:
    """Two settings of select, of which one leaves no rows, by two of train."""
    stats = Stats(rows_in=3)
    stats.drop("no_pair", 3)
    selections = []
    for gap in (0.0, 0.99):
        selected = derive("select", 1, {"min_quantile_gap": gap}, inputs={"rewarded": training})
        with DatasetWriter(str(tmp_path / f"selection-{gap}"), SELECTION, selected) as writer:
            selections.append(writer.commit(stats))
    evaluations = [sound(tmp_path, selections[0], 0.1, 0.2)]
    for beta in (0.1, 0.3):
        folder = tmp_path / f"{beta}"
        mix(MixConfig(), selections=selections[1:], output=str(folder / "mix"), sweep=True)
        mixed = Dataset.open(str(folder / "mix"))
        config = TrainConfig(policy=str(tmp_path / "no model"), beta=beta)
        train(config, training=mixed, output=str(folder / "model"), sweep=True)
        output = str(folder / "evaluation")
        pass_on(
            "model",
            Dataset.open(str(folder / "model")),
            stage="evaluate",
            version=1,
            schema=EVALUATION,
            output=output,
        )
        evaluations.append(Dataset.open(output))
    run(ChooseConfig(), evaluations=evaluations, output=str(tmp_path / "choice"))
    choice = Dataset.open(str(tmp_path / "choice"), CHOICE)
    reason = "select left no rows: all were dropped (3 no_pair)"
    assert sorted(choice.manifest.extra[ENDED]) == [
        [f"select_min_quantile_gap=0.99, train_beta={beta}", reason] for beta in (0.1, 0.3)
    ]
    [row] = choice.iter_rows(of=ChoiceRow)
    assert row["chosen"]


def test_letters_of_those_that_ended_are_no_others(training: Dataset, tmp_path: Path) -> None:
    """Variants that no setting tells apart."""
    one = sound(tmp_path, training, 0.1, 0.1)
    early = ended_variants([diverged(tmp_path / "ended", training, 0.1)], [one, one])
    assert [variant.name for variant in early] == ["variant C"]


def test_at_a_rung_they_are_some_of_those_that_are_dropped(training: Dataset, tmp_path: Path) -> None:
    """One in two of four goes on: both that are left, where two have ended early."""
    betas = {0.1: 0.2, 0.2: 0.1}
    evaluations = [sound(tmp_path, training, beta, gain) for beta, gain in betas.items()]
    evaluations += [diverged(tmp_path, training, beta) for beta in (0.8, 0.9)]
    first, last = str(tmp_path / "first"), str(tmp_path / "last")
    run(ChooseConfig(reduction_factor=2), evaluations=evaluations, output=first)
    rung = Dataset.open(first, CHOICE)
    rows = list(rung.iter_rows(of=ChoiceRow))
    assert [row["dropped"] for row in rows] == [None, None]
    assert rung.manifest.extra["variants"] == 4, "bounds hold for all that there were"
    run(ChooseConfig(), evaluations=evaluations[:2], earlier=rung, output=last, report=f"{last}.html")
    ended = Dataset.open(last, CHOICE).manifest.extra[ENDED]
    assert sorted(name for name, _ in ended) == ["train_beta=0.8", "train_beta=0.9"]
    assert "train_beta=0.8" in Page(Path(f"{last}.html").read_text()).text
    names = [json.loads(row["settings"]) for row in Dataset.open(last, CHOICE).iter_rows(of=ChoiceRow)]
    assert names == [{"train_beta": 0.1}, {"train_beta": 0.2}]
