"""What a sweep on this machine is told as: the chosen variant's, and no variant's while none is chosen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from kubealign.cli.main import main
from kubealign.compare.runs import ComparedRun
from kubealign.local.results import Output, Results, StageRow, read_results
from kubealign.local.rounds import rounds_of
from kubealign.local.runs import read_run
from kubealign.local.summary import write_summary
from kubealign_components.data.choice_rows import CHOICE
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.manifest import Manifest
from kubealign_components.data.schemas import EVALUATION, MODEL, ROWS, SELECTION
from kubealign_components.data.stats import Stats

MADE = {
    "select": ("dataset", "system.Dataset", SELECTION),
    "train": ("model", "system.Model", MODEL),
    "evaluate": ("dataset", "system.Dataset", EVALUATION),
}
VARIANTS = (1, 2, 3)


def make(folder: Path, stage: str, schema: str, number: int, rows: Sequence[object] = ()) -> Dataset:
    with DatasetWriter(str(folder), schema, derive(stage, 1, {"beta": number})) as writer:
        writer.write_rows(rows)
        writer.commit(Stats(rows_in=len(rows), rows_out=len(rows)))
    return Dataset.open(str(folder), allow_empty=True)


def compared(number: int) -> StageRow:
    numbers = {f"reward_{name}": float(number) for name in ("gain", "gain_low", "gain_high", "reference")}
    numbers |= {"reward_aligned": float(number), "prompts": 4.0, "length_ratio": 1.0}
    return StageRow(
        stage="evaluate",
        title=f"evaluate {number}",
        rows_in=1,
        rows_out=1,
        dropped={},
        counts={},
        numbers=numbers,
        seconds=1.0,
        iteration=number,
    )


def swept(run: Path, chosen: int | None) -> Results:
    """A sweep of three variants in the folder ``run``; None for ``chosen`` is one that choose refused."""
    outputs: list[Output] = []

    def add(stage: str, folder: str, output: str, kind: str) -> Path:
        path = run / "artifacts" / "1" / folder / stage / output
        outputs.append(Output(task=stage, title=stage, output=output, type=kind, path=path, metadata={}))
        return path

    evaluations = []
    for number in VARIANTS:
        for stage, (output, kind, schema) in MADE.items():
            made = make(add(stage, f"for-loop-1-iteration-{number - 1}", output, kind), stage, schema, number)
        evaluations.append(made.manifest.fingerprint)
    if chosen:
        empty = dict.fromkeys(ROWS[CHOICE].names)
        rows = [
            empty | {"settings": "{}", "evaluation": name, "chosen": number == chosen}
            for number, name in zip(VARIANTS, evaluations)
        ]
        make(add("choose", "graph", "dataset", "system.Dataset"), "choose", CHOICE, 0, rows)
    return Results(
        pipeline="offline-alignment",
        folder=run,
        parameters={},
        seconds=1.0,
        stages=[compared(number) for number in VARIANTS],
        outputs=outputs,
    )


def betas(named: dict[str, Dataset]) -> dict[str, object]:
    return {name: made.manifest.provenance.step["params"]["beta"] for name, made in named.items()}


@pytest.mark.parametrize("chosen", VARIANTS)
def test_what_is_named_plainly_is_the_chosen_variants(tmp_path: Path, chosen: int) -> None:
    results = swept(tmp_path, chosen)
    names = {number: "" if number == chosen else f"-{number}" for number in VARIANTS}
    assert betas(results.models) == {f"train{names[number]}": number for number in VARIANTS}
    assert results.datasets["select"].manifest.provenance.step["params"] == {"beta": chosen}
    assert results.metrics["evaluate"]["reward_gain"] == results.evaluation["reward_gain"] == chosen
    assert results.model == results.by_usual_name()["model"]
    assert results.model is not None
    assert f"-iteration-{chosen - 1}/" in str(results.model)


@pytest.mark.parametrize(("chosen", "read"), [(3, 2), (None, 0)])
def test_what_was_chosen_is_told_by_the_choice_and_the_chosen_ones_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: int | None, read: int
) -> None:
    results = swept(tmp_path, chosen)
    alone = replace(results, outputs=[output for output in results.outputs if not output.iteration])
    opened: list[str] = []

    def counted(text: bytes, where: str) -> Manifest:
        opened.append(where)
        return from_json(text, where)

    from_json = Manifest.from_json
    monkeypatch.setattr(Manifest, "from_json", counted)
    assert results.chosen == (chosen or 0)
    assert len(opened) == read
    assert alone.chosen == 0, "a run without a loop has no variants"
    assert len(opened) == read + (chosen is not None), "the choice, which may be one among rounds"


def test_without_a_chosen_variant_none_is_the_runs(tmp_path: Path) -> None:
    results = swept(tmp_path, None)
    assert results.model is None
    assert results.evaluation == {}
    assert betas(results.models) == {f"train-{number}": number for number in VARIANTS}
    assert set(results.by_usual_name()) == {
        f"{name}-{number}" for name in ("selected", "model", "evaluation") for number in VARIANTS
    }
    assert results.to_json()["model"] is None
    write_summary(results, tmp_path / "summary.html")
    assert "Aligned model" not in (tmp_path / "summary.html").read_text()


def test_a_folder_of_the_users_own_is_no_iteration(tmp_path: Path) -> None:
    results = swept(tmp_path / "dpo-iteration-4", 2)
    assert [output.iteration for output in results.outputs] == [*(n for n in VARIANTS for _ in MADE), 0]


def test_variants_are_no_rounds(tmp_path: Path) -> None:
    results = swept(tmp_path, 2)
    assert rounds_of(results) == []
    further = [replace(row, iteration=0) for row in results.stages]
    assert [line[0] for line in rounds_of(replace(results, stages=further))] == ["1", "2", "3"]


@pytest.mark.parametrize("chosen", [1, None])
def test_card_and_comparison_of_a_sweep_are_of_the_chosen_variant(tmp_path: Path, chosen: int | None) -> None:
    run = tmp_path / "runs" / "x"
    results = swept(run, chosen)
    (run / "logs" / "1").mkdir(parents=True)
    (run / "pipeline.yaml").write_text("")
    (run / "results.json").write_text(json.dumps(results.to_json()))
    info = read_run(run)
    assert info.model == results.model
    done = CliRunner().invoke(main, ["card", str(run)])
    assert done.exit_code == 0, done.output
    assert ("reward_gain" in done.output) == (chosen is not None)
    evaluation = ComparedRun(name="x", info=info)._last(EVALUATION)
    assert (evaluation and evaluation.manifest.provenance.step["params"]["beta"]) == chosen


def test_those_left_at_the_last_rung_are_named_by_their_place_in_the_run_file(tmp_path: Path) -> None:
    """The second and the third of three variants went on, and the third was chosen."""
    results, given = swept(tmp_path, 2), [{}, {"train": {"batch_size": 4}}, {"train": {"beta": 0.3}}]
    first = swept(tmp_path / "first", None)
    rung = [replace(output, task=f"{output.task}-rung-1") for output in first.outputs]
    last = [output for output in results.outputs if output.iteration != 3]
    texts = ["{}", '{"train":{"batch_size":4.0}}', '{"train":{"beta":0.3}}']
    for outputs, numbers in ((rung, (0, 1, 2)), (last, (1, 2))):
        for output in outputs:
            if output.task.startswith("evaluate") and (text := texts[numbers[output.iteration - 1]]) != "{}":
                output.metadata["variant"] = text
    halved = replace(results, outputs=[*rung, *last], parameters={"variants": given})
    assert halved.by_usual_name().keys() >= {"model", "model-2", *(f"model-rung-1-{n}" for n in (1, 2, 3))}
    assert "model-1" not in halved.by_usual_name()
    assert betas(halved.models)["train-2"] == 1, "the first of those that were left"
    (tmp_path / "pipeline.yaml").write_text("")
    (tmp_path / "parameters.yaml").write_text(json.dumps(halved.parameters))
    (tmp_path / "results.json").write_text(json.dumps(halved.to_json()))
    assert betas(read_results(read_run(tmp_path)).models) == betas(halved.models)
