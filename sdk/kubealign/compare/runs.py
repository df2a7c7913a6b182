"""What is compared of runs: their settings, numbers, rewards, and texts of the prompts that they share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from kubealign.lineage import standing
from kubealign.local.results import read_results
from kubealign.local.runs import DIRECTORIES, RunInfo
from kubealign_components.config import require
from kubealign_components.data.bootstrap import Interval, bootstrap_interval
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import digest
from kubealign_components.data.schemas import EVALUATION, REWARDED, EvaluationRow
from kubealign_components.reports.columns import read_columns

Floats = NDArray[np.float64]
T = TypeVar("T")
FEWEST, MOST = 2, 8
"""Runs that are compared at once."""
_PLACES = ("work",)
"""Parameters that say where rows lie, not what is computed."""


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One of the runs."""

    name: str
    """By which it differs from the others: its folder's name, or as much of its path as that takes."""
    info: RunInfo

    @cached_property
    def settings(self) -> dict[str, str]:
        """Every parameter as text, defaults included; nested ones by dotted names."""
        file = self.info.folder.parameters
        given = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
        named = given if isinstance(given, dict) else {}
        flat = dict(_flat({k: v for k, v in named.items() if k not in _PLACES}))
        return {"pipeline": str(self.info.results.get("pipeline", "")), **flat}

    @cached_property
    def evaluation(self) -> dict[str, float]:
        """The numbers of its comparison of models; none before there is one."""
        return dict(self.info.results.get("evaluation", {}))

    @cached_property
    def stages(self) -> dict[str, float]:
        """Rows, seconds and numbers of the other stages, each named with its stage."""
        numbers: dict[str, float] = {"run: seconds": float(self.info.results.get("seconds", 0.0))}
        numbers |= {"run: cost": self.info.results["cost"]} if "cost" in self.info.results else {}
        seen = Counter[str]()
        for stage in self.info.results.get("stages", ()):
            seen[stage["title"]] += 1
            name = stage["title"] if seen[stage["title"]] == 1 else f"{stage['title']} {seen[stage['title']]}"
            numbers |= {f"{name}: rows": stage["rows_out"], f"{name}: seconds": stage["seconds"]}
            if stage["stage"] != "evaluate":
                numbers |= {f"{name}: {n.replace('_', ' ')}": v for n, v in stage["numbers"].items()}
        return numbers

    @cached_property
    def rows(self) -> dict[str, EvaluationRow]:
        """The held-out prompts with both models' completions, by prompt id."""
        made = self._last(EVALUATION)
        return {} if made is None else {row["prompt_id"]: row for row in made.iter_rows(of=EvaluationRow)}

    @cached_property
    def reward(self) -> str:
        """A digest of what gave the rewards of its evaluation; empty without any."""
        made = self._last(EVALUATION)
        if made is None or "reward_gain" not in self.evaluation:
            return ""
        step = made.manifest.provenance.step
        return digest([step["params"].get("reward"), step["models"].get("reward")])

    @cached_property
    def rewards(self) -> dict[str, Floats]:
        """The rewards of all held-out completions, by side."""
        if not self.reward:
            return {}
        return {
            side: np.array([c["reward"] for row in self.rows.values() for c in row[side]], dtype=np.float64)
            for side in ("reference", "aligned")
        }

    @cached_property
    def sampled_rewards(self) -> Floats:
        """The rewards that the last rewards stage gave the completions it sampled."""
        made = self._last(REWARDED)
        if made is None:
            return np.empty(0)
        columns = read_columns(made)
        values: Floats = columns.reward[columns.reference]
        finite: Floats = values[np.isfinite(values)]
        return finite

    def _last(self, schema: str) -> Dataset | None:
        """The last dataset of that kind that is still there; of a sweep the chosen variant's."""
        run = read_results(self.info)
        kept = [
            o
            for o in run.outputs
            if o.type in DIRECTORIES and o.iteration in (0, run.chosen) and not o.rung
            if run.chosen_round in (0, o.round)
        ]
        made = standing(output.path for output in reversed(kept))
        return next((one for one in made if one.manifest.schema == schema), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How much higher one run's aligned model is rewarded than the first run's, on the prompts of both."""

    name: str
    prompts: int
    mean: float
    interval: Interval | None
    """Bootstrapped over prompts, 95 %; None where a single prompt does not say how sure the mean is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunComparison:
    """Two to eight runs."""

    runs: Sequence[ComparedRun]

    @property
    def names(self) -> list[str]:
        """Of the runs, in their order."""
        return [run.name for run in self.runs]

    def settings(self) -> dict[str, list[str | None]]:
        """The settings in which not all runs are the same, by name; None where a run lacks one."""
        return {n: v for n, v in _beside([run.settings for run in self.runs]).items() if len(set(v)) > 1}

    def evaluation(self) -> dict[str, list[float | None]]:
        """The numbers of the evaluations."""
        return _beside([run.evaluation for run in self.runs])

    def stages(self) -> dict[str, list[float | None]]:
        """The numbers of the other stages that differ between runs."""
        return {n: v for n, v in _beside([run.stages for run in self.runs]).items() if len(set(v)) > 1}

    def shared(self) -> list[str]:
        """Ids of the held-out prompts that every run with an evaluation has, in the order of the first."""
        evaluated = [run.rows for run in self.runs if run.rows]
        return [name for name in evaluated[0] if all(name in rows for rows in evaluated)] if evaluated else []

    def differences(self) -> list[Difference]:
        """Of each run with the first run's reward against the first, paired by prompt; of a run that has no
        prompt of the first none."""
        first = self.runs[0]
        alike = [run for run in self.runs[1:] if run.reward and run.reward == first.reward]
        return [_difference(first, run) for run in alike if run.rows.keys() & first.rows.keys()]

    def notes(self) -> list[str]:
        """What a reader must know before comparing the numbers."""
        return list(_notes(self))


def compared(runs: Sequence[RunInfo]) -> RunComparison:
    """The comparison of ``runs``.

    Raises:
        ConfigError: too few or too many, or one twice.
    """
    paths = [run.folder.path.resolve() for run in runs]
    names = [str(path) for path in paths]
    require(FEWEST <= len(runs) <= MOST, "runs", names, f"{FEWEST} to {MOST} runs")
    require(len(set(paths)) == len(paths), "runs", names, "each run once")
    return RunComparison(
        runs=[ComparedRun(name=name, info=run) for name, run in zip(_short_names(paths), runs)]
    )


def _short_names(paths: Sequence[Path]) -> list[str]:
    """As few of the last parts of each path as tell all apart."""
    longest = max(len(path.parts) for path in paths)
    for parts in range(1, longest + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _difference(first: ComparedRun, other: ComparedRun) -> Difference:
    shared = [name for name in first.rows if name in other.rows]
    means = [np.array([mean_reward(run.rows[name]) for name in shared]) for run in (first, other)]
    gains = means[1] - means[0]
    interval = bootstrap_interval(gains, seed=0)
    return Difference(name=other.name, prompts=len(shared), mean=float(gains.mean()), interval=interval)


def mean_reward(row: EvaluationRow) -> float:
    """Mean reward of the aligned model's completions."""
    return float(np.mean([completion["reward"] for completion in row["aligned"]]))


def _notes(comparison: RunComparison) -> Iterator[str]:
    for run in comparison.runs:
        if not run.evaluation:
            yield f"{run.name} ({run.info.state}) has no evaluation."
    rewards = {run.reward for run in comparison.runs if run.reward}
    if len(rewards) > 1:
        yield (
            "The runs were evaluated by different rewards: their rewards lie on different scales and cannot "
            "be compared."
        )
    shared = len(comparison.shared())
    for run in comparison.runs:
        if run.rows and len(run.rows) > shared:
            own = len(run.rows) - shared
            yield f"{own} of the {len(run.rows)} held-out prompts of {run.name} are not shared by all."


def _beside(of_runs: Sequence[Mapping[str, T]]) -> dict[str, list[T | None]]:
    names = dict.fromkeys(name for of_run in of_runs for name in of_run)
    return {name: [of_run.get(name) for of_run in of_runs] for name in names}


def _flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested settings by dotted names; lists of plain values are leaves."""
    named = list(value.items()) if isinstance(value, Mapping) else []
    if isinstance(value, list) and any(isinstance(one, Mapping | list) for one in value):
        named = list(enumerate(value))
    if named:
        for key, one in named:
            yield from _flat(one, f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
