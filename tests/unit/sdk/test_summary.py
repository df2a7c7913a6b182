"""What a run is told as: notes on cut completions, reuse, numbers."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kubealign.cli.console import format_number, number_texts, reuse_text, stage_table
from kubealign.local.results import Output, Results, StageRow, collect
from kubealign.local.summary import notes_on, verdict, write_summary
from kubealign.local.watcher import TaskRun, Watcher
from kubealign_components import gpus
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import EVALUATION, MODEL, new_completion
from kubealign_pipelines.compiler import compile_pipeline
from support.datasets import MakeDataset
from support.pages import Page
from support.tiny import prompt_row


def stage(name: str, **counts: int) -> StageRow:
    return StageRow(
        stage=name,
        title=name.replace("_", " "),
        rows_in=10,
        rows_out=8,
        dropped={"prompt_too_long": 2},
        counts=counts,
        numbers={"gain_<b>": 0.123456},
        seconds=75.0,
    )


def results(*stages: StageRow) -> Results:
    return Results(
        pipeline="offline-alignment",
        folder=Path("/runs/one"),
        parameters={"policy": "<script>alert(1)</script>"},
        seconds=3725.0,
        stages=list(stages),
    )


@pytest.mark.parametrize(
    ("dropped", "kept", "told"),
    [(0, 0, []), (3, 0, ["biases"]), (0, 1, []), (0, 40, ["unfinished"]), (3, 40, ["biases", "unfinished"])],
)
def test_cut_completions_are_told_when_they_matter(dropped: int, kept: int, told: list[str]) -> None:
    row = stage("sample", sampled_completions=100, truncated_dropped=dropped, truncated_kept=kept)
    notes = notes_on(results(row))
    assert len(notes) == len(told)
    assert all(word in note for word, note in zip(told, notes))


def test_reuse_is_told_by_stage_and_only_where_there_was_some() -> None:
    reused = stage("sample", chunks=4, chunks_reused=3, rows_reused=6)
    fresh = stage("rewards", chunks=4, chunks_reused=0, rows_reused=0)
    assert reuse_text(results(reused, fresh)) == (
        "Reused from earlier runs: sample 3 of 4 chunks (6 of 8 rows)."
    )
    assert reuse_text(results(fresh, stage("mix"))) == ""


def test_the_last_manifest_is_opened_once(make_dataset: MakeDataset) -> None:
    made = make_dataset([prompt_row("p", ["a"])])
    output = Output(
        task="mix", title="mix", output="dataset", type="system.Dataset", path=Path(made.uri), metadata={}
    )
    run = replace(results(), outputs=[output])
    assert run.last is not None
    shutil.rmtree(made.uri)
    assert run.last.fingerprint == made.manifest.fingerprint


def test_the_table_and_the_page_hold_the_counts(tmp_path: Path) -> None:
    run = results(stage("filter"), stage("evaluate"))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(stage_table(run))
    text = console.export_text()
    assert "1 h 02 min" in text
    assert "2 prompt too long" in text
    write_summary(run, tmp_path / "summary.html")
    page = (tmp_path / "summary.html").read_text()
    assert "<script>" not in page
    assert "gain &lt;b&gt;" in page
    assert "0.1235" in page


def test_a_price_tells_what_the_run_and_its_stages_cost_and_nothing_else_does(tmp_path: Path) -> None:
    run = results(stage("sample"))
    write_summary(run, tmp_path / "plain.html")
    assert "ost" not in Page((tmp_path / "plain.html").read_text()).text.split("Stages")[0]
    assert "cost" not in run.to_json()
    priced = replace(run, price=2.4)
    write_summary(priced, tmp_path / "priced.html")
    page = Page((tmp_path / "priced.html").read_text())
    assert "Cost: 2.48, at 2.4 for an hour of this machine" in page.text  # 3,725 seconds
    assert ["sample", "10", "8", "", "2 prompt too long", "75.0", "0.05"] in page.rows
    assert priced.to_json()["cost"] == pytest.approx(2.483333)


@pytest.mark.parametrize("inside", [True, False])
def test_the_page_of_a_run_that_moves_still_leads_to_its_model(
    make_dataset: MakeDataset, tmp_path: Path, inside: bool
) -> None:
    made = Path(make_dataset([], MODEL, stage="train").uri)
    model = Output(task="train", title="train", output="model", type="system.Model", path=made, metadata={})
    folder = made.parent if inside else tmp_path / "another"
    run = replace(results(stage("train")), folder=folder, outputs=[model])
    write_summary(run, tmp_path / "summary.html")
    said = made.name if inside else str(made)
    assert f"Aligned model: <code>{said}</code>" in (tmp_path / "summary.html").read_text()


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (12345, "12,345"), (2.0, "2"), (0.000123456, "0.0001235"), ("x", "x")]
)
def test_numbers(value: object, text: str) -> None:
    assert format_number(value) == text


def test_an_interval_stands_beside_its_number() -> None:
    numbers = {"gain": 0.53164, "gain_low": 0.4487, "gain_high": 0.61321, "below_low": 0.1, "prompts": 38.0}
    assert number_texts(numbers) == {"gain": "0.5316 [0.4487, 0.6132]", "below_low": "0.1", "prompts": "38"}


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.1, 0.3, "rose"), (-0.3, -0.1, "fell"), (-0.1, 0.1, "did not change measurably")],
)
def test_the_verdict_goes_by_the_interval(low: float, high: float, word: str) -> None:
    gain = (low + high) / 2
    numbers = {
        "prompts": 20.0,
        "reward_reference": 0.5,
        "reward_aligned": 0.5 + gain,
        "reward_gain": gain,
        "reward_gain_low": low,
        "reward_gain_high": high,
        "length_ratio": 1.25,
    }
    assert word in verdict(numbers) and "1.25 times the length" in verdict(numbers)
    assert "KL of 3 nats" in verdict(numbers | {"kl_per_completion": 3.0})
    assert verdict({"prompts": 20.0}) == ""


def test_the_page_of_a_run_shows_what_changed_and_leads_to_every_stage(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    """Rows, a stage's own page, and the lineage; the graph is that of the recipe."""

    def side(reward: float) -> list[dict[str, object]]:
        return [new_completion(messages="[]", reward=reward, num_tokens=5, finish_reason="stop")]

    prompts = make_dataset([prompt_row("hello", ["fine"])], stage="import_prompts")
    compared = [
        {"prompt_id": str(i), "messages": "[]", "reference": side(0.0), "aligned": side(1.0)}
        | {"reward_difference": 1.0}
        for i in range(4)
    ]
    evaluation = make_dataset(compared, EVALUATION, stage="evaluate", inputs={"rewarded": prompts})
    (tmp_path / "report").write_text("<!doctype html>the report")
    (tmp_path / "rows").write_text("<!doctype html>hello")
    kinds = [("import-prompts", "dataset", "system.Dataset", Path(prompts.uri))]
    kinds += [("import-prompts", "report", "system.HTML", tmp_path / "rows")]
    kinds += [("evaluate", "dataset", "system.Dataset", Path(evaluation.uri))]
    kinds += [("evaluate", "report", "system.HTML", tmp_path / "report")]
    run = replace(
        results(stage("import_prompts"), stage("evaluate")),
        outputs=[
            Output(task=task, title=task.replace("-", " "), output=name, type=kind, path=path, metadata={})
            for task, name, kind, path in kinds
        ],
    )
    write_summary(run, tmp_path / "summary.html")
    text = (tmp_path / "summary.html").read_text()
    page = Page(text)
    assert page.edges == [(prompts.manifest.fingerprint, evaluation.manifest.fingerprint)]
    assert {"Rewards before and after", "Lengths before and after"} <= set(page.charts)
    assert page.loaded == [] and "10 to 8 rows" in page.text
    links = re.findall(r'<li><a href="([^"]+)">', text)
    assert links == [
        "reports/01-import-prompts.html",
        "reports/02-evaluate.html",
        "reports/03-lineage.html",
    ]
    assert all((tmp_path / link).read_text().startswith("<!doctype html>") for link in links)
    assert (tmp_path / links[0]).read_text().endswith("hello")
    assert links[:2] == re.findall(r'<a href="(reports/[^"]+)"[^>]*>\s*<rect', text)
    assert (tmp_path / links[1]).read_text().endswith("the report")


