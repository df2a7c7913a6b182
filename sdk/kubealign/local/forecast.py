"""How long a local run will take: the estimate of its stages, corrected by what this machine has shown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubealign.estimate.formulas import SHAPES, ModelShape, Throughput
from kubealign.estimate.stages import (
    Assumptions,
    Tokens,
    longest_completion,
    preset_of,
    rows_of,
    shape_from_config,
    stage_tokens,
)
from kubealign.local.watcher import TaskRun
from kubealign_components.errors import KubeAlignError
from kubealign_pipelines.graph import Graph

START_SECONDS = 4.0
"""Of a task's process, to import what it needs and load its model."""
FLOPS = 5e10
"""Useful operations per second, until this machine has shown its own: two cores'."""
_ENOUGH = 0.05
"""Share of a task from which its own rate says when it will end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What is expected of one task of the graph, all its executions together."""

    executions: int
    work: float
    """Seconds of computation of all of them, by the estimate."""


class Forecast:
    """The time that is left, from the estimate and from the executions so far.

    Args:
        expected: by the name of the task.
    """

    def __init__(self, expected: Mapping[str, Expected]) -> None:
        self._expected = dict(expected)

    def total(self) -> float:
        """Seconds of the whole run, by the estimate alone."""
        return sum(START_SECONDS * one.executions + one.work for one in self._expected.values())

    def left(self, runs: Sequence[TaskRun]) -> float:
        """Seconds until all tasks have ended, as if they ran one after the other.

        Args:
            runs: every execution so far.
        """
        scale = self._scale(runs)
        left = 0.0
        for name, one in self._expected.items():
            begun = [run for run in runs if run.task == name]
            announced = max((run.chunk["of"] for run in begun if "of" in run.chunk), default=one.executions)
            executions = max(announced, len(begun))
            each = scale * (START_SECONDS + one.work / executions)
            left += (executions - len(begun)) * each
            left += sum(_left_of(run, each) for run in begun if run.ended is None)
        return left

    def _scale(self, runs: Sequence[TaskRun]) -> float:
        """Measured over expected seconds of what has ended and was really computed."""
        measured = expected = 0.0
        for run in runs:
            if run.ended is not None and run.ok and not run.reused and run.task in self._expected:
                one = self._expected[run.task]
                measured += run.seconds
                expected += START_SECONDS + one.work / run.chunk.get("of", one.executions)
        return measured / expected if expected else 1.0


def forecast(graph: Graph, parameters: Mapping[str, object]) -> Forecast:
    """The forecast of a run of ``graph`` with all its ``parameters``."""
    rows = _rows(parameters)
    tokens = _tokens(graph, parameters, rows)
    shape = _shape(str(parameters.get("policy", "")))
    sampled = FLOPS / (2 * shape.parameters) / 4  # token by token, processors wait for memory
    rates = Throughput(flops=FLOPS, sample=sampled).rates(shape)
    most = parameters.get("work_rows_per_chunk")
    chunks = max(1, math.ceil(rows / most)) if isinstance(most, int) and most else 1
    expected = {}
    for name, task in graph.tasks.items():
        work = sum(count / rates[kind] for kind, count in tokens.get(name, {}).items())
        items = parameters.get(task.each) if task.each else None
        executions = task.executions(len(items)) if isinstance(items, list) else 1
        executions = chunks if "chunk" in task.arguments else executions
        expected[name] = Expected(executions=executions, work=work)
    return Forecast(expected)


def _left_of(run: TaskRun, expected: float) -> float:
    """Seconds that an execution under way still takes."""
    state = run.state
    if state is not None and state.left is not None and state.done >= _ENOUGH * state.total:
        return state.left
    return max(expected - run.seconds, 0.0)


def _tokens(graph: Graph, parameters: Mapping[str, object], rows: int) -> dict[str, Tokens]:
    try:
        length = min(longest_completion(graph, parameters), Assumptions().completion_tokens)
        return stage_tokens(graph, parameters, Assumptions(rows=rows, completion_tokens=length))
    except KubeAlignError:  # a pipeline that is not estimated: its tasks count alike
        return {}


def _rows(parameters: Mapping[str, object]) -> int:
    try:
        return rows_of(parameters) or Assumptions().rows
    except (KubeAlignError, OSError):
        return Assumptions().rows


def _shape(policy: str) -> ModelShape:
    """The policy's shape, from its config or its name; a small one where neither tells."""
    try:
        return shape_from_config(json.loads((Path(policy) / "config.json").read_text()))
    except (OSError, ValueError, KeyError):
        return SHAPES[preset_of(policy) or "smollm2-135m"]
