"""95 % intervals of the difference between two models on the same documents.

Where each document is right or wrong, and few are asked, standard errors say too little: of two models that
are alike on all of ten documents the error is 0, and the models may well differ on the eleventh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

SURE = 1.959963984540054
"""Standard errors that a normal number is from its mean at most, with 95 %."""
_HALVINGS = 60
"""Of the range in which an end lies: to a rounding error."""

Interval = tuple[float, float]


def interval_of_means(reference: Sequence[float], aligned: Sequence[float], error: float) -> Interval | None:
    """The interval of the mean of ``aligned`` minus that of ``reference``, on the same documents.

    Of documents that are right (1) or wrong (0) it is Tango's score interval, of others Student's t with
    ``error``, the standard error of the difference.

    Returns:
        None where documents are no matter of right or wrong and all differ by the same: how far others would
        differ they do not tell.
    """
    both = list(zip(reference, aligned, strict=True))
    if all(value in (0, 1) for pair in both for value in pair):
        gained = sum(after > before for before, after in both)
        lost = sum(after < before for before, after in both)
        return score_interval(gained, lost, len(both))
    difference = sum(after - before for before, after in both) / len(both)
    return student_interval(difference, error, len(both))


def student_interval(difference: float, error: float, documents: int) -> Interval | None:
    """Student's t of a ``difference`` with the standard ``error``; None where that is 0 or no number."""
    if not error > 0 or not math.isfinite(error):
        return None
    half = float(stdtrit(documents - 1, 0.975)) * error
    return difference - half, difference + half


def score_interval(gained: int, lost: int, documents: int) -> Interval:
    """The differences of two paired shares that the score test does not refuse.

    Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, Statistics in Medicine 17 (1998). It holds 0 where McNemar's test finds nothing.

    Args:
        gained: documents that the aligned model alone has right.
        lost: those that the reference alone has right.
        documents: all.
    """

    def statistic(difference: float) -> float:
        """How many standard errors what was seen is above ``difference``, by the likeliest shares that have
        it."""
        a, b = 2 * documents, (2 * documents - gained + lost) * difference - gained - lost
        c = -lost * difference * (1 - difference)
        share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)  # of documents that are lost
        variance = documents * (2 * share + difference * (1 - difference))
        above = gained - lost - documents * difference
        return above / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, above)

    seen = (gained - lost) / documents
    low = -1.0 if lost == documents else _crossing(lambda at: statistic(at) > SURE, -1.0, seen)
    high = 1.0 if gained == documents else _crossing(lambda at: statistic(at) > -SURE, seen, 1.0)
    return low, high


def _crossing(before: Callable[[float], bool], low: float, high: float) -> float:
    """Where ``before`` ends to hold between ``low`` and ``high``."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if before(middle) else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberDifference:
    """A task's share of the difference of a group."""

    weight: float
    """Of any scale."""
    difference: float
    error: float | None
    interval: Interval | None
    documents: Collection[int]
    """What tells its documents from others."""


def group_interval(difference: float, parts: Sequence[MemberDifference]) -> Interval | None:
    """The interval of a weighted mean of differences, from those of its ``parts``.

    The distances of their ends from their means are added as variances are (the method of variance estimates
    recovery: Zou and Donner, Construction of confidence limits about effect measures, Statistics in Medicine
    27 (2008)), those of tasks that share documents as they are, since these move together.

    Returns:
        None where one part has none.
    """
    intervals = [part.interval for part in parts]
    if not intervals or None in intervals:
        return None
    lows, highs = (
        [abs(one[end] - part.difference) if one else 0.0 for one, part in zip(intervals, parts)]
        for end in (0, 1)
    )
    return difference - _together(lows, parts), difference + _together(highs, parts)


def group_error(parts: Sequence[MemberDifference]) -> float | None:
    """Standard error of the weighted mean of differences; of tasks that share documents the most that it can
    be. None where one part has none."""
    errors = [part.error for part in parts if part.error is not None]
    return _together(errors, parts) if parts and len(errors) == len(parts) else None


def sharing(parts: Sequence[MemberDifference]) -> list[list[int]]:
    """The positions of ``parts``, those together that share documents, if by way of others."""
    groups: list[tuple[set[int], list[int]]] = []
    for position, part in enumerate(parts):
        documents, members, apart = set(part.documents), [position], []
        for group in groups:
            if documents.isdisjoint(group[0]):
                apart.append(group)
            else:
                documents |= group[0]
                members = group[1] + members
        groups = [*apart, (documents, members)]
    return [members for _, members in groups]


def _together(deviations: Sequence[float], parts: Sequence[MemberDifference]) -> float:
    total = sum(part.weight for part in parts)
    own = [part.weight / total * deviation for part, deviation in zip(parts, deviations, strict=True)]
    return math.hypot(*(sum(own[i] for i in members) for members in sharing(parts)))
