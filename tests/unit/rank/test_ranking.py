"""Strengths from comparisons: the fit against SciPy's optimiser, errors that hold, few pairs for nearly the
ranking of all."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import kendalltau

from kubealign_components.rank.active import ActiveRanking
from kubealign_components.rank.bradley_terry import RIDGE, Comparisons, Strengths, fit

Floats = NDArray[np.float64]
Planted = Callable[[tuple[int, int]], tuple[float, float]]


def planted_judge(strength: Floats, *, position: float, noise: float, seed: int) -> Planted:
    """A judge of known strengths that prefers what it is shown first, and has an opinion of its own on each
    pair and on each showing."""
    rng = np.random.default_rng(seed)
    count = len(strength)
    of_pair, of_showing = rng.normal(0, noise, (2, count, count))

    def outcome(pair: tuple[int, int]) -> tuple[float, float]:
        one, other = pair
        gap = strength[one] - strength[other] + of_pair[one, other]
        first = expit(gap + position + of_showing[one, other])
        return float(first), float(expit(gap - position - of_showing[other, one]))

    return outcome


def rank_with(judge: Planted, ranking: ActiveRanking) -> Strengths:
    """Ask until nothing is asked for."""
    while pairs := ranking.ask():
        for pair in pairs:
            ranking.tell(pair, judge(pair))
    return ranking.strengths


def of_all_pairs(judge: Planted, count: int) -> Strengths:
    pairs = list(combinations(range(count), 2))
    everything = ActiveRanking(count=count, most=len(pairs), resolved=1, seed=0)
    everything.outcomes = {pair: judge(pair) for pair in pairs}
    return fit(count, everything.comparisons)


def compared(pairs: list[tuple[int, int, float, float]]) -> Comparisons:
    one, other, first, second = zip(*pairs, strict=True)
    return Comparisons(
        one=np.array(one), other=np.array(other), shown_first=np.array(first), shown_second=np.array(second)
    )


PROBABILITIES = st.floats(0, 1)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), PROBABILITIES, PROBABILITIES).filter(
            lambda pair: pair[0] != pair[1]
        ),
        min_size=1,
        max_size=14,
    )
)
def test_the_fit_is_the_maximum_that_a_general_optimiser_finds(
    pairs: list[tuple[int, int, float, float]],
) -> None:
    observed = compared(pairs)

    def loss(parameters: Floats) -> float:
        gap = parameters[observed.one] - parameters[observed.other]
        log_odds = np.stack([gap + parameters[5], gap - parameters[5]])
        preferred = np.stack([observed.shown_first, observed.shown_second])
        likelihood = preferred * -np.logaddexp(0, -log_odds) + (1 - preferred) * -np.logaddexp(0, log_odds)
        return float(-likelihood.sum() + RIDGE / 2 * parameters @ parameters)

    peer = minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-7})
    fitted = fit(5, observed)
    assert np.append(fitted.value, fitted.position) == pytest.approx(
        peer.x - [*[peer.x[:5].mean()] * 5, 0], abs=1e-3
    )
    assert fitted.value.sum() == pytest.approx(0, abs=1e-9)
    assert (fitted.error > 0).all()


def test_a_judge_that_loves_the_first_place_has_no_say_in_the_ranking() -> None:
    strength = np.array([0.9, 0.3, -0.1, -1.1])
    fair, biased = (
        of_all_pairs(planted_judge(strength, position=position, noise=0, seed=0), 4)
        for position in (0.0, 2.0)
    )
    assert fair.position == pytest.approx(0, abs=1e-6)
    assert biased.position == pytest.approx(2, abs=0.1)
    assert fair.value == pytest.approx(strength, abs=0.05)
    assert biased.value == pytest.approx(strength, abs=0.1)


def test_completions_that_trade_places_trade_strengths() -> None:
    pairs = [(0, 1, 0.9, 0.7), (1, 2, 0.4, 0.2), (0, 2, 0.6, 0.6)]
    swapped = [(other, one, 1 - second, 1 - first) for one, other, first, second in pairs]
    one, same = fit(3, compared(pairs)), fit(3, compared(swapped))
    assert one.value == pytest.approx(same.value)
    assert one.error == pytest.approx(same.error)
    assert one.position == pytest.approx(same.position)


def test_what_was_never_compared_is_average_and_least_sure() -> None:
    fitted = fit(4, compared([(0, 1, 0.9, 0.8), (1, 2, 0.7, 0.6), (0, 2, 0.95, 0.9)]))
    assert np.argmax(fitted.error) == 3
    assert fitted.error[3] > 2 * fitted.error[:3].max()


def test_a_judge_that_contradicts_itself_has_larger_errors() -> None:
    strength = np.linspace(-1, 1, 8)
    calm, erratic = (
        of_all_pairs(planted_judge(strength, position=0.5, noise=noise, seed=3), 8) for noise in (0.05, 1.0)
    )
    assert erratic.dispersion > 10 * calm.dispersion
    assert erratic.error.mean() > 3 * calm.error.mean()


@pytest.mark.parametrize("count", [8, 10, 16])
@pytest.mark.parametrize(("position", "noise"), [(1.0, 0.2), (2.0, 0.4), (-0.5, 0.0)])
def test_three_comparisons_a_completion_rank_nearly_as_all_pairs_do(
    count: int, position: float, noise: float
) -> None:
    taus, covered, asked = [], [], []
    for seed in range(8):
        strength = np.random.default_rng(100 + seed).normal(0, 1.5, count)
        judge = planted_judge(strength, position=position, noise=noise, seed=seed)
        ranking = ActiveRanking(count=count, most=3 * count, resolved=0.99, seed=seed)
        few, everything = rank_with(judge, ranking), of_all_pairs(judge, count)
        taus.append(kendalltau(few.value, everything.value).statistic)
        covered.append(np.abs(few.value - everything.value) < 1.96 * few.error)
        asked.append(len(ranking.outcomes))
    assert max(asked) <= 3 * count
    assert np.mean(taus) >= 0.9
    assert np.mean(covered) >= 0.9


def test_active_pairs_rank_better_than_random_ones_of_the_same_number() -> None:
    active, random = [], []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        judge = planted_judge(rng.normal(0, 2, 16), position=1, noise=0.3, seed=seed)
        truth = of_all_pairs(judge, 16).value
        ranking = ActiveRanking(count=16, most=32, resolved=1, seed=seed)
        active.append(kendalltau(rank_with(judge, ranking).value, truth).statistic)
        other = ActiveRanking(count=16, most=32, resolved=1, seed=seed)
        for pair in rng.permutation(list(combinations(range(16), 2)))[:32].tolist():
            other.tell((pair[0], pair[1]), judge((pair[0], pair[1])))
        random.append(kendalltau(fit(16, other.comparisons).value, truth).statistic)
    assert np.mean(active) > np.mean(random) + 0.02


def test_a_ranking_that_is_clear_asks_for_less() -> None:
    judge = planted_judge(np.linspace(-4, 4, 8), position=1, noise=0, seed=0)
    eager = ActiveRanking(count=8, most=24, resolved=0.97, seed=0)
    thorough = ActiveRanking(count=8, most=24, resolved=1, seed=0)
    clear = rank_with(judge, eager)
    rank_with(judge, thorough)
    assert len(eager.outcomes) < len(thorough.outcomes) == 24
    assert np.argsort(clear.value).tolist() == list(range(8))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(1, 30), st.integers(0, 5))
def test_no_pair_is_asked_twice_or_over_the_budget_and_refused_ones_not_again(
    count: int, most: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    judge = planted_judge(rng.normal(0, 1, count), position=0, noise=0.3, seed=seed)
    ranking = ActiveRanking(count=count, most=most, resolved=1, seed=seed)
    seen: list[tuple[int, int]] = []
    while pairs := ranking.ask():
        seen += pairs
        for pair in pairs:
            ranking.tell(pair, None if rng.random() < 0.3 else judge(pair))
    assert len(set(seen)) == len(seen)
    assert len(ranking.outcomes) <= most
    assert all(0 <= one < other < count for one, other in seen)
    if len(ranking.outcomes) < most:
        assert len(seen) == count * (count - 1) // 2
