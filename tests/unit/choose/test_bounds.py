"""Bounds that hold for all variants at once, held against planted truth and against brute force."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kubealign_components.choose.bounds import on_front, pairwise_intervals, simultaneous_intervals
from kubealign_components.data.bootstrap import bootstrap_interval


def gains(draw: np.random.Generator, variants: int, prompts: int) -> np.ndarray:
    """Gains of true mean 0, of variants that are alike on the same prompts, shape (variants, prompts)."""
    shared = draw.standard_normal(prompts)
    return 0.7 * shared + 0.7 * draw.standard_normal((variants, prompts))


def test_the_best_of_many_is_not_called_better_than_it_is() -> None:
    """Of sweeps in which nothing is gained, an interval leaves out 0 in hardly more than the 5 % that are
    promised; one of the best variant alone does so several times as often."""
    draw, joint, alone = np.random.default_rng(1), 0, 0
    sweeps = 200
    for seed in range(sweeps):
        values = gains(draw, 12, 80)
        low, high = simultaneous_intervals(values, seed=seed, resamples=400)
        joint += bool((low > 0).any() or (high < 0).any())
        best = int(values.mean(axis=1).argmax())
        alone += bootstrap_interval(values[best], seed=seed, resamples=400)[0] > 0
    assert joint / sweeps < 0.1
    assert alone / sweeps > 0.1


def test_the_bounds_are_narrower_than_bonferronis_where_variants_go_together() -> None:
    values = np.random.default_rng(2).standard_normal(100) + 0.1 * gains(np.random.default_rng(3), 20, 100)
    low, high = simultaneous_intervals(values, seed=0)
    apart = [bootstrap_interval(own, seed=0, confidence=1 - 0.05 / 20) for own in values]
    assert (high - low).mean() < 0.85 * np.mean([end - start for start, end in apart])


def test_what_never_varies_is_known() -> None:
    low, high = simultaneous_intervals(np.array([[0.5] * 6, [0.1] * 6]), seed=0)
    assert low.tolist() == high.tolist()
    assert np.allclose(low, [0.5, 0.1])
    low, high = simultaneous_intervals(np.array([[0.1] * 6, [0.0, 1.0] * 3]), seed=0)
    assert low[0] == high[0]
    assert low[1] < 0.5 < high[1]


def test_differences_of_pairs_are_the_same_from_both_sides() -> None:
    values = gains(np.random.default_rng(4), 4, 30)
    low, high = pairwise_intervals(values, seed=0)
    means = values.mean(axis=1)
    assert np.allclose(low, -high.T)
    assert np.allclose(np.diag(low), 0)
    assert np.allclose((low + high) / 2, means[:, None] - means[None, :])
    assert pairwise_intervals(values[:1], seed=0)[0].tolist() == [[0.0]]


@given(costs=arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 3)), elements=st.integers(0, 3)))
def test_the_front_is_what_nothing_outdoes(costs: np.ndarray) -> None:
    def outdone(row: np.ndarray) -> bool:
        return any(all(other <= row) and any(other < row) for other in costs)

    assert on_front(costs).tolist() == [not outdone(row) for row in costs]
