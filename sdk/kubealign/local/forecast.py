"""How long a local run will take: the estimate of its stages, corrected by what this machine has shown."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kubealign.estimate.formulas import SHAPES, ModelShape, Throughput
from kubealign.estimate.stages import (
    Assumptions,
    Tokens,
    preset_of,
    rows_of,
    shape_from_config,
    stage_configs,
    stage_tokens,
)
from kubealign.local.watcher import TaskRun
from kubealign_components.errors import KubeAlignError
from kubealign_pipelines.graph import Graph

START_SECONDS = 4.0
"""Of a task's process, to import what it needs and load its model."""
_SAMPLED = {"vllm": 0.4, "transformers": 0.1}
"""Operations of sampling over those of fp32 matrix products in the same time, by engine: few rows at a time
wait for memory. Scoring and training reach about as many as the products, some of them in bf16."""
_SIDE = 768
"""Of the matrices whose product is timed."""
_ENOUGH = 0.05
"""Share of a task from which its own rate says when it will end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What is expected of one task of the graph, all its executions together."""

    executions: int
    work: float
    """Seconds of computation of all of them, by the estimate."""
    rows: int = 0
    """Rows that a fan-out's workers are expected to share; 0 of other tasks."""

    def seconds(self, executions: int, kept: float) -> float:
        """Of one of so many ``executions``, where that share of the rows was ``kept``."""
        work = self.work * kept if self.rows else self.work
        return START_SECONDS + work / executions


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
        kept = self._kept(runs)
        scale = self._scale(runs, kept)
        left = 0.0
        for name, one in self._expected.items():
            begun = [run for run in runs if run.task == name]
            announced = max((run.chunk["of"] for run in begun if "of" in run.chunk), default=one.executions)
            executions = max(announced, len(begun))
            each = scale * one.seconds(executions, kept)
            left += (executions - len(begun)) * each
            left += sum(_left_of(run, each) for run in begun if run.ended is None)
        return left

    def _scale(self, runs: Sequence[TaskRun], kept: float) -> float:
        """Measured over expected seconds of what has ended and was really computed. Tasks without a model say
        nothing of how fast models are."""
        measured = expected = 0.0
        for run in runs:
            one = self._expected.get(run.task)
            if one is not None and one.work and run.ended is not None and run.ok and not run.reused:
                measured += run.seconds
                expected += one.seconds(run.chunk.get("of", one.executions), kept)
        return measured / expected if expected else 1.0

    def _kept(self, runs: Sequence[TaskRun]) -> float:
        """Rows that the workers of the last fan-out say they have, over those expected: filters drop some."""
        for run in reversed(runs):
            one = self._expected.get(run.task)
            if one is not None and one.rows and run.state is not None and "of" in run.chunk:
                return min(1.0, run.state.total * run.chunk["of"] / one.rows)
        return 1.0


def forecast(graph: Graph, parameters: Mapping[str, object]) -> Forecast:
    """The forecast of a run of ``graph`` with all its ``parameters``; it times this machine for a moment."""
    rows = _rows(parameters)
    tokens, engine = _tokens(graph, parameters, rows)
    shape = _shape(str(parameters.get("policy", "")))
    flops = _matrix_rate()
    share = _SAMPLED.get(engine, min(_SAMPLED.values()))
    rates = Throughput(flops=flops, sample=share * flops / (2 * shape.parameters)).rates(shape)
    most = parameters.get("work_rows_per_chunk")
    chunks = max(1, math.ceil(rows / most)) if isinstance(most, int) and most else 1
    expected = {}
    for name, task in graph.tasks.items():
        work = sum(count / rates[kind] for kind, count in tokens.get(name, {}).items())
        items = parameters.get(task.each) if task.each else None
        executions = task.executions(len(items)) if isinstance(items, list) else 1
        of_chunks = "chunk" in task.arguments
        executions = chunks if of_chunks else executions
        expected[name] = Expected(executions=executions, work=work, rows=rows if of_chunks else 0)
    return Forecast(expected)


def _matrix_rate() -> float:
    """Operations per second of fp32 matrix products on this machine, the best of several."""
    matrix = np.ones((_SIDE, _SIDE), np.float32)
    return 2 * _SIDE**3 / min(_seconds_of_a_product(matrix) for _ in range(8))


def _seconds_of_a_product(matrix: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> float:
    begun = time.perf_counter()
    matrix @ matrix
    return time.perf_counter() - begun


def _left_of(run: TaskRun, expected: float) -> float:
    """Seconds that an execution under way still takes."""
    state = run.state
    if state is not None and state.left is not None and state.done >= _ENOUGH * state.total:
        return state.left
    return max(expected - run.seconds, 0.0)


def _tokens(graph: Graph, parameters: Mapping[str, object], rows: int) -> tuple[dict[str, Tokens], str]:
    """Tokens by task and kind of work, and the engine that samples."""
    usual = Assumptions()
    try:
        configs = stage_configs(graph, parameters)
        specs = [config.sampling for config in configs if hasattr(config, "sampling")]
        prompts = [config.max_prompt_len for config in configs if hasattr(config, "max_prompt_len")]
        completions = [spec.max_new_tokens for spec in specs]
        assumed = Assumptions(
            rows=rows,
            prompt_tokens=min(usual.prompt_tokens, max(prompts, default=usual.prompt_tokens)),
            completion_tokens=min(usual.completion_tokens, max(completions, default=usual.completion_tokens)),
        )
        return stage_tokens(graph, parameters, assumed), specs[0].engine if specs else ""
    except KubeAlignError:  # a pipeline that is not estimated: its tasks count alike
        return {}, ""


def _rows(parameters: Mapping[str, object]) -> int:
    try:
        return rows_of(parameters) or Assumptions().rows
    except (KubeAlignError, OSError):
        return Assumptions().rows


def _shape(policy: str) -> ModelShape:
    """The policy's shape, from its config or its name; a small one where neither tells."""
    try:
        return shape_from_config(json.loads((Path(policy) / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError):
        return SHAPES[preset_of(policy) or "smollm2-135m"]
