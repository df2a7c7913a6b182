"""What a benchmark says: the value of each metric for both models, and the difference."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubealign_components.benchmark.intervals import (
    Interval,
    MemberDifference,
    group_error,
    group_interval,
    interval_of_means,
    sharing,
    student_interval,
)
from kubealign_components.benchmark.paired import MEAN, paired_error
from kubealign_components.benchmark.records import (
    Measured,
    PlannedGroup,
    PlannedTask,
    SampleRecord,
    TaskRecord,
)
from kubealign_components.data.benchmark_rows import BenchmarkRow, Score

NO_FILTER = "none"
"""lm-eval's name for taking a response as it is."""
_NO_NAME = re.compile(r"\W+")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkResult:
    """One metric of a task or group."""

    task: str
    version: str
    metric: str
    filter: str
    num_fewshot: int | None
    """Examples before each question; None of a group."""
    documents: int
    higher_is_better: bool | None
    reference: float | None
    reference_se: float | None
    """Standard error; None where lm-eval knows none for the metric."""
    aligned: float | None
    aligned_se: float | None
    difference_se: float | None
    """Of the paired difference; None where the metric is none that is compared in pairs."""
    difference_low: float | None
    """Lower end of the 95 % interval of the difference; None where there is none."""
    difference_high: float | None
    requested: bool = True
    """Whether it was asked for by name, or belongs to a group that was."""
    members: int = 0
    """Tasks of a group; 0 of a task."""
    sharing: int = 0
    """Those of them that ask documents which another of them asks."""

    @property
    def difference(self) -> float | None:
        """Aligned minus reference."""
        return None if self.aligned is None or self.reference is None else self.aligned - self.reference

    @property
    def worse(self) -> bool:
        """Whether the aligned model is worse, and the 95 % interval of the difference does not hold 0."""
        return self._sure_gain < 0

    @property
    def better(self) -> bool:
        """Whether it is better, in the same way."""
        return self._sure_gain > 0

    @property
    def _sure_gain(self) -> float:
        """The difference, above 0 where the aligned model is better; 0 where that is not known or its 95 %
        interval holds 0."""
        difference, up, low, high = (
            self.difference,
            self.higher_is_better,
            self.difference_low,
            self.difference_high,
        )
        if difference is None or up is None or low is None or high is None or low <= 0 <= high:
            return 0.0
        return difference if up else -difference

    @property
    def largest_drop(self) -> float | None:
        """The most that the aligned model may be worse, by the 95 % interval of the difference; below 0 where
        it is better. None where there is no interval, or it is not known which way is better."""
        low, high = self.difference_low, self.difference_high
        if self.higher_is_better is None or low is None or high is None:
            return None
        return -low if self.higher_is_better else high

    @property
    def name(self) -> str:
        """As metrics have it."""
        parts = [self.task, self.metric, *([self.filter] if self.filter != NO_FILTER else [])]
        return _NO_NAME.sub("_", "_".join(parts)).strip("_")

    def numbers(self) -> dict[str, float]:
        """What there is, by names for a page that sorts runs."""
        values = {
            "reference": self.reference,
            "aligned": self.aligned,
            "difference": self.difference,
            "difference_se": self.difference_se,
            "difference_low": self.difference_low,
            "difference_high": self.difference_high,
        }
        return {f"{self.name}_{name}": value for name, value in values.items() if value is not None}


