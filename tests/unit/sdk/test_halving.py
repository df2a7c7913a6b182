"""Successive halving before it runs: its rungs, what a check refuses, and what an estimate counts."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from kubealign.checking import check
from kubealign.cli.main import main
from kubealign.cluster.outputs import StoredOutput, _evaluated
from kubealign.estimate.formulas import SHAPES
from kubealign.estimate.stages import Assumptions, StageEstimate, estimate
from kubealign.local.forecast import forecast
from kubealign.parameters import check_parameters
from kubealign.runfile import RunFile, read_run
from kubealign_pipelines.checking.run import check_run
from kubealign_pipelines.checking.rungs import MOST
from kubealign_pipelines.compiler import compile_pipeline
from kubealign_pipelines.halving import rungs_of
from kubealign_pipelines.offline_alignment import RULES
from kubealign_pipelines.resources import CompileSettings
from kubealign_pipelines.workflow_size import LIMIT, workflow_size
from support.compiled import compile_ir

GIVEN: dict[str, Any] = {
    "policy": "org/model",
    "sources": [{"name": "a", "uri": "org/data"}],
    "reward_functions": ["brevity"],
    "work": "gs://bucket/work",
}


def betas(number: int) -> list[dict[str, Any]]:
    return [{"train": {"beta": 0.01 * (1 + n)}} for n in range(number)]


def told(variants: object, halving: object, **given: object) -> list[str]:
    values = {**GIVEN, **given, "variants": variants, "halving": halving}
    report = check_run("offline_alignment", values, CompileSettings(), complete=False)
    return [f"{finding.name}: {finding.expected}" for finding in report.errors]


@settings(max_examples=100, deadline=None)
@given(variants=st.integers(1, 64), factor=st.integers(2, 10))
def test_rungs_drop_and_train_by_the_factor_until_fewer_than_it_are_left(variants: int, factor: int) -> None:
    rungs = rungs_of(variants, factor)
    assert rungs[0].variants == variants and rungs[-1].share == 1
    assert [rung.factor for rung in rungs] == [factor] * (len(rungs) - 1) + [0]
    for before, after in pairwise(rungs):
        assert after.variants == math.ceil(before.variants / factor) < before.variants
        assert after.share == pytest.approx(factor * before.share)
    assert rungs[-1].variants <= factor
    assert len(rungs) == 1 + math.floor(math.log(variants) / math.log(factor) + 1e-9)
    assert [rung.share for rung in rungs_of(variants, 0)] == [1.0]


def test_what_cannot_be_halved_is_refused_in_words() -> None:
    assert told(betas(4), 2) == []
    assert any("halving: one of 0, 2, 3" in text for text in told(betas(4), 1))
    assert any("halving: one of 0, 2, 3" in text for text in told(betas(4), True))
    assert any("halving: at most 2, the number of variants" in text for text in told(betas(2), 3))
    assert any("halving: 0 without variants" in text for text in told([], 3))
    in_evaluation = [{"evaluate": {"max_prompts": n}} for n in (50, 60, 70)]
    assert any(
        "halving: 0 where variants differ in evaluate alone" in text for text in told(in_evaluation, 2)
    )
    [text] = told(betas(20), 2)
    assert text.startswith(f"halving: at most {MOST} trainings of all rungs, not 20 + 10 + 5 + 3 + 2")
    assert any("none without a reward" in text for text in told(betas(4), 2, sample_n=0, reward_functions=[]))


def test_rungs_say_where_training_stops_and_nobody_else() -> None:
    [text] = told(betas(4), 2, train_options={"stop_after": 0.5})
    assert text.startswith("train_options.stop_after: none with halving")
    [text] = told([*betas(3), {"train": {"stop_after": 0.5}}], 2)
    assert text.startswith("variants[3].train.stop_after: none with halving")
    assert told([{"train": {"stop_after": 0.5}}, {}], 0) == []
    [text] = told(betas(4), 2, choose_options={"reduction_factor": 3})
    assert text.startswith("choose_options.reduction_factor: nothing here: halving says it")
    [text] = told(betas(4), 2, train_options={"max_steps": 3})
    assert text.startswith("train_options.max_steps: 0, or at least 4")
    assert told(betas(4), 2, train_options={"max_steps": 4}) == []


def test_checkpoints_need_a_place() -> None:
    values = {**GIVEN, "variants": betas(4), "halving": 2, "work": ""}

    def names(**how: Any) -> list[str]:
        return [f.name for f in check_run("offline_alignment", values, CompileSettings(), **how).errors]

    assert "work" in names()
    assert "work" not in names(complete=False)  # which may be given when the pipeline runs
    values.pop("work")
    assert "work" not in names(assumed={"work": "/some/where"})


@pytest.mark.parametrize(
    "more", [{"variants": betas(4), "halving": 2}, {"sample_n": {"from": 4, "to": 16}}], ids=str
)
def test_a_place_is_asked_for_before_a_run_is_submitted(more: dict[str, Any], tmp_path: Path) -> None:
    """A run on this machine has one by itself."""
    file = tmp_path / "run.yaml"
    without = {name: value for name, value in GIVEN.items() if name != "work"}
    for values, asked in ((GIVEN, 0), ({**GIVEN, "work": ""}, 1), (without, 1)):
        file.write_text(yaml.safe_dump({"pipeline": "offline_alignment", "parameters": {**values, **more}}))
        found = [one.expected for one in check(read_run([file])).errors if one.name == "work"]
        assert len(found) == asked and all(text.startswith("a URI, with") for text in found)
    assert not [
        one for one in check(read_run([file]), here=True, output=tmp_path).errors if one.name == "work"
    ]


def test_a_form_may_change_variants_but_not_the_number_of_rungs() -> None:
    shape = RULES.shape({**GIVEN, "variants": betas(4), "halving": 2})

    def in_pod(number: int) -> list[str]:
        values = {**GIVEN, "variants": betas(number)}
        report = check_run("offline_alignment", values, CompileSettings(), here=True, shape=shape)
        return [
            f"{f.name}: {f.expected}" for f in report.errors if f.name.startswith(("variants", "halving"))
        ]

    assert in_pod(4) == []
    assert any("with fewer no rung would drop any" in text for text in in_pod(3))
    assert any("at most 4, with which the pipeline was compiled" in text for text in in_pod(5))


def test_each_rung_has_a_loop_and_the_last_one_the_names_of_a_sweep(tmp_path: Path) -> None:
    given = {**GIVEN, "variants": [{"select": {"strategy": "random_pairs"}}, *betas(8)], "halving": 3}
    graph = compile_pipeline("offline_alignment", tmp_path / "p.yaml", parameters=given)
    loops = {name: task.executions(9) for name, task in graph.tasks.items() if task.each == "variants"}
    stages = ("select", "mix", "train", "evaluate")
    assert loops == {
        **{f"{stage}-rung-1": 9 for stage in stages},
        **{f"{stage}-rung-2": 3 for stage in stages},
        **dict.fromkeys(stages, 1),
    }
    trains = [graph.tasks[name].arguments["stop_after"].constant for name in ("train-rung-1", "train-rung-2")]
    assert trains == [pytest.approx(1 / 9), pytest.approx(1 / 3)]
    assert graph.tasks["train"].arguments["stop_after"].constant == 1
    once = ("sample", "rewards", "logprobs", "choose-rung-1", "choose-rung-2", "choose")
    assert all(graph.tasks[name].each is None for name in once)


@pytest.mark.parametrize(("number", "factor"), [(20, 3), (20, 4), (17, 2), (24, 4)])
def test_as_many_trainings_as_are_allowed_fit_into_a_run(tmp_path: Path, number: int, factor: int) -> None:
    variants = [{"select": {"strategy": "random_pairs"}}, *betas(number - 1)]
    allowed = not told(variants, factor)
    assert allowed == (sum(rung.variants for rung in rungs_of(number, factor)) <= MOST)
    if allowed:
        given = {**GIVEN, "variants": variants, "halving": factor}
        spec, _ = compile_ir(tmp_path, "offline_alignment", parameters=given)
        tasks = spec["root"]["dag"]["tasks"].values()
        inputs = [task.get("inputs", {}).get("parameters", {}) for task in tasks]
        [most] = {int(one["max_chunks"]["runtimeValue"]["constant"]) for one in inputs if "max_chunks" in one}
        assert workflow_size(spec, most, variants=number).total <= LIMIT


def hours(**given: object) -> dict[str, StageEstimate]:
    run = RunFile(parameters={**GIVEN, "logprobs_order": "before", **given})
    return {stage.title: stage for stage in estimate(run, SHAPES["llama-8b"], Assumptions())}


def test_an_estimate_counts_each_rung_by_its_share_and_its_variants() -> None:
    alone = hours()
    halved = hours(variants=betas(9), halving=3)
    whole, compared = alone["train"].hours, alone["evaluate"].hours
    assert halved["train rung 1 ×9"].hours == pytest.approx(9 / 9 * whole)
    assert halved["train rung 2 ×3"].hours == pytest.approx(3 * (1 / 3 - 1 / 9) * whole)
    assert halved["train"].hours == pytest.approx((1 - 1 / 3) * whole)
    of_rungs = [halved[f"evaluate{name}"].hours for name in (" rung 1 ×9", " rung 2 ×3", "")]
    assert of_rungs == pytest.approx([9 * compared, 3 * compared, compared])
    assert halved["sample"].hours == alone["sample"].hours
    part = hours(variants=betas(9), halving=3, sample_share=0.5)
    shares = [part[title].hours / halved[title].hours for title in ("train rung 1 ×9", "train")]
    assert shares[0] < 1 and shares == pytest.approx([shares[0]] * 2), "a rung is no round"
    assert hours(train_options={"stop_after": 0.25})["train"].hours == pytest.approx(whole / 4)


def test_a_forecast_expects_no_variant_that_is_dropped(tmp_path: Path) -> None:
    given = {**GIVEN, "variants": betas(4), "halving": 2}
    graph = compile_pipeline("offline_alignment", tmp_path / "p.yaml", parameters=given)
    expected = forecast(graph, check_parameters(graph, given))._expected
    names = ("train-rung-1", "train-rung-2", "train", "choose-rung-1")
    assert [expected[name].executions for name in names] == [4, 2, 1, 1]


def test_the_option_is_a_parameter_and_told_by_its_own_name(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"pipeline": "offline_alignment", "parameters": GIVEN}))
    run = read_run([file], grids=["train_beta=0.1,0.2,0.3"], halving=3).usable()
    assert run.parameters["halving"] == 3
    words = ["compile", "-f", str(file), "--grid", "train_beta=0.1,0.2,0.3", "-o", str(tmp_path / "p.yaml")]
    assert CliRunner().invoke(main, [*words, "--halving", "3"]).exit_code == 0
    done = CliRunner().invoke(main, [*words, "--halving", "1"])
    assert done.exit_code == 2
    assert "--halving 1" in done.output and "one of 0, 2, 3" in done.output


def test_the_model_of_a_run_is_that_of_its_last_rung(tmp_path: Path) -> None:
    given = {**GIVEN, "variants": betas(4), "halving": 2}
    spec, _ = compile_ir(tmp_path, "offline_alignment", parameters=given)
    one = StoredOutput(task="train", execution="1", name="model", uri="gs://bucket/1", objects=())
    models = [replace(one, task=task) for task in ("train-rung-1", "train-rung-2", "train")]
    assert _evaluated(spec, models) == [models[-1]]
