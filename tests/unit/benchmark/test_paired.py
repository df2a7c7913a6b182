"""Paired differences against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from kubealign_components.benchmark.paired import paired_error

SCORES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=40)


@given(SCORES)
def test_the_error_of_a_mean_is_that_of_the_paired_t_test(scores: list[tuple[int, int]]) -> None:
    reference, aligned = zip(*scores)
    error = paired_error("mean", reference, aligned, seed=0)
    differences = np.array(aligned) - np.array(reference)
    assert error is not None
    if len(set(differences)) == 1:
        assert error == 0
    else:
        assert differences.mean() / error == pytest.approx(ttest_rel(aligned, reference).statistic)


def test_the_error_of_a_perplexity_is_near_the_delta_methods() -> None:
    generator = np.random.default_rng(5)
    reference = generator.normal(-2.0, 0.5, 400)
    aligned = reference + generator.normal(0.1, 0.2, 400)
    error = paired_error("perplexity", reference.tolist(), aligned.tolist(), seed=1)
    one, other = math.exp(-reference.mean()), math.exp(-aligned.mean())
    influence = -other * (aligned - aligned.mean()) + one * (reference - reference.mean())
    assert error == pytest.approx(influence.std(ddof=1) / 20, rel=0.1)
    unpaired = math.hypot(one * reference.std() / 20, other * aligned.std() / 20)
    assert error < unpaired / 2
    weighted = [[value, 1.0] for value in reference], [[value, 1.0] for value in aligned]
    assert paired_error("weighted_perplexity", *weighted, seed=1) == pytest.approx(error)
    assert paired_error("bits_per_byte", *weighted, seed=1) == pytest.approx(
        (aligned - reference).std(ddof=1) / 20 / math.log(2), rel=0.1
    )


def test_what_cannot_be_compared_in_pairs_has_no_error() -> None:
    assert paired_error("", [("a", "b")] * 3, [("a", "c")] * 3, seed=0) is None
    assert paired_error("mean", [1.0], [0.0], seed=0) is None
    assert paired_error("mean", [1.0, 0.0], [math.nan, 0.0], seed=0) is None
    assert paired_error("perplexity", [-1.0, -2.0], [math.nan, -2.0], seed=0) is None