@dataclass(kw_only=True, slots=True)
class BenchmarkComparison:
    """Both models on all tasks, task by task."""

    seed: int
    groups: Sequence[PlannedGroup]
    asked: Sequence[str]
    """Names of the tasks, groups and tags that were asked for."""
    results: list[BenchmarkResult] = field(default_factory=list)
    _by_task: dict[tuple[str, str, str], BenchmarkResult] = field(default_factory=dict)
    _documents: dict[str, frozenset[int]] = field(default_factory=dict)
    """What tells the documents of a task from others."""

    def add(self, task: PlannedTask, reference: TaskRecord, aligned: TaskRecord) -> list[BenchmarkRow]:
        """Take in what both did on ``task``; its rows."""
        pairs = list(_paired(reference["samples"], aligned["samples"]))
        self._documents[task["name"]] = frozenset(hash(left["content"]) for left, _ in pairs)
        other = {(one["metric"], one["filter"]): one for one in aligned["metrics"]}
        for one in reference["metrics"]:
            key = (one["metric"], one["filter"])
            if key in other:
                self._add(task, reference["documents"], one, other[key], pairs)
        return [_row(task, left, right) for left, right in pairs]

    def _add(
        self,
        task: PlannedTask,
        documents: int,
        reference: Measured,
        aligned: Measured,
        pairs: Sequence[tuple[SampleRecord, SampleRecord]],
    ) -> None:
        metric, of_filter = reference["metric"], reference["filter"]
        both = [
            (left["scores"][metric], right["scores"][metric])
            for left, right in pairs
            if left["filter"] == of_filter and metric in left["scores"] and metric in right["scores"]
        ]
        aggregation = task["aggregation"].get(metric, MEAN)
        before, after = [a for a, _ in both], [b for _, b in both]
        error = paired_error(aggregation, before, after, seed=self.seed)
        low, high = _interval(aggregation, before, after, reference, aligned, error) or (None, None)
        result = BenchmarkResult(
            task=task["name"],
            version=task["version"],
            metric=metric,
            filter=of_filter,
            num_fewshot=task["num_fewshot"],
            documents=documents,
            higher_is_better=task["higher_is_better"].get(metric),
            reference=reference["value"],
            reference_se=reference["stderr"],
            aligned=aligned["value"],
            aligned_se=aligned["stderr"],
            difference_se=error,
            difference_low=low,
            difference_high=high,
            requested=task["name"] in self.asked or not self._in_group(task["name"]),
        )
        self.results.append(result)
        self._by_task[task["name"], metric, of_filter] = result

    def _in_group(self, task: str) -> bool:
        return any(task in group["tasks"] for group in self.groups)

    def add_group(
        self, group: PlannedGroup, reference: Sequence[Measured], aligned: Sequence[Measured]
    ) -> None:
        """Take in lm-eval's aggregates of a group, whose tasks are there."""
        weighted = {one["metric"]: one["weight_by_size"] for one in group["metrics"]}
        other = {(one["metric"], one["filter"]): one for one in aligned}
        for one in reference:
            metric, of_filter = one["metric"], one["filter"]
            members = [self._by_task.get((task, metric, of_filter)) for task in group["tasks"]]
            parts = [part for part in members if part is not None]
            right = other.get((metric, of_filter))
            if right is None or not parts:
                continue
            compared = [self._part(part, by_size=weighted.get(metric, True)) for part in parts]
            difference = _difference(one, right)
            interval = None if difference is None else group_interval(difference, compared)
            low, high = interval or (None, None)
            ups = {part.higher_is_better for part in parts}
            self.results.append(
                BenchmarkResult(
                    task=group["name"],
                    version=group["version"],
                    metric=metric,
                    filter=of_filter,
                    num_fewshot=None,
                    documents=sum(part.documents for part in parts),
                    higher_is_better=ups.pop() if len(ups) == 1 else None,
                    reference=one["value"],
                    reference_se=one["stderr"],
                    aligned=right["value"],
                    aligned_se=right["stderr"],
                    difference_se=group_error(compared),
                    difference_low=low,
                    difference_high=high,
                    requested=group["name"] in self.asked,
                    members=len(parts),
                    sharing=sum(len(ones) for ones in sharing(compared) if len(ones) > 1),
                )
            )

    def _part(self, result: BenchmarkResult, *, by_size: bool) -> MemberDifference:
        """What the task of ``result`` adds to that of a group."""
        low, high = result.difference_low, result.difference_high
        return MemberDifference(
            weight=float(result.documents) if by_size else 1.0,
            difference=result.difference or 0.0,
            error=result.difference_se,
            interval=None if low is None or high is None else (low, high),
            documents=self._documents[result.task],
        )


def _interval(
    aggregation: str,
    before: Sequence[Any],
    after: Sequence[Any],
    reference: Measured,
    aligned: Measured,
    error: float | None,
) -> Interval | None:
    """Of the difference of the values of ``aligned`` and ``reference``, from what was measured ``before`` and
    ``after`` on each document."""
    if error is None:
        return None
    if aggregation == MEAN:
        return interval_of_means(before, after, error)
    difference = _difference(reference, aligned)
    return None if difference is None else student_interval(difference, error, len(before))


def _difference(reference: Measured, aligned: Measured) -> float | None:
    before, after = reference["value"], aligned["value"]
    return None if before is None or after is None else after - before


def _paired(
    reference: Sequence[SampleRecord], aligned: Sequence[SampleRecord]
) -> Iterator[tuple[SampleRecord, SampleRecord]]:
    other = {(sample["document"], sample["filter"]): sample for sample in aligned}
    for sample in reference:
        match = other.get((sample["document"], sample["filter"]))
        if match is not None:
            yield sample, match


def _row(task: PlannedTask, reference: SampleRecord, aligned: SampleRecord) -> BenchmarkRow:
    metrics = [metric for metric in reference["scores"] if metric in aligned["scores"]]
    return {
        "task": task["name"],
        "filter": reference["filter"],
        "document": reference["document"],
        "content": reference["content"],
        "target": reference["target"],
        "scores": [_score(metric, reference["scores"], aligned["scores"]) for metric in metrics],
        "reference": reference["responses"],
        "aligned": aligned["responses"],
    }


def _score(metric: str, reference: Mapping[str, Any], aligned: Mapping[str, Any]) -> Score:
    return {
        "metric": metric,
        "reference": _of_document(reference[metric]),
        "aligned": _of_document(aligned[metric]),
    }


def _of_document(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
