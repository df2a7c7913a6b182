"""Which completions are compared next: pairs whose order is least sure, and of which most can be learnt.

After a first round in which each completion meets two others, every pair has a score: the probability that
it is ordered wrongly so far, times what a comparison of it would tell about the strengths (the fall of their
entropy: D. J. C. MacKay, Information-Based Objective Functions for Active Data Selection, Neural Computation
4, 1992; for pairs, X. Chen et al., Pairwise Ranking Aggregation in a Crowdsourced Setting, WSDM 2013). Within
a round the covariance is updated after each choice, so that one round does not ask the same thing twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from scipy.special import expit, ndtr

from kubealign_components.data.segments import Floats, Ints
from kubealign_components.rank.bradley_terry import Comparisons, Strengths, fit

ROUNDS = 8
"""Rounds after the first in which the rest of the comparisons is asked for."""

PositionPair = tuple[int, int]
"""Positions of two completions, the smaller first."""


@dataclass(slots=True)
class ActiveRanking:
    """The comparisons of one prompt's completions: :meth:`ask` for pairs, :meth:`tell` what became of them,
    until none are asked for."""

    count: int
    """Of completions."""
    most: int
    """Comparisons at most."""
    resolved: float
    """Expected Kendall's tau with the true order from which on nothing is asked."""
    seed: int
    """Of the first round."""
    outcomes: dict[PositionPair, tuple[float, float]] = field(default_factory=dict)
    """What became of each pair: probabilities that its first one is preferred, shown first and second."""
    refused: set[PositionPair] = field(default_factory=set)
    """Pairs that cannot be compared."""
    _fitted: Strengths | None = None

    def ask(self) -> list[PositionPair]:
        """The pairs of the next round; none when the ranking is finished, or nothing is there to compare."""
        if self.count < 2:
            return []
        room = self.most - len(self.outcomes)
        rest = [
            p for p in combinations(range(self.count), 2) if p not in self.outcomes and p not in self.refused
        ]
        if not self.outcomes and not self.refused:
            return self._first_round()[:room]
        if room <= 0 or not rest or self.expected_tau >= self.resolved:
            return []
        at_once = max(1, -(-(self.most - self.count) // ROUNDS))
        return self._most_telling(rest, min(room, at_once, len(rest)))

    def tell(self, pair: PositionPair, outcome: tuple[float, float] | None) -> None:
        """What became of ``pair``; None where it cannot be compared."""
        self._fitted = None
        if outcome is None:
            self.refused.add(pair)
        else:
            self.outcomes[pair] = outcome

    @property
    def strengths(self) -> Strengths:
        """What all outcomes say of the completions."""
        if self._fitted is None:
            self._fitted = fit(self.count, self.comparisons)
        return self._fitted

    @property
    def comparisons(self) -> Comparisons:
        """All outcomes."""
        pairs = np.array(list(self.outcomes), dtype=np.int64).reshape(-1, 2)
        preferred = np.array(list(self.outcomes.values()), dtype=np.float64).reshape(-1, 2)
        return Comparisons(
            one=pairs[:, 0], other=pairs[:, 1], shown_first=preferred[:, 0], shown_second=preferred[:, 1]
        )

    @property
    def compared(self) -> set[int]:
        """Positions of completions that were compared with another."""
        return {position for pair in self.outcomes for position in pair}

    @property
    def expected_tau(self) -> float:
        """Kendall's tau to be expected between the values as fitted and the true ones."""
        one, other = np.triu_indices(self.count, 1)
        return 1 - 2 * float(_doubt(self.strengths, self.strengths.covariance, one, other).mean())

    def _first_round(self) -> list[PositionPair]:
        """A ring through all completions in random order."""
        ring = np.random.default_rng(self.seed).permutation(self.count).tolist()
        neighbours = {(min(pair), max(pair)) for pair in zip(ring, [*ring[1:], ring[0]])}
        return sorted(neighbours)

    def _most_telling(self, rest: list[PositionPair], number: int) -> list[PositionPair]:
        """The ``number`` pairs of ``rest`` with the highest score, one after the other."""
        strengths = self.strengths
        covariance = strengths.covariance.copy()
        chosen: list[PositionPair] = []
        for _ in range(number):
            one, other = np.array(rest).T
            learnt = _information(strengths, one, other) / strengths.dispersion
            variance = _difference_variance(covariance, one, other)
            doubt = _doubt(strengths, covariance, one, other)
            best = int(np.argmax(doubt * np.log1p(learnt * variance)))
            pair = rest.pop(best)
            chosen.append(pair)
            column = covariance[:, pair[0]] - covariance[:, pair[1]]
            factor = learnt[best] / (1 + learnt[best] * variance[best])
            covariance -= factor * np.outer(column, column)
        return chosen


def _information(strengths: Strengths, one: Ints, other: Ints) -> Floats:
    """Fisher information on the difference of each pair from a vote in either order."""
    gap = strengths.value[one] - strengths.value[other]
    probability = expit(np.stack([gap + strengths.position, gap - strengths.position]))
    return np.asarray((probability * (1 - probability)).sum(axis=0))


def _difference_variance(covariance: Floats, one: Ints, other: Ints) -> Floats:
    variance = covariance[one, one] + covariance[other, other] - 2 * covariance[one, other]
    return np.asarray(np.maximum(variance, 1e-12))


def _doubt(strengths: Strengths, covariance: Floats, one: Ints, other: Ints) -> Floats:
    """Probability that each pair is in truth the other way round."""
    gap = np.abs(strengths.value[one] - strengths.value[other])
    return np.asarray(ndtr(-gap / np.sqrt(_difference_variance(covariance, one, other))))
