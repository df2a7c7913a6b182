"""What a run may ask of its benchmarks: that nothing is lost beyond a margin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kubealign_components.benchmark.results import BenchmarkResult


def unmet(max_drop: Mapping[str, float], results: Sequence[BenchmarkResult]) -> list[str]:
    """Why ``results`` do not keep to ``max_drop``, a reason for each metric that does not.

    A metric keeps to it where the whole 95 % interval of its difference does: that of non-inferiority, by
    which few documents show nothing.

    Args:
        max_drop: the most that a metric may get worse, by the name of its task or its own.
        results: of all tasks and groups.
    """
    return [reason for name, most in max_drop.items() for reason in _reasons(name, most, results)]


def _reasons(name: str, most: float, results: Sequence[BenchmarkResult]) -> Iterator[str]:
    named = [one for one in results if name in (one.task, one.name)]
    compared = [one for one in named if one.largest_drop is not None]
    if not named:
        yield f"{name}: nothing of that name was measured; there are {', '.join(one.name for one in results)}"
    elif not compared:
        yield f"{name}: none of its metrics has a difference with an interval"
    for one in compared:
        if one.largest_drop is not None and one.largest_drop > most:
            yield (
                f"{one.name} changed by {one.difference:+.4f} (95 % interval {one.difference_low:+.4f} to "
                f"{one.difference_high:+.4f}), expected an interval without a loss of more than {most:g}"
            )