def test_the_page_says_what_was_rewarded_and_what_the_gain_may_be_instead(tmp_path: Path) -> None:
    numbers = {"length_ratio": 0.3, "length_reference": 100.0, "length_aligned": 30.0}
    numbers |= {"reward_gain": 0.5, "reward_gain_low": 0.4, "reward_gain_high": 0.6, "prompts": 9.0}
    numbers |= {
        "reward_reference": 0.0,
        "reward_aligned": 0.5,
        "gain_by_length": 0.4,
        "gain_by_length_low": 0.3,
        "gain_by_length_high": 0.55,
    }
    numbers |= {f"truncated_{side}": 0.0 for side in ("reference", "aligned")}
    compared = replace(stage("evaluate"), numbers=numbers)
    function = {"function": "brevity", "about": "short <i>texts</i>"}
    run = replace(results(compared), parameters={"reward_functions": [function], "reward_model": ""})
    write_summary(run, tmp_path / "summary.html")
    text = Page((tmp_path / "summary.html").read_text()).text
    assert "The reward: short <i>texts</i>. How it is computed" in text
    assert text.index("collapse to short answers") < text.index("may be one of length") < text.index("Stages")
    assert "The reward" not in Page(_page_of(results(stage("evaluate")), tmp_path)).text


def _page_of(run: Results, folder: Path) -> str:
    write_summary(run, folder / "summary.html")
    return (folder / "summary.html").read_text()


