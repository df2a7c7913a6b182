"""Rounds as a run file asks for them: what is refused, what they cost, and that one is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kubealign.estimate.formulas import SHAPES as MODELS
from kubealign.estimate.stages import Assumptions, estimate
from kubealign.runfile import RunFile
from kubealign_pipelines.checking.run import check_run
from kubealign_pipelines.resources import CompileSettings
from support.compiled import compile_ir

REWARD = {"reward_functions": ["brevity"]}


def told(tiny_model: Path, folder: Path, **values: Any) -> list[str]:
    """What a check on this machine tells that stops a run."""
    source = folder / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(200)))
    given: dict[str, object] = {
        "policy": str(tiny_model),
        "sources": [{"uri": str(source)}],
        "sample_engine": "transformers",
    }
    given["work"] = str(folder / "work")
    values = {**given, **REWARD, "sample_max_new_tokens": 8, **values}
    return [
        f"{one.path[1]}: {one.expected}"
        for one in check_run("offline_alignment", values, CompileSettings(), here=True).errors
    ]


def test_two_rounds_are_checked_whole(tiny_model: Path, tmp_path: Path) -> None:
    assert told(tiny_model, tmp_path, rounds=2) == []
    assert told(tiny_model, tmp_path, rounds=2, rounds_reference="last") == []
    assert told(tiny_model, tmp_path, rounds=3, rounds_stop="no_gain", choose_max_kl=20) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rounds": 0}, "rounds: one of 1, 2, 3, 4, fixed when the pipeline is compiled"),
        ({"rounds": 5}, "rounds: one of 1, 2, 3, 4, fixed when the pipeline is compiled"),
        ({"rounds": True}, "rounds: one of 1, 2, 3, 4, fixed when the pipeline is compiled"),
        ({"rounds": "two"}, "rounds: one of 1, 2, 3, 4, fixed when the pipeline is compiled"),
        ({"round": 2}, "round: a parameter of offline-alignment; did you mean rounds?"),
        ({"rounds": 2, "rounds_reference": "frist"}, "rounds_reference: one of first, last, fixed when"),
        ({"rounds_stop": "no_gain"}, "rounds_stop: never with one of rounds"),
        ({"rounds": 2, "rounds_stop": True}, "rounds_stop: one of never, no_gain, fixed when"),
        ({"rounds": 2, "sample_n": 0}, "rounds: 1 without a selection among rewarded samples"),
        ({"rounds": 3, "evaluate_min_gain": 0.0}, "evaluate_min_gain: none with several rounds"),
        ({"rounds": 2, "evaluate_require": ["gain"]}, "evaluate_require: none with several rounds"),
        (
            {"rounds": 2, "benchmark_tasks": ["arc_easy"], "benchmark_max_drop": {"arc_easy": 0.02}},
            "benchmark_max_drop: none with several rounds",
        ),
        (
            {"rounds": 2, "rounds_stop": "no_gain", "choose_max_kl": 9, "evaluate_kl_prompts": 0},
            "evaluate_kl_prompts: 1 or more, as choose_max_kl asks for the KL",
        ),
        ({"rounds": 2, "sample_share": 0}, "sample_share: a share above 0, at most 1"),
        (
            {"rounds": 2, "sample_share": 0.5, "select_strategy": "all", "train_objective": "qrpo"},
            "sample_share: 1 with train_objective qrpo",
        ),
        ({"rounds": 2, "select_strategy": "labels"}, "rounds: 1 without a selection among rewarded samples"),
    ],
    ids=str,
)
def test_what_cannot_be_done_in_rounds_is_refused(
    values: dict[str, Any], expected: str, tiny_model: Path, tmp_path: Path
) -> None:
    refused = told(tiny_model, tmp_path, **values)
    assert [one for one in refused if one.startswith(expected)], refused


def test_a_judge_is_refused_in_rounds_and_nothing_else_is_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    judged = {"reward_functions": [], "rank_judge": str(tiny_model), "rounds": 2}
    assert told(tiny_model, tmp_path, **judged) == ["rounds: 1 with rank_judge: rounds need a reward"]


def test_one_round_is_the_pipeline_as_it_is(tmp_path: Path) -> None:
    one = {"rounds": 1, "rounds_reference": "first"}
    assert compile_ir(tmp_path / "one", "offline_alignment", parameters=one) == compile_ir(
        tmp_path / "none", "offline_alignment"
    )


def test_rounds_that_may_end_have_the_stages_of_those_that_do_not_and_a_choice(tmp_path: Path) -> None:
    parameters = {"rounds": 3, "rounds_stop": "no_gain"}
    spec, _ = compile_ir(tmp_path / "may", "offline_alignment", parameters=parameters)
    other, _ = compile_ir(tmp_path / "never", "offline_alignment", parameters={"rounds": 3})
    tasks, never = (one["root"]["dag"]["tasks"] for one in (spec, other))
    assert tasks.keys() - never.keys() == {"choose"}
    assert not any(
        "triggerPolicy" in task and "condition" in task["triggerPolicy"] for task in tasks.values()
    )
    compared = {
        name: given["taskOutputArtifact"]["producerTask"]
        for name, given in tasks["choose"]["inputs"]["artifacts"].items()
    }
    assert compared == {
        "round_1": "evaluate",
        "round_2": "evaluate-round-2",
        "round_3": "evaluate-round-3",
    }
    assert (
        tasks["next-round-3"]["inputs"]["artifacts"]["earlier"]["taskOutputArtifact"]["producerTask"]
        == "evaluate"
    )
    assert "earlier" not in tasks["next-round-2"]["inputs"]["artifacts"]


def test_a_second_round_near_the_first_policy_scores_as_the_first_did(tmp_path: Path) -> None:
    """By the same models, so that what was scored is found; near the last one by that which it starts at."""
    for reference, found in (("first", True), ("last", False)):
        parameters = {"rounds": 2, "rounds_reference": reference}
        spec, _ = compile_ir(tmp_path, "offline_alignment", parameters=parameters)
        inner = [
            component["dag"]["tasks"]
            for component in spec["components"].values()
            if any(name.startswith("logprobs") for name in component.get("dag", {}).get("tasks", {}))
        ]
        asked = [task["inputs"]["parameters"] for tasks in inner for task in tasks.values()]
        models = [
            {name: one[name]["componentInputParameter"] for name in ("policy", "reference")} for one in asked
        ]
        assert len(models) == 2
        assert (models[0] == models[1]) is found


def hours(**values: Any) -> dict[str, float]:
    """GPU-hours of the tasks of a run, by their titles."""
    parameters = {"policy": "p", "sources": [{"uri": "s"}], **REWARD, **values}
    stages = estimate(RunFile(parameters=parameters), MODELS["smollm2-135m"], Assumptions())
    return {stage.title: stage.hours for stage in stages}


def test_the_estimate_tells_every_round() -> None:
    one, two = hours(), hours(rounds=2)
    assert "sample round 2" in two.keys() - one.keys()
    assert sum(two.values()) == pytest.approx(2 * sum(one.values()))


def test_the_estimate_tells_what_a_share_of_the_prompts_saves() -> None:
    whole = hours(rounds=3)
    third = hours(rounds=3, sample_share=1 / 3, validation_fraction=0.1)
    for number, about in ((1, ""), (2, " round 2"), (3, " round 3")):
        asked = {"sample": 1, "train": number, "evaluate": 3}
        for stage, thirds in asked.items():
            share = thirds / 3 + (1 - thirds / 3) * 0.1
            assert third[f"{stage}{about}"] == pytest.approx(share * whole[f"{stage}{about}"])
