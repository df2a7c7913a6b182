"""Intervals of many means that hold all at once: who picks the best of twenty has looked twenty times."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from kubealign_components.data.bootstrap import CONFIDENCE, RESAMPLES

Floats = NDArray[np.float64]
_WEIGHTS_AT_ONCE = 2**22  # of resamples: 32 MiB
_ROUNDING = 1e-12  # what is below this share of a number is what rounding left of it


def simultaneous_intervals(
    values: Floats, *, seed: int, resamples: int = RESAMPLES, confidence: float = CONFIDENCE, among: int = 0
) -> tuple[Floats, Floats]:
    """Intervals of the means of several rows, which all hold together with the probability ``confidence``.

    Each is the mean ± c standard errors with one c: the quantile of the largest deviation of any row's mean
    over resampled columns, in the standard errors of the resample itself (bootstrap-t), without which the
    intervals of few columns are too short. Columns are drawn whole, so rows that go together, such as
    variants on the same prompts, are not charged for as if they did not, as Bonferroni charges.

    Rows that resampling cannot judge, since many a resample has one number alone, get Student's t and pay as
    Bonferroni has it. One that never varies tells nothing of how much it might: its interval is as wide as
    the widest of the others. Where no row varies, the intervals are the means.

    Where the rows were picked from more by what these very columns said, the intervals must hold whichever
    were picked: then each misses its mean as seldom as it would among all of them as Bonferroni has it.

    White, A Reality Check for Data Snooping, Econometrica 68 (2000); Romano and Wolf, Exact and Approximate
    Stepdown Methods for Multiple Hypothesis Testing, JASA 100 (2005); Efron and Tibshirani, An Introduction
    to the Bootstrap (1993), chapter 12.

    Args:
        values: shape (rows, columns), at least two columns.
        seed: of the bootstrap.
        resamples: how many.
        confidence: that no interval misses its mean.
        among: how many rows these were picked from; 0 where they are all that there were.

    Returns:
        lower and upper ends, shape (rows,) each.
    """
    means, (rows, columns) = values.mean(axis=1), values.shape
    errors = values.std(axis=1, ddof=1) / np.sqrt(columns)
    varying = np.ptp(values, axis=1) > 0  # what rounding leaves of the deviation of equal numbers is no error
    if not varying.any():
        return means, means.copy()
    deviations = _deviations(values[varying], errors[varying], seed, resamples)
    # How often each may miss its mean, were no two to do so together.
    missed = (1 - confidence) / max(rows, among)
    able = np.isinf(deviations).mean(axis=0) <= missed / 2
    reach = errors[varying] * float(stdtrit(columns - 1, 1 - missed / 2))
    if able.any():
        reach[able] = errors[varying][able] * _quantiles(deviations[:, able], missed, picked=among > rows)
    widths = np.full(rows, reach.max())
    widths[varying] = reach
    return means - widths, means + widths


def _quantiles(deviations: Floats, missed: float, *, picked: bool) -> Floats:
    """How many standard errors intervals reach: each as far as its row takes where rows were ``picked``, else
    all as far as it takes for all of them together. Shape (rows,) or ()."""
    if picked:
        own: Floats = np.quantile(deviations, 1 - missed, axis=0, method="higher")
        return own
    together = 1 - missed * deviations.shape[1]
    return np.asarray(np.quantile(deviations.max(axis=1), together, method="higher"))


def _deviations(values: Floats, errors: Floats, seed: int, resamples: int) -> Floats:
    """Of each resample the deviation of each row's mean, in the resample's standard errors; infinite where
    the resample has one number alone, which is not the mean. Shape (resamples, rows)."""
    columns, draw = values.shape[1], np.random.default_rng(seed)
    centred = (values - values.mean(axis=1, keepdims=True)).T
    at_once, deviations = max(1, _WEIGHTS_AT_ONCE // columns), []
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        shares = draw.multinomial(columns, np.full(columns, 1 / columns), size=size) / columns
        moved = np.abs(shares @ centred)
        variances = (shares @ centred**2 - moved**2) / (columns - 1)
        alone = variances <= _ROUNDING * errors**2
        own = moved / np.sqrt(np.where(alone, 1.0, variances))
        deviations.append(np.where(alone, np.where(moved > _ROUNDING * errors, np.inf, 0.0), own))
    return np.concatenate(deviations)


def pairwise_intervals(values: Floats, *, seed: int, among: int = 0) -> tuple[Floats, Floats]:
    """Intervals of the differences of any two rows' means that all hold at once.

    Args:
        values: shape (rows, columns).
        seed: of the bootstrap.
        among: as :func:`simultaneous_intervals` has it.

    Returns:
        lower and upper ends of row i's mean minus row j's, shape (rows, rows) each.
    """
    rows = len(values)
    low, high = np.zeros((rows, rows)), np.zeros((rows, rows))
    first, second = np.triu_indices(rows, k=1)
    if len(first):
        low[first, second], high[first, second] = simultaneous_intervals(
            values[first] - values[second], seed=seed, among=among * (among - 1) // 2
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
