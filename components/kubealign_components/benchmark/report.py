"""The benchmark on one page: what was asked for, what moved, and every task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kubealign_components.benchmark.config import AS_THE_TASK_SAYS, BenchmarkConfig
from kubealign_components.benchmark.results import NO_FILTER, BenchmarkResult
from kubealign_components.reports.html import render

HEAD = ("task", "metric", "documents", "reference", "aligned", "difference", "95 % interval", "")
NUMERIC = (2, 3, 4, 5, 6)


def report_html(
    results: Sequence[BenchmarkResult], *, config: BenchmarkConfig, model: str, reference: str, release: str
) -> str:
    """A self-contained page.

    Args:
        results: of all tasks and groups.
        config: the settings.
        model: name of the aligned model.
        reference: name of the policy that it was made from.
        release: of lm-eval.
    """
    asked = [one for one in results if one.requested]
    within = [one for one in results if not one.requested]
    return render(
        "kubealign_components/benchmark/report.html",
        model=model,
        reference=reference,
        verdict=_verdict(asked),
        notes=list(_notes(asked, config)),
        how=_how(config, release),
        head=HEAD,
        numeric=NUMERIC,
        asked=[_cells(one) for one in asked],
        within=[_cells(one) for one in within],
        without_interval=any(one.difference_low is None for one in results),
    )


def _verdict(asked: Sequence[BenchmarkResult]) -> str:
    compared = [one for one in asked if one.difference_low is not None]
    worse = [_title(one) for one in compared if one.worse]
    better = [_title(one) for one in compared if one.better]
    rest = len(compared) - len(worse) - len(better)
    parts = [
        f"worse on {', '.join(worse)}" if worse else "",
        f"better on {', '.join(better)}" if better else "",
        f"not to be told from its reference on {rest} of {len(compared)} metrics" if rest else "",
    ]
    if not compared:
        return "No metric of these tasks has a difference with an interval."
    return f"The aligned policy is {'; '.join(filter(None, parts))}."


def _notes(asked: Sequence[BenchmarkResult], config: BenchmarkConfig) -> Iterator[str]:
    if config.limit:
        yield (
            f"Only the first {config.limit} documents of each task were asked: these are not the numbers "
            "that others publish for it."
        )
    several = sum(one.difference_low is not None for one in asked)
    if several > 1:
        yield (
            f"{several} intervals are shown, each of which misses in 5 % of cases: where one of them alone "
            "does not hold 0, that may be chance."
        )
    for one in asked:
        if one.sharing:
            yield (
                f"{one.sharing} tasks of {one.task} ask the same documents, in part: the interval of its "
                f"{_metric(one)} is as wide as if these tasks always moved together."
            )


def _how(config: BenchmarkConfig, release: str) -> list[tuple[str, str]]:
    shots = "as each task says" if config.num_fewshot == AS_THE_TASK_SAYS else str(config.num_fewshot)
    return [
        ("lm-eval", release),
        ("Engine", config.engine),
        ("Examples before each question", shots),
        ("Chat template", "applied" if config.apply_chat_template else "not applied"),
        ("Seed", str(config.seed)),
    ]


def _cells(one: BenchmarkResult) -> list[str]:
    low, high = one.difference_low, one.difference_high
    low_high = "" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"
    way = {True: "higher is better", False: "lower is better", None: ""}[one.higher_is_better]
    return [
        _task(one),
        _metric(one),
        str(one.documents),
        _with_error(one.reference, one.reference_se),
        _with_error(one.aligned, one.aligned_se),
        "" if one.difference is None else f"{one.difference:+.4f}",
        low_high,
        way,
    ]


def _task(one: BenchmarkResult) -> str:
    members = f" ({one.members} tasks)" if one.members else ""
    shots = f", {one.num_fewshot} examples" if one.num_fewshot else ""
    return f"{one.task}{members}, version {one.version}{shots}"


def _metric(one: BenchmarkResult) -> str:
    return one.metric if one.filter == NO_FILTER else f"{one.metric} ({one.filter})"


def _title(one: BenchmarkResult) -> str:
    return f"{one.task} ({_metric(one)} {one.difference:+.4f})"


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"
