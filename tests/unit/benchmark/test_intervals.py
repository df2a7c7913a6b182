"""Intervals of paired differences against the likelihood, exact coverage and closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial, ttest_rel

from kubealign_components.benchmark.intervals import (
    SURE,
    Interval,
    MemberDifference,
    group_error,
    group_interval,
    interval_of_means,
    score_interval,
    sharing,
)

TABLES = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 30)).filter(
    lambda all_: sum(all_) > 1
)


def refused(difference: float, gained: int, lost: int, documents: int) -> float:
    """The score statistic of ``difference``, with the likeliest shares looked for, not solved for."""
    least, most = max(0.0, -difference), (1 - difference) / 2

    def unlikely(share: float) -> float:
        shares = (share + difference, share, 1 - 2 * share - difference)
        counts = (gained, lost, documents - gained - lost)
        return -sum(count * math.log(max(p, 1e-300)) for count, p in zip(counts, shares) if count)

    share = float(
        minimize_scalar(unlikely, bounds=(least, most), method="bounded", options={"xatol": 1e-12}).x
    )
    variance = documents * (2 * share + difference - difference**2)
    return (gained - lost - documents * difference) / math.sqrt(variance)


@given(TABLES)
def test_the_score_test_just_refuses_what_lies_beyond_the_ends(table: tuple[int, int, int]) -> None:
    gained, lost, _ = table
    documents = sum(table)
    low, high = score_interval(gained, lost, documents)
    assert -1 <= low <= (gained - lost) / documents <= high <= 1
    assert low < high
    if low > -1 + 1e-9 and lost < documents:
        assert refused(low, gained, lost, documents) == pytest.approx(SURE, rel=1e-3)
    if high < 1 - 1e-9 and gained < documents:
        assert refused(high, gained, lost, documents) == pytest.approx(-SURE, rel=1e-3)
    mirrored = score_interval(lost, gained, documents)
    assert (-mirrored[1], -mirrored[0]) == pytest.approx((low, high), abs=1e-9)
    if gained + lost:
        mcnemar = abs(gained - lost) / math.sqrt(gained + lost)
        assert (low <= 0 <= high) == (mcnemar <= SURE)


def test_of_models_that_are_alike_on_few_documents_the_interval_is_wide() -> None:
    reach = SURE**2 / (10 + SURE**2)
    assert score_interval(0, 0, 10) == pytest.approx((-reach, reach))
    assert interval_of_means([1.0] * 10, [1.0] * 10, 0.0) == pytest.approx((-reach, reach))
    low, high = score_interval(5, 0, 5)
    assert 0 < low < 0.2 < 1 == high


@pytest.mark.parametrize("documents", [8, 25])
def test_it_misses_about_as_often_as_it_says(documents: int) -> None:
    """Exact: over all that there is to see."""
    tables = [(up, down) for up, down in product(range(documents + 1), repeat=2) if up + down <= documents]
    ends = np.array([score_interval(*one, documents) for one in tables])
    counts = np.array([(up, down, documents - up - down) for up, down in tables])
    held = []
    for gained, lost in product((0.01, 0.05, 0.1, 0.2, 0.4), repeat=2):
        chance = multinomial.pmf(counts, documents, (gained, lost, 1 - gained - lost))
        inside = (ends[:, 0] <= gained - lost) & (gained - lost <= ends[:, 1])
        held.append(float(chance[inside].sum()))
    assert min(held) > 0.92
    assert np.mean(held) > 0.95


def test_of_graded_documents_it_is_students() -> None:
    reference, aligned = [0.1, 0.5, 0.9, 0.4], [0.2, 0.4, 1.0, 0.9]
    error = float(np.std(np.subtract(aligned, reference), ddof=1) / 2)
    theirs = ttest_rel(aligned, reference).confidence_interval()
    assert interval_of_means(reference, aligned, error) == pytest.approx((theirs.low, theirs.high))
    assert interval_of_means([0.5, 0.5], [0.5, 0.5], 0.0) is None


def part(
    documents: Sequence[int],
    error: float | None = 0.1,
    interval: Interval | None = (-0.3, 0.4),
    weight: float = 1.0,
) -> MemberDifference:
    return MemberDifference(
        weight=weight, difference=0.0, error=error, interval=interval, documents=documents
    )


def test_parts_that_share_documents_add_up_as_they_are_and_others_as_variances_do() -> None:
    apart, together = [part([1]), part([2])], [part([1, 2]), part([2, 3])]
    assert group_interval(0.5, apart) == pytest.approx((0.5 - 0.3 / math.sqrt(2), 0.5 + 0.4 / math.sqrt(2)))
    assert group_interval(0.5, together) == pytest.approx((0.2, 0.9))
    assert (group_error(apart), group_error(together)) == pytest.approx((0.1 / math.sqrt(2), 0.1))
    assert group_error([part([1], 0.3, weight=3), part([2], 0.4, weight=0)]) == pytest.approx(0.3)
    assert group_interval(0.5, [part([1]), part([2], interval=None)]) is None
    assert group_error([part([1]), part([2], error=None)]) is None
    assert group_error([]) is None
    assert group_interval(0.0, []) is None


@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=3), min_size=1, max_size=6))
def test_parts_are_together_where_documents_lead_from_one_to_the_other(documents: list[list[int]]) -> None:
    groups = sharing([part(own) for own in documents])
    assert sorted(position for members in groups for position in members) == list(range(len(documents)))
    covers = [set().union(*(documents[i] for i in members)) for members in groups]
    assert all(one.isdisjoint(other) for one in covers for other in covers if one is not other)
