"""A sweep on this machine: sampled once, trained for each variant, one chosen; grown it goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from kubealign import Results, RunFile, run_local
from kubealign.cli.main import main
from kubealign.local.results import load_run
from kubealign_components.data.dataset import Dataset
from support.pages import Page
from support.small_run import small_run

VARIANTS = [
    {"train": {"beta": 0.05}},
    {"train": {"beta": 0.3}},
    {"select": {"strategy": "random_pairs"}, "train": {"beta": 0.05}},
]

DIVERGING = {"train": {"learning_rate": 1e30, "warmup_ratio": 0.0}}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def first(tiny_model: Path, output: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the command line tells of a sweep of two variants, with selection before their loop."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"prompt": f"Tell me about number {number}, please."} for number in range(24)]
    small = small_run(tiny_model, folder / "prompts.jsonl", rows, work_rows_per_chunk=24)
    (folder / "run.yaml").write_text(json.dumps({"parameters": small | {"logprobs_order": "before"}}))
    words = ["sweep", "-f", str(folder / "run.yaml"), "-o", str(output), "--name", "two"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        done = CliRunner().invoke(main, [*words, "--grid", "train_beta=0.05,0.3"])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def swept(first: str, output: Path) -> Results:
    """The same with two variants more: one selects as well, one diverges."""
    before = load_run(output / "runs" / "two")
    given = {name: value for name, value in before.parameters.items() if name != "variants"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return run_local(
            RunFile(parameters={**given, "variants": [*VARIANTS, DIVERGING]}), output=output, name="three"
        )


def test_nothing_is_sampled_again_and_only_new_variants_are_trained(swept: Results) -> None:
    stages = [row.stage for row in swept.stages]
    once = ("sample", "rewards", "logprobs", "choose")
    assert [stages.count(stage) for stage in once] == [1] * len(once)
    assert [stages.count(stage) for stage in ("select", "mix", "train", "evaluate")] == [4] * 4
    # Every completion was sampled by the first sweep's engine, none by the second's or for a variant.
    rows = {row.stage: row for row in swept.stages}
    for stage in ("sample", "rewards", "logprobs"):
        assert rows[stage].reused == rows[stage].rows_out == 24
    logs = {log.name: log.read_text() for log in (swept.folder / "logs").rglob("*.log")}
    taken = [
        name for name, text in logs.items() if re.search(r"train|evaluate", name) and "taken from" in text
    ]
    assert len([name for name in taken if "train" in name]) == 2
    assert len([name for name in taken if "evaluate" in name]) == 2


def test_one_is_chosen_and_its_model_is_the_runs(swept: Results) -> None:
    assert len(swept.choice) == 3
    [chosen] = [row for row in swept.choice if row["chosen"]]
    assert chosen["gain_low"] == max(row["gain_low"] for row in swept.choice)
    names = {json.dumps(json.loads(row["settings"]), sort_keys=True) for row in swept.choice}
    assert names == {
        '{"select_strategy": "best_worst", "train_beta": 0.05}',
        '{"select_strategy": "best_worst", "train_beta": 0.3}',
        '{"select_strategy": "random_pairs", "train_beta": 0.05}',
    }
    for results in (swept, load_run(swept.folder)):
        assert results.model is not None
        model = Dataset.open(str(results.model), allow_empty=True)
        assert model.manifest.fingerprint == chosen["model_fingerprint"]
        assert Dataset.open(str(swept.folder / "model"), allow_empty=True).uri.endswith("model")
        assert results.evaluation["reward_gain"] == pytest.approx(chosen["gain"])
    assert (swept.folder / "model").resolve() == swept.model
    for row in swept.choice:
        recipe = Dataset.open(row["model"], allow_empty=True).manifest.recipe
        assert {step["stage"] for step in recipe.values()} >= {
            "import_prompts",
            "sample",
            "rewards",
            "select",
        }


def test_a_variant_that_diverges_is_told_of_and_the_others_are_chosen_from(swept: Results) -> None:
    [(name, reason)] = swept.ended_early
    assert "train_learning_rate=1e+30" in name
    assert "The training has diverged" in reason
    ended = [row for row in swept.stages if row.iteration == 4]
    assert [(row.stage, row.rows_out > 0) for row in ended] == [
        *(("select", True), ("mix", True), ("train", False), ("evaluate", False))
    ]
    assert "model-4" not in swept.by_usual_name()
    [page] = [o for o in swept.outputs_of("system.HTML") if (o.task, o.output) == ("choose", "report")]
    assert [name, reason] in Page(page.path.read_text()).rows


def test_the_page_shows_the_front(swept: Results) -> None:
    [report] = [o for o in swept.outputs_of("system.HTML") if (o.task, o.output) == ("choose", "report")]
    page = Page(report.path.read_text())
    assert "Chosen is" in page.text
    assert len(page.charts) == 2
    assert not page.loaded


def test_the_command_tells_the_variants_and_the_chosen_one(first: str, swept: Results, output: Path) -> None:
    assert "Variants; the intervals of the gains hold for all at once" in first
    assert "Evaluation of the chosen variant" in first
    earlier = {row["model_fingerprint"] for row in load_run(output / "runs" / "two").choice}
    assert len(earlier) == 2
    assert earlier < {row["model_fingerprint"] for row in swept.choice}


@pytest.fixture(scope="module")
def halved(swept: Results, output: Path) -> Results:
    """Two new variants of the same samples, of which one goes on from half of its steps."""
    given = {name: value for name, value in swept.parameters.items() if name != "variants"}
    variants = [{"train": {"beta": beta}} for beta in (0.1, 0.2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        run = RunFile(parameters={**given, "variants": variants, "halving": 2})
        return run_local(run, output=output, name="halved")


def test_one_of_two_variants_goes_on_from_its_checkpoint(halved: Results) -> None:
    trained = [(row.rung, row.counts["steps"]) for row in halved.stages if row.stage == "train"]
    assert trained == [(1, 1), (1, 1), (0, 2)]
    rows = {row.stage: row for row in halved.stages}
    assert rows["sample"].reused == rows["sample"].rows_out == 24
    logs = {log.name: log.read_text() for log in (halved.folder / "logs").rglob("*.log")}
    assert sum("going on from step 1 " in text for text in logs.values()) == 1
    went_on, dropped = sorted(halved.choice, key=lambda row: row["dropped"] is not None)
    assert (went_on["chosen"], went_on["rung"], went_on["share"]) == (True, 2, 1.0)
    assert (dropped["chosen"], dropped["rung"], dropped["share"]) == (False, 1, 0.5)
    assert "the lowest that went on" in str(dropped["dropped"])
    names = {"model", "model-rung-1-1", "model-rung-1-2", "choice", "choice-rung-1"}
    assert names <= halved.by_usual_name().keys()
    for results in (halved, load_run(halved.folder)):
        assert results.model == halved.folder.resolve() / results.by_usual_name()["model"]
        model = Dataset.open(str(results.model), allow_empty=True)
        assert model.manifest.fingerprint == went_on["model_fingerprint"]
        assert results.evaluation["reward_gain"] == pytest.approx(went_on["gain"])
    [report] = [o for o in halved.outputs_of("system.HTML") if (o.task, o.output) == ("choose", "report")]
    assert "Dropped by successive halving" in report.path.read_text()
