"""Intervals of many means that hold all at once: who picks the best of twenty has looked twenty times."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kubealign_components.data.bootstrap import CONFIDENCE, RESAMPLES

Floats = NDArray[np.float64]
_WEIGHTS_AT_ONCE = 2**22  # of resamples: 32 MiB


def simultaneous_intervals(
    values: Floats, *, seed: int, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> tuple[Floats, Floats]:
    """Intervals of the means of several rows, which all hold together with the probability ``confidence``.

    Each is the mean ± c standard errors with one c: the quantile of the largest deviation of any row's mean
    over resampled columns, in its standard errors. Columns are drawn whole, so rows that go together, such as
    variants on the same prompts, are not charged for as if they did not, as Bonferroni charges.

    White, A Reality Check for Data Snooping, Econometrica 68 (2000); Romano and Wolf, Exact and Approximate
    Stepdown Methods for Multiple Hypothesis Testing, JASA 100 (2005).

    Args:
        values: shape (rows, columns), at least two columns.
        seed: of the bootstrap.
        resamples: how many.
        confidence: that no interval misses its mean.

    Returns:
        lower and upper ends, shape (rows,) each.
    """
    means = values.mean(axis=1)
    errors = values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
    errors[np.ptp(values, axis=1) == 0] = 0.0  # what rounding leaves of the deviation of equal numbers
    varying = errors > 0
    if not varying.any():
        return means, means.copy()
    largest = _largest_deviations(values[varying], errors[varying], seed, resamples)
    reach = float(np.quantile(largest, confidence)) * errors
    return means - reach, means + reach


def _largest_deviations(values: Floats, errors: Floats, seed: int, resamples: int) -> Floats:
    """Of each resample the largest deviation of a row's mean, in standard errors; shape (resamples,)."""
    columns, draw = values.shape[1], np.random.default_rng(seed)
    centred = values - values.mean(axis=1, keepdims=True)
    at_once, largest = max(1, _WEIGHTS_AT_ONCE // columns), []
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        weights = draw.multinomial(columns, np.full(columns, 1 / columns), size=size)
        largest.append(np.abs(weights @ centred.T / columns / errors).max(axis=1))
    return np.concatenate(largest)


def pairwise_intervals(values: Floats, *, seed: int) -> tuple[Floats, Floats]:
    """Intervals of the differences of any two rows' means that all hold at once.

    Args:
        values: shape (rows, columns).
        seed: of the bootstrap.

    Returns:
        lower and upper ends of row i's mean minus row j's, shape (rows, rows) each.
    """
    rows = len(values)
    low, high = np.zeros((rows, rows)), np.zeros((rows, rows))
    first, second = np.triu_indices(rows, k=1)
    if len(first):
        low[first, second], high[first, second] = simultaneous_intervals(
            values[first] - values[second], seed=seed
        )
    return low - high.T, high - low.T


def on_front(costs: Floats) -> NDArray[np.bool_]:
    """Which rows of ``costs``, shape (rows, costs), no other is at least as good as in all and better in one.

    Deb, Multi-Objective Optimization using Evolutionary Algorithms (2001), chapter 2.
    """
    as_good = np.all(costs[:, None, :] <= costs[None, :, :], axis=2)
    better = np.any(costs[:, None, :] < costs[None, :, :], axis=2)
    outdone: NDArray[np.bool_] = np.any(as_good & better, axis=0)
    return np.logical_not(outdone)
