"""The random choices of one pair and pass, all from one seeded generator, before any score is seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kubealign_components.data.seeds import generator_for

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Odds:
    """What the draws go by."""

    principles: int
    """How many there are to draw from."""
    p: float
    """Of the geometric distribution of how many are drawn."""
    most: int
    """Where that distribution is truncated, 1 to ``principles``."""
    negation: float
    """Probability of each drawn principle to be negated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """One draw of principles, and the coins of the row that is made with it."""

    principles: tuple[int, ...]
    """Positions in the principle set, in random order, each once."""
    negated: tuple[bool, ...]
    """For each of them whether its negative statement is used."""
    flip: float
    """The label is flipped when this is below the row's flip rate; in [0, 1), like all coins."""
    tie: float
    """Decides a tie that is kept."""
    swapped: bool
    """Whether the second completion is shown first."""
    rules: tuple[float, ...]
    """A rule speaks when its coin is below its probability."""


def truncated_geometric(p: float, most: int) -> Floats:
    """P(1), …, P(most) of a geometric distribution that is drawn again until it is at most ``most``.

    Args:
        p: probability of stopping at each step, in (0, 1].
        most: largest value.

    Returns:
        Probabilities, shape (most,), that sum to 1.
    """
    k = np.arange(most)
    weights = p * (1.0 - p) ** k
    probabilities: Floats = weights / weights.sum()
    return probabilities


def draw(odds: Odds, rules: int, seed: int, *names: str | int) -> Draw:
    """The draw that belongs to ``names``: the ids of a pair and the number of the pass.

    Uniform numbers alone are taken from the generator, always as many and in the same order: NumPy
    keeps that stream over its versions, and a further rule leaves all other choices as they are.

    Args:
        odds: what the draw goes by.
        rules: number of coins for rules.
        seed: the run's seed.
        names: what the draw is for.
    """
    n = odds.principles
    uniform = generator_for(seed, "aggregate", *names).random(2 * n + 4 + rules)
    order = np.argsort(uniform[:n], kind="stable")
    # Inverse CDF; the sum of the probabilities may round to just below 1.
    cumulative = np.cumsum(truncated_geometric(odds.p, odds.most))
    count = min(int(np.searchsorted(cumulative, uniform[2 * n], side="right")) + 1, odds.most)
    chosen = order[:count]
    return Draw(
        principles=tuple(chosen.tolist()),
        negated=tuple((uniform[n : 2 * n][chosen] < odds.negation).tolist()),
        flip=float(uniform[2 * n + 1]),
        tie=float(uniform[2 * n + 2]),
        swapped=bool(uniform[2 * n + 3] < 0.5),
        rules=tuple(uniform[2 * n + 4 :].tolist()),
    )
