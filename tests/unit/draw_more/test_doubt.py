"""How sure the draws so far are of a prompt's best and worst: by replay, by invariants, by SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import polygamma, psi
from scipy.stats import norm

from kubealign_components.draw_more import doubt
from kubealign_components.draw_more.doubt import Draws, chance_of_change, resolved
from support.draws import PLANTED, Replay, replay, taken

ROWS, ALL = 1500, 16


def played(name: str, within: float = 0.0) -> Replay:
    return replay(PLANTED[name](np.random.default_rng(1), ROWS, ALL), 4, within=within)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("1 or 0, any rate", 0.5), ("1 or 0, mostly 0", 0.6), ("1 or 0, rates near the ends", 0.65)],
)
def test_a_reward_of_two_values_keeps_its_pairs_at_fewer_tokens(name: str, tokens: float) -> None:
    made = played(name)
    assert made.same >= 0.93 and made.tokens <= tokens
    assert made.stopped[4] > 0.25, "a prompt that has both values is settled"


@pytest.mark.parametrize("name", ["normal, one spread", "normal, spreads differ by e", "two modes"])
def test_ranks_of_a_continuous_reward_settle_nothing_and_hardly_any_prompt_stops(name: str) -> None:
    made = played(name)
    assert made.same >= 0.93 and made.tokens > 0.9


def test_pairs_are_as_near_as_asked_for_and_prompts_of_little_spread_stop() -> None:
    made = played("normal, spreads differ by e^1.5", within=0.25)
    assert made.near >= 0.93 and made.tokens <= 0.6
    assert made.same < 0.5, "which pairs of all draws would be is not held"


def test_prompts_whose_rewards_never_differ_are_left_at_once() -> None:
    made = played("normal, 40 % never differ")
    assert made.same >= 0.93 and made.stopped[4] >= 0.35


@pytest.mark.parametrize("name", ["1 or 0, any rate", "share of 8 tests", "normal, spreads differ by e"])
@pytest.mark.parametrize("drawn", [4, 8])
def test_as_many_pairs_change_as_their_chances_say(name: str, drawn: int) -> None:
    rewards = PLANTED[name](np.random.default_rng(2), ROWS, ALL)
    draws = taken(rewards, np.full(ROWS, drawn))
    slack = 0.1 * float(draws.gap.mean())
    low, high = draws.bounds
    changed = (rewards.min(1) < low - slack) | (rewards.max(1) > high + slack)
    assert chance_of_change(draws, ALL, slack).mean() == pytest.approx(changed.mean(), abs=0.04)


Prompts = st.lists(
    st.lists(st.one_of(st.integers(0, 2), st.floats(-3, 3, width=32)), max_size=5), min_size=1, max_size=12
)


def made_of(prompts: list[list[float]], scale: float = 1.0, level: float = 0.0) -> Draws:
    flat = [scale * reward + level for rewards in prompts for reward in rewards]
    row = np.repeat(np.arange(len(prompts)), [len(rewards) for rewards in prompts])
    return Draws(row=row, reward=np.array(flat, np.float64), rows=len(prompts))


@given(prompts=Prompts, to=st.integers(2, 9), slack=st.floats(0, 2))
@settings(max_examples=60, deadline=None)
def test_a_chance_is_one_and_what_is_drawn_whole_has_none(
    prompts: list[list[float]], to: int, slack: float
) -> None:
    draws = made_of(prompts)
    if not len(draws.reward):
        return
    chance = chance_of_change(draws, to, slack)
    assert ((chance >= -1e-9) & (chance <= 1 + 1e-9)).all()
    number = draws.number
    assert (chance[(number >= 2) & (number >= to)] == 0).all()
    assert (chance[number < 2] == 1).all(), "one reward is no pair"
    assert (chance_of_change(draws, to, slack + 1) <= chance + 1e-9).all()
    assert (chance_of_change(draws, to + 1, slack) >= chance - 1e-9).all()


@given(prompts=Prompts)
@settings(max_examples=40, deadline=None)
def test_the_unit_of_a_reward_does_not_matter(prompts: list[list[float]]) -> None:
    draws, other = made_of(prompts), made_of(prompts, scale=4.0)
    if len(draws.reward):
        assert chance_of_change(draws, 8, 0.5) == pytest.approx(chance_of_change(other, 8, 2.0), abs=1e-6)


@given(chance=st.lists(st.floats(0, 1), min_size=1, max_size=30), same=st.floats(0.5, 0.99))
@settings(max_examples=100)
def test_as_many_stop_as_keep_the_share(chance: list[float], same: float) -> None:
    chances, differs = np.array(chance), np.arange(len(chance)) % 2 == 0
    done = resolved(chances, differs, same)
    pairs = differs.sum() + chances[~differs].sum()
    assert chances[done].sum() <= (1 - same) * pairs + 1e-6
    assert done[chances == 0].all()
    if not done.all():
        assert chances[done].sum() + chances[~done].min() > (1 - same) * pairs, "one more would do"


@pytest.mark.parametrize("freedom", range(1, 12))
def test_what_is_known_of_a_variance_is_what_scipy_says(freedom: int) -> None:
    half = freedom / 2
    assert doubt._bias(freedom) == pytest.approx(psi(half) - math.log(half), abs=1e-12)
    assert doubt._noise(freedom) == pytest.approx(polygamma(1, half), abs=1e-12)


def test_the_normal_curve_is_that_of_scipy() -> None:
    x = np.linspace(-6, 6, 400)
    assert doubt._normal_cdf(x) == pytest.approx(norm.cdf(x), abs=2e-4)
