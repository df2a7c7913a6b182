"""Quantile rewards of all completions of a batch at once.

The quantile reward of a completion is the share of its prompt's reference rewards at or below its
own (QRPO, arXiv 2507.08068, algorithm 1). Arrays are flat over the completions of a batch and
sorted by row, so that a row is a segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubealign_components.training.config import INCLUSIVE, MID_RANK, QUANTILE_RULES

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

METHODS = QUANTILE_RULES


def segments(row: Ints) -> tuple[Ints, Ints, Ints]:
    """First index, length and own rank of each element's segment of equal ``row``; each shape (n,)."""
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    sizes = np.diff(starts, append=len(row))
    first = np.repeat(starts, sizes)
    return first, np.repeat(sizes, sizes), np.arange(len(row)) - first


def within(counts: Ints) -> Ints:
    """``0..c-1`` for every ``c`` of ``counts``, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def order_by(row: Ints, *keys: NDArray[Any]) -> Ints:
    """The stable order by ``row``, then by each key; like ``np.lexsort((*reversed(keys), row))``.

    Twice as fast: NumPy sorts 16-bit integers in linear time, and a batch rarely has more elements.
    """
    order: Ints = np.lexsort((*(_dense(key) for key in reversed(keys)), _dense(row)))
    return order


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Where each completion's reward stands among the reference rewards of its row; shapes (n,)."""

    below: Ints
    """Reference rewards below it."""
    equal: Ints
    """Reference rewards equal to it, its own included when it is a reference."""
    total: Ints
    """Reference rewards of the row."""


def rank_rewards(row: Ints, reward: Floats, reference: Bools) -> Ranks:
    """Count the reference rewards below and equal to every completion's.

    Args:
        row: shape (n,), ascending.
        reward: shape (n,), finite.
        reference: shape (n,), whether the completion is a reference.
    """
    order = order_by(row, reward)
    sorted_row, sorted_reward = row[order], reward[order]
    row_first, row_size, _ = segments(sorted_row)
    group_first, group_size, _ = segments(np.cumsum(_changes(sorted_row) | _changes(sorted_reward)))
    before = np.concatenate(([0], np.cumsum(reference[order])))
    ranks = np.empty((3, len(row)), dtype=np.int64)
    ranks[0, order] = before[group_first] - before[row_first]
    ranks[1, order] = before[group_first + group_size] - before[group_first]
    ranks[2, order] = before[row_first + row_size] - before[row_first]
    return Ranks(below=ranks[0], equal=ranks[1], total=ranks[2])


def quantile_rewards(ranks: Ranks, reference: Bools, method: str) -> Floats:
    """Quantile reward of every completion against the reference rewards of its row.

    With ``n`` references, of which ``L`` lie below and ``E`` are equal to a completion's reward:

    - ``inclusive``: (L + E) / n. The published rule. A reference counts itself, so its quantiles
      average (n + 1) / 2n and not 1/2, and when all rewards tie every quantile is 1.
    - ``mid_rank``: (L + E/2) / n. References average exactly 1/2, whatever ties.
    - ``leave_one_out``: a reference is compared with the other n - 1 alone, ties counting half:
      (L + (E - 1)/2) / (n - 1); any other completion with all n as in ``mid_rank``. References
      average exactly 1/2 and reach 0 and 1.

    All three are monotone: of two completions of a row, the one with the higher reward never has
    the lower quantile.

    Args:
        ranks: from :func:`rank_rewards`, shapes (n,).
        reference: shape (n,), whether the completion is a reference.
        method: one of :data:`METHODS`.

    Returns:
        Shape (n,), in [0, 1]; NaN where the row has too few references to compare with.
    """
    below, equal, total = ranks.below, ranks.equal, ranks.total
    with np.errstate(divide="ignore", invalid="ignore"):
        if method == INCLUSIVE:
            return np.asarray((below + equal) / total)
        if method == MID_RANK:
            return np.asarray((below + 0.5 * equal) / total)
        itself = reference.astype(np.int64)
        return np.asarray((below + 0.5 * (equal - itself)) / (total - itself))


def _dense(values: NDArray[Any]) -> NDArray[Any]:
    """Ranks from 0 that order as ``values`` do; equal values share one."""
    order = np.argsort(values)
    ranks = np.empty(len(values), dtype=np.uint16 if len(values) <= 2**16 else np.uint32)
    ranks[order] = np.cumsum(_changes(values[order])) - 1
    return ranks


def _changes(values: NDArray[Any]) -> Bools:
    """Whether each element differs from the one before it; the first one does."""
    changed = np.ones(len(values), dtype=np.bool_)
    changed[1:] = values[1:] != values[:-1]
    return changed
