"""Planted rewards of many prompts, and the draws that a run would take of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kubealign_components.data.segments import Bools, Floats, Ints
from kubealign_components.draw_more.doubt import Draws, chance_of_change, resolved
from kubealign_components.draw_more.stage import DrawMoreConfig

Plant = Callable[[np.random.Generator, int, int], Floats]
"""Rewards of ``n`` draws of each of ``rows`` prompts, shape (rows, n)."""


def normal(spread: float) -> Plant:
    """Normal within prompts, around a level of each, with a log-normal standard deviation over prompts."""

    def plant(rng: np.random.Generator, rows: int, n: int) -> Floats:
        scale = np.exp(spread * rng.normal(size=(rows, 1)))
        return np.asarray(rng.normal(size=(rows, 1)) + scale * rng.normal(size=(rows, n)))

    return plant


def heavy_tails(rng: np.random.Generator, rows: int, n: int) -> Floats:
    """Student's t of three degrees of freedom within prompts."""
    return np.asarray(rng.normal(size=(rows, 1)) + rng.standard_t(3, (rows, n)))


def passes(a: float, b: float) -> Plant:
    """1 or 0, with a rate of each prompt from a beta distribution."""
    return lambda rng, rows, n: (rng.random((rows, n)) < rng.beta(a, b, (rows, 1))).astype(float)


def half_settled(rng: np.random.Generator, rows: int, n: int) -> Floats:
    """1 or 0: half of the prompts always the one or always the other, the rest at any rate."""
    rate = np.where(rng.random((rows, 1)) < 0.5, rng.integers(0, 2, (rows, 1)), rng.random((rows, 1)))
    return (rng.random((rows, n)) < rate).astype(float)


def scores(most: int, between: float, within: float) -> Plant:
    """Whole scores from 1 to ``most``, normal around a level of each prompt before they are rounded."""

    def plant(rng: np.random.Generator, rows: int, n: int) -> Floats:
        level = (most + 1) / 2 + between * rng.normal(size=(rows, 1))
        return np.clip(np.round(level + within * rng.normal(size=(rows, n))), 1, most)

    return plant


def tests_passed(rng: np.random.Generator, rows: int, n: int) -> Floats:
    """Share of eight tests that a program passes, all of them often."""
    right = rng.random((rows, n)) < 0.6 * rng.beta(0.5, 0.5, (rows, 1))
    return np.where(right, 1.0, np.round(8 * rng.beta(1, 2, (rows, n))) / 8)


def two_modes(rng: np.random.Generator, rows: int, n: int) -> Floats:
    """Near 0 or near 5, at a rate of each prompt."""
    upper = rng.random((rows, n)) < rng.beta(0.5, 0.5, (rows, 1))
    return np.asarray(5.0 * upper + 0.3 * rng.normal(size=(rows, n)))


def never_differing(rng: np.random.Generator, rows: int, n: int) -> Floats:
    """Normal, but for two fifths of the prompts, whose draws are all alike."""
    rewards = normal(0.5)(rng, rows, n)
    alike = rng.random(rows) < 0.4
    rewards[alike] = rewards[alike, :1]
    return rewards


def clipped(rng: np.random.Generator, rows: int, n: int) -> Floats:
    """Normal, cut off at both ends."""
    return np.clip(normal(0.5)(rng, rows, n), -1, 1)


PLANTED: Mapping[str, Plant] = {
    "1 or 0, any rate": passes(1, 1),
    "1 or 0, mostly 0": passes(0.5, 2),
    "1 or 0, rates near the ends": passes(0.3, 0.3),
    "1 or 0, half of the prompts settled": half_settled,
    "share of 8 tests": tests_passed,
    "scores of 5": scores(5, 1, 0.7),
    "scores of 10": scores(10, 2, 1),
    "scores of 10, noisy": scores(10, 1, 2.5),
    "normal, one spread": normal(0),
    "normal, spreads differ by e": normal(1),
    "normal, spreads differ by e^1.5": normal(1.5),
    "Student's t": heavy_tails,
    "two modes": two_modes,
    "normal, 40 % never differ": never_differing,
    "normal, cut off": clipped,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """What a range of draws gave, against all draws of every prompt."""

    tokens: float
    """Share of the draws, which stand for tokens."""
    same: float
    """Of the prompts that have a pair, the share whose best and worst reward are those of all draws."""
    near: float
    """As ``same``, each within the share of the mean gap that was asked for."""
    gap: float
    """Mean of best minus worst, as a share of that of all draws."""
    stopped: Mapping[int, float]
    """Share of the prompts by their draws."""


def replay(rewards: Floats, first: int, same: float = 0.95, within: float = 0.0) -> Replay:
    """Take draws of ``rewards``, shape (rows, n), from ``first`` to n, as a run does."""
    rows, n = rewards.shape
    drawn, number = np.full(rows, first), first
    while number < n:
        draws = taken(rewards, drawn)
        config = DrawMoreConfig(drawn=number, to=n, same=same, within=within)
        chance = chance_of_change(draws, n, within * float(draws.gap.mean()))
        done = resolved(chance, draws.gap > 0, config.held)
        number = min(2 * number, n)
        drawn = np.where(done, drawn, number)
    return _compared(rewards, np.arange(n) < drawn[:, None], drawn, within)


def taken(rewards: Floats, drawn: Ints) -> Draws:
    """The first ``drawn`` of each row of ``rewards``."""
    own = np.arange(rewards.shape[1]) < drawn[:, None]
    return Draws(row=np.repeat(np.arange(len(rewards)), drawn), reward=rewards[own], rows=len(rewards))


def _compared(rewards: Floats, own: Bools, drawn: Ints, within: float) -> Replay:
    best, worst = np.where(own, rewards, -np.inf).max(1), np.where(own, rewards, np.inf).min(1)
    top, bottom = rewards.max(1), rewards.min(1)
    paired = top > bottom
    gap = float((top - bottom).mean())
    slack = within * gap
    near = (best >= top - slack) & (worst <= bottom + slack) & (best > worst)
    return Replay(
        tokens=float(drawn.mean() / rewards.shape[1]),
        same=float(((best == top) & (worst == bottom))[paired].mean()),
        near=float(near[paired].mean()),
        gap=float((best - worst).mean()) / gap,
        stopped={int(k): float((drawn == k).mean()) for k in np.unique(drawn)},
    )
