"""How sure a mean is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95
_VALUES_AT_ONCE = 2**22  # of resamples: 32 MiB

Interval = tuple[float, float]
"""Its lower and its upper end."""
ONE_PROMPT = "a single prompt does not say how sure that is"
"""In place of an interval over prompts."""


def bootstrap_interval(
    values: NDArray[np.float64], *, seed: int, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval | None:
    """Percentile bootstrap interval of the mean of ``values``, shape (n,), resampled with replacement.

    None for fewer than two values: resamples of a single one are all alike, which would look like certainty.
    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    from scipy.stats import bootstrap

    if len(values) < 2:
        return None
    if np.ptp(values) == 0:  # nothing to resample, which SciPy warns of
        return float(values[0]), float(values[0])
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _VALUES_AT_ONCE // len(values)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def mean_numbers(name: str, values: NDArray[np.float64], *, seed: int) -> dict[str, float]:
    """The mean of ``values``, shape (n,), as flat numbers for the stats, with its interval if it has one."""
    return {name: float(values.mean())} | interval_numbers(name, bootstrap_interval(values, seed=seed))


def interval_numbers(name: str, interval: Interval | None) -> dict[str, float]:
    """The ends of ``interval`` as flat numbers, ``name_low`` and ``name_high``; neither without one."""
    return {} if interval is None else {f"{name}_low": interval[0], f"{name}_high": interval[1]}


def bootstrap_intervals(
    values: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    seed: int,
    resamples: int = RESAMPLES // 4,
    confidence: float = CONFIDENCE,
) -> NDArray[np.float64]:
    """Percentile bootstrap intervals of numbers that are a function of means, such as a slope.

    Args:
        values: shape (n, k), of which rows are resampled together.
        statistic: gives the numbers for means, (…, k) to (…, m).
        seed: of the resamples.
        resamples: how many.
        confidence: of each interval.

    Returns:
        Lower and upper bounds, shape (2, m).
    """
    rng, n = np.random.default_rng(seed), len(values)
    at_once = max(1, _VALUES_AT_ONCE // n)
    means = [
        rng.multinomial(n, np.full(n, 1 / n), min(at_once, resamples - start)) @ values / n
        for start in range(0, resamples, at_once)
    ]
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    return np.asarray(np.quantile(statistic(np.concatenate(means)), tails, axis=0))
