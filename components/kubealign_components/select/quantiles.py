"""Quantile rewards of all completions of a batch at once.

The quantile reward of a completion is the share of its prompt's reference rewards at or below its
own (QRPO, arXiv 2507.08068, algorithm 1). Arrays are flat over the completions of a batch and
sorted by row, so that a row is a segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kubealign_components.data.segments import Bools, Floats, Ints, changes, order_by, segments
from kubealign_components.training.config import INCLUSIVE, MID_RANK, QUANTILE_RULES

METHODS = QUANTILE_RULES


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
    group_first, group_size, _ = segments(np.cumsum(changes(sorted_row) | changes(sorted_reward)))
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
