"""Reward functions at second 0: are they there, do they take their settings, what do they say of a row."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from kubealign_components.config import Path
from kubealign_components.engines.judge import JudgeSpec, judging_principles
from kubealign_components.engines.judging_functions import check_principle
from kubealign_components.engines.reward_functions import LoadedFunction, RewardFunctionSpec
from kubealign_components.engines.reward_input import Refused, RewardInput
from kubealign_components.engines.rewards import flatten_text
from kubealign_components.errors import ConfigError, KubeAlignError
from kubealign_components.json_types import JsonObject
from kubealign_pipelines.checking.findings import Finding, error_at
from kubealign_pipelines.checking.reach import PATIENCE
from kubealign_pipelines.checking.stages import REWARDS, Checked, Stage, positions

ROWS = 3
"""Rows that each function is called on."""
_ANSWER = [{"role": "assistant", "content": "It is 42."}]


def check_functions(checked: Checked, rows: Sequence[JsonObject]) -> Iterator[Finding]:
    """Findings on the reward functions of a run.

    Args:
        checked: the settings.
        rows: of the prompts, as imported; a row made up where there are none.
    """
    inputs = [_input(row) for row in rows[:ROWS]] or [_made_up()]
    for stage in checked.stages:
        yield from _judging(stage)
        for prefix, specs in _functions(stage):
            for position, spec in zip(positions(stage, prefix, specs), specs):
                yield from _check(stage, (*prefix, position), spec, inputs)


def _functions(stage: Stage) -> Iterator[tuple[tuple[str, ...], Sequence[RewardFunctionSpec]]]:
    """Where ``stage`` has reward functions, and which."""
    yield ("functions",), getattr(stage.config, "functions", ())
    for name in REWARDS:
        reward = getattr(stage.config, name, None)
        if reward is not None:
            yield (name, "functions"), reward.functions
    judge = getattr(stage.config, "judge", None)
    if isinstance(judge, JudgeSpec):
        yield ("judge", "functions"), judge.functions


def _judging(stage: Stage) -> Iterator[Finding]:
    """Findings on functions that judge by a principle that there is none of, or that has one already."""
    own = getattr(stage.config, "judge", None)
    spec, prefix = (
        (own, ("judge", "functions")) if isinstance(own, JudgeSpec) else (stage.config, ("functions",))
    )
    if not isinstance(spec, JudgeSpec) or not spec.functions:
        return
    try:
        names = judging_principles(spec).names
    except KubeAlignError:  # of which the set itself is to be told
        return
    for position, at in enumerate(positions(stage, prefix, spec.functions)):
        try:
            check_principle(position, spec.functions, names)
        except ConfigError as error:
            yield error_at(stage.path((*prefix, at, "principle")), error.value, error.expected)


def _check(
    stage: Stage, setting: Path, spec: RewardFunctionSpec, inputs: Sequence[RewardInput]
) -> Iterator[Finding]:
    path = stage.path(setting)
    try:
        function = LoadedFunction(replace(spec, seconds=min(spec.seconds, PATIENCE)))
    except ConfigError as error:
        at = stage.path((*setting, "settings", error.field)) if error.field in spec.settings else path
        yield error_at(at, error.value, error.expected)
        return
    try:
        # What asks a server is only called where the run is: this machine may not reach it.
        for item in inputs if spec.at_once == 1 else ():
            with contextlib.suppress(Refused):
                function(item)
    except KubeAlignError as error:
        text = "a function that takes a RewardInput and returns a number; on a sample row it failed"
        yield error_at(path, spec.function, f"{text}: {str(error).partition('; its input')[0]}")
    finally:
        function.close()


def _input(row: JsonObject) -> RewardInput:
    completions = row.get("completions") or ()
    messages = json.loads(completions[0]["messages"]) if completions else _ANSWER
    return RewardInput(
        messages=json.loads(row["messages"]),
        completion=messages,
        text=flatten_text(messages),
        answers=list(row.get("answers") or ()),
        tools=json.loads(row["tools"]) if row.get("tools") else None,
        metadata=json.loads(row["metadata"]) if row.get("metadata") else {},
        num_tokens=4,
        finish_reason="stop",
    )


def _made_up() -> RewardInput:
    return RewardInput(
        messages=[{"role": "user", "content": "What is six times seven?"}],
        completion=_ANSWER,
        text="It is 42.",
        answers=["42"],
        num_tokens=4,
    )
