"""Bounds that hold for all variants at once, held against planted truth and against brute force."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kubealign_components.data.bootstrap import bootstrap_interval
from kubealign_components.data.bounds import on_front, pairwise_intervals, simultaneous_intervals


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
        interval = bootstrap_interval(values[best], seed=seed, resamples=400)
        alone += interval is not None and interval[0] > 0
    assert joint / sweeps < 0.1
    assert alone / sweeps > 0.1


def test_the_bounds_are_narrower_than_bonferronis_where_variants_go_together() -> None:
    values = np.random.default_rng(2).standard_normal(100) + 0.1 * gains(np.random.default_rng(3), 20, 100)
    low, high = simultaneous_intervals(values, seed=0)
    apart = [bootstrap_interval(own, seed=0, confidence=1 - 0.05 / 20) for own in values]
    assert (high - low).mean() < 0.85 * np.mean([own[1] - own[0] for own in apart if own])


@pytest.mark.parametrize("prompts", [2, 10, 20])
@pytest.mark.parametrize("skewed", [False, True])
def test_bounds_on_few_prompts_hold_as_often_as_they_say(prompts: int, skewed: bool) -> None:
    """Of sweeps of eight variants of true gain 0, all intervals hold 0 in about 95 % or more, also where a
    few prompts lose much."""
    draw, held, sweeps = np.random.default_rng(5), 0, 100
    for seed in range(sweeps):
        values = draw.standard_normal((8, prompts))
        if skewed and prompts > 2:
            values = 1 - draw.exponential(size=(8, prompts))
        low, high = simultaneous_intervals(values, seed=seed, resamples=400)
        held += bool(((low <= 0) & (high >= 0)).all())
    assert held / sweeps >= 0.9


def test_a_row_that_never_varies_is_no_surer_than_the_others() -> None:
    low, high = simultaneous_intervals(np.array([[0.5] * 6, [0.1] * 6]), seed=0)
    assert low.tolist() == high.tolist()
    assert np.allclose(low, [0.5, 0.1])
    values = np.array([[0.1] * 6, [0.0, 1.0] * 3, [0.0, 0.1] * 3])
    low, high = simultaneous_intervals(values, seed=0)
    assert high[0] - low[0] == pytest.approx((high - low).max())
    assert low[0] < 0.1 < high[0]


def test_a_row_of_which_one_column_differs_has_an_interval_and_leaves_the_others_theirs() -> None:
    varied = gains(np.random.default_rng(6), 3, 30)
    once = np.zeros(30)
    once[4] = 1.0
    low, high = simultaneous_intervals(np.vstack([varied, once]), seed=0)
    alone = np.subtract(*simultaneous_intervals(varied, seed=0))
    assert np.isfinite(low).all()
    assert low[3] < 0 < high[3]
    assert (low - high)[:3] == pytest.approx(alone, rel=0.25)


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


def test_bounds_need_no_torch() -> None:
    """Stages of rows run as if it were not installed, which not all of SciPy bears."""
    program = (
        "import sys; sys.modules['torch'] = None; import numpy as np; "
        "from kubealign_components.data.bounds import simultaneous_intervals as intervals; "
        "print(*(len(intervals(np.arange(3.0 * n).reshape(3, n) ** 2, seed=0)) for n in (2, 10)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "2 2\n", done.stderr
