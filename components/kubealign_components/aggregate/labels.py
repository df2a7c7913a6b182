"""From the scores of the drawn principles to one label."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def dominant(scores: Sequence[float]) -> int:
    """Position of the largest score in absolute value; the first of equal ones, which is a random one."""
    return max(range(len(scores)), key=lambda i: abs(scores[i]))


def dominant_score(scores: Sequence[float]) -> float:
    """The score of the dominant principle: the published rule (SALMON, section 3.2)."""
    return scores[dominant(scores)]


def total_score(scores: Sequence[float]) -> float:
    """The sum of the scores, exactly rounded, so that the order of the principles does not matter."""
    return math.fsum(scores)


def majority(scores: Sequence[float]) -> float:
    """Principles for less principles against, as a share of all: in [-1, 1]."""
    return sum((score > 0) - (score < 0) for score in scores) / len(scores)


POLICIES: dict[str, Callable[[Sequence[float]], float]] = {
    "dominant": dominant_score,
    "sum": total_score,
    "vote": majority,
}
"""Support of the first completion, from the principles' scores: positive when it is preferred, 0 for a
tie. Each policy is odd: with all scores negated the support is negated."""
