"""A range of draws as a run file asks for it: what is refused, what is asked, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kubealign.estimate.formulas import SHAPES as MODELS
from kubealign.estimate.stages import Assumptions, estimate
from kubealign.runfile import RunFile
from kubealign_components.errors import ConfigError
from kubealign_pipelines.checking.run import check_run
from kubealign_pipelines.draws import draws_of
from kubealign_pipelines.offline_alignment import RULES
from kubealign_pipelines.resources import CompileSettings
from support.compiled import compile_ir

REWARD = {"reward_functions": ["brevity"]}
RANGE = {"from": 4, "to": 16}


def told(tiny_model: Path, folder: Path, shape: dict[str, Any] | None = None, **values: Any) -> list[str]:
    """What a check on this machine tells that stops a run."""
    source = folder / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(200)))
    given: dict[str, object] = {
        "policy": str(tiny_model),
        "sources": [{"uri": str(source)}],
        "sample_engine": "transformers",
        "work": str(folder / "work"),
    }
    values = {**given, **REWARD, "sample_max_new_tokens": 8, **values}
    report = check_run("offline_alignment", values, CompileSettings(), here=True, shape=shape)
    return [f"{one.path[1]}: {one.expected}" for one in report.errors]


@pytest.mark.parametrize("more", [{}, {"same": 0.9, "within": 0.1}, {"from": 4.0, "to": 16.0}], ids=str)
def test_a_range_is_checked_whole(more: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    assert told(tiny_model, tmp_path, sample_n=RANGE | more) == []
    assert told(tiny_model, tmp_path, sample_n=RANGE | more, logprobs_order="before") == []


def test_the_first_task_of_a_run_knows_the_range_from_the_shape(tiny_model: Path, tmp_path: Path) -> None:
    shape = RULES.shape({"sample_n": RANGE, **REWARD})
    assert told(tiny_model, tmp_path, shape=shape) == []
    refused = told(tiny_model, tmp_path, shape=shape, select_strategy="random_pairs")
    assert any("with a range for sample_n" in one for one in refused), refused


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"sample_n": {"from": 8, "to": 4}}, "sample_n: from fewer to more"),
        ({"sample_n": [4, 16]}, "sample_n: a whole number"),
        ({"sample_n": RANGE, "select_strategy": "random_pairs"}, "select_strategy: best_worst, with a range"),
        ({"sample_n": RANGE, "select_pairs_per_prompt": 2}, "select_pairs_per_prompt: 1, with a range for"),
        ({"sample_n": RANGE, "select_pool": "both"}, "select_pool: 'reference', with a range for sample_n"),
        (
            {"sample_n": RANGE, "select_rewards": "length_controlled"},
            "select_rewards: 'as_given', with a range",
        ),
        ({"sample_n": RANGE, "select_min_references": 5}, "select_min_references: 4 or less: sample_n draws"),
        (
            {"sample_n": RANGE, "sample_options": {"sampling": {"n": 4}}},
            "sample_options: none beside sample_n",
        ),
        ({"sample_n": RANGE, "sample_share": 0.5}, "sample_share: 1 with a range for sample_n"),
        ({"sample_n": RANGE, "evaluate_temperature": 0.5}, "evaluate_temperature: 1.0, with which"),
    ],
    ids=str,
)
def test_what_cannot_be_done_with_a_range_is_refused(
    values: dict[str, Any], expected: str, tiny_model: Path, tmp_path: Path
) -> None:
    refused = told(tiny_model, tmp_path, **values)
    assert [one for one in refused if one.startswith(expected)], refused
    assert len(refused) == len(set(refused))


def test_a_range_needs_rewards_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    judged = {"reward_functions": [], "rank_judge": str(tiny_model), "sample_n": RANGE}
    [refused] = told(tiny_model, tmp_path, **judged)
    assert refused.startswith("sample_n: a number with rank_judge: a judge compares the completions")
    unrewarded = {"reward_functions": [], "select_strategy": "labels", "sample_n": RANGE}
    assert any(
        one.startswith("sample_n: a number, without a range: what settles a prompt is its rewards")
        for one in told(tiny_model, tmp_path, **unrewarded)
    )


def test_each_round_draws_of_its_own_policy(tiny_model: Path, tmp_path: Path) -> None:
    both = {"sample_n": {"from": 4, "to": 8}, "rounds": 2}
    assert told(tiny_model, tmp_path, **both) == []
    spec, _ = compile_ir(tmp_path, "offline_alignment", parameters={**REWARD, **both})
    tasks = spec["root"]["dag"]["tasks"]
    inputs = {name: task.get("inputs", {}).get("artifacts", {}) for name, task in tasks.items()}
    producers = {
        name: {role: one["taskOutputArtifact"]["producerTask"] for role, one in own.items()}
        for name, own in inputs.items()
        if all("taskOutputArtifact" in one for one in own.values())
    }
    assert producers["draw-more-of-8-round-2"] == {
        "prompts": "next-round-2",
        "rewarded": "merge-rewards-round-2",
    }
    assert producers["join-rounds-2"] == {"earlier": "join-draws-of-8", "later": "join-draws-of-8-round-2"}
    assert producers["evaluate-round-2"]["rewarded"] == "merge-rewards", "the first policy's first draws"


def test_a_sweep_draws_once_for_variants_that_all_take_the_best_and_the_worst(
    tiny_model: Path, tmp_path: Path
) -> None:
    variants: list[dict[str, Any]] = [{"train": {"beta": 0.1}}, {"select": {"min_quantile_gap": 0.5}}]
    assert told(tiny_model, tmp_path, sample_n=RANGE, variants=variants) == []
    variants[0]["select"] = {"strategy": "random_pairs"}
    refused = told(tiny_model, tmp_path, sample_n=RANGE, variants=variants)
    assert any("best_worst, with a range for sample_n" in one for one in refused), refused
    spec, _ = compile_ir(
        tmp_path, "offline_alignment", parameters={"sample_n": RANGE, **REWARD, "variants": variants}
    )
    tasks = spec["root"]["dag"]["tasks"]
    assert {"join-draws-of-16", "merge-logprobs", "choose"} <= tasks.keys(), "all before the loop"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"from": 4, "to": 4}, "from fewer to more, 8 times as many at most, such as {from: 4, to: 16}"),
        ({"from": 8, "to": 4}, "from fewer to more"),
        ({"from": 2, "to": 17}, "from fewer to more, 8 times as many at most"),
        ({"from": 1, "to": 4}, "from 2 or more"),
        ({"from": 4}, "a whole number for to"),
        ({"from": "4", "to": 8}, "a whole number for from"),
        ({"from": True, "to": 8}, "a whole number for from"),
        ({"from": 4.5, "to": 8}, "a whole number for from"),
        ({}, "a whole number for from"),
        (RANGE | {"form": 1}, "a range of from, to, same, within; did you mean from?"),
        (RANGE | {"same": 1}, "same above 0 and below 1"),
        (RANGE | {"same": True}, "same above 0 and below 1"),
        (RANGE | {"within": -1}, "within 0 or more"),
    ],
    ids=str,
)
def test_a_range_that_is_none_is_refused(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        draws_of(given)
    assert refused.value.field == "sample_n" and refused.value.expected.startswith(expected)


def test_draws_double_until_there_are_as_many_as_asked() -> None:
    given = {(4, 16): [8, 16], (4, 10): [8, 10], (2, 16): [4, 8, 16], (3, 4): [4]}
    for (first, to), further in given.items():
        draws = draws_of({"from": first, "to": to})
        assert draws is not None and draws.further == further
    assert draws_of(8) is None and draws_of(None) is None


def test_both_policies_are_compared_by_the_first_draws_alone(tmp_path: Path) -> None:
    """Of prompts that draws end for by what they brought, the mean is biased."""
    spec, _ = compile_ir(tmp_path, "offline_alignment", parameters={"sample_n": RANGE, **REWARD})
    evaluate = spec["root"]["dag"]["tasks"]["evaluate"]["inputs"]
    rewarded = evaluate["artifacts"]["rewarded"]["taskOutputArtifact"]
    assert rewarded["producerTask"] == "merge-rewards"
    assert evaluate["parameters"]["n"]["runtimeValue"]["constant"] == RANGE["from"]
    assert "sample_n" not in spec["root"]["inputDefinitions"]["parameters"]


def test_the_estimate_counts_no_draw_twice() -> None:
    parameters = {"policy": "p", "sources": [{"uri": "s"}], "reward_model": "r"}
    tokens: dict[str, dict[str, float]] = {}
    for name, n, rounds in (("all", 16, 1), ("range", RANGE, 1), ("rounds", RANGE, 2)):
        stages = estimate(
            RunFile(parameters={**parameters, "sample_n": n, "rounds": rounds}),
            MODELS["smollm2-135m"],
            Assumptions(),
        )
        tokens[name] = {
            kind: sum(one.tokens.get(kind, 0.0) for one in stages if one.stage == stage)
            for stage, kind in (("sample", "sample"), ("rewards", "score"))
        }
    assert tokens["range"]["sample"] == tokens["all"]["sample"]
    prompts = 2 * Assumptions().rows * Assumptions().prompt_tokens  # read once more at each further draw
    assert tokens["range"]["score"] == pytest.approx(tokens["all"]["score"] + prompts)
    assert tokens["rounds"] == {kind: 2 * count for kind, count in tokens["range"].items()}