def test_settings_that_differ_from_the_defaults_are_told_first(tmp_path: Path) -> None:
    parameters = {"seed": 1, "train_beta": 0.1, "policy": "p", "options": {"a": [1]}}
    run = replace(results(), parameters=parameters, defaults={"seed": 0, "train_beta": 0.1, "options": {}})
    write_summary(run, tmp_path / "summary.html")
    text = (tmp_path / "summary.html").read_text()
    rows = Page(text).rows
    changed = [["options", '{"a": [1]}', "{}"], ["policy", '"p"', "none"], ["seed", "1", "0"]]
    start = rows.index(["parameter", "value", "default"]) + 1
    assert rows[start : start + 3] == changed
    assert rows[start + 3] == ["parameter", "value"] and ["train_beta", "0.1"] in rows
    assert "processor cores" in text and "GiB" in text


def test_stages_that_stand_twice_have_their_own_names_and_times(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    """Two filters hours apart are no one stage; the workers of a fan-out and what merges them are."""
    graph = compile_pipeline("salmon", tmp_path / "pipeline.yaml", None, {})
    watcher = Watcher(tmp_path, on_event=lambda run: None, on_line=lambda run, line: None)
    spans = {"filter": (0.0, 5.0), "sample": (6.0, 16.0), "merge-sample": (16.0, 18.0)}
    spans |= {"filter-rl-prompts": (100.0, 107.0)}
    for task, (started, ended) in spans.items():
        watcher.runs.append(
            TaskRun(task=task, number=1, started=started, ended=ended, ok=True, log=tmp_path / task)
        )
        if task != "sample":
            shutil.copytree(make_dataset([], stage="filter").uri, tmp_path / "run" / task / "dataset")
            (tmp_path / "run" / task / "executor_output.json").write_text("{}")
    results = collect(graph, tmp_path, tmp_path / "run", watcher, {}, 107.0)
    assert [(row.title, row.seconds) for row in results.stages] == [
        ("filter", 5.0),
        ("sample", 12.0),
        ("filter RL prompts", 7.0),
    ]


def test_a_driver_that_hangs_costs_the_page_nothing_but_its_number_of_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(gpus, "_PATIENCE", 0.1)
    write_summary(results(stage("sample")), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "processor cores" in page and "GPUs" not in page


@pytest.mark.parametrize("numbers", [{}, {"reward_gain": 0.5}, {"reward_gain": 0.5, "prompts": 8.0}])
def test_half_an_evaluation_has_no_verdict(numbers: dict[str, float]) -> None:
    assert verdict(numbers) == ""
