"""How likely more completions of a prompt change which of them are its best and its worst.

A continuous reward says nothing of it by ranks alone: whatever its distribution, the best and the worst of
n draws are both among the first k with probability k(k - 1) / n(n - 1), 0.05 for 4 of 16. What helps is what
prompts have in common, so each is judged by all of them (empirical Bayes): by how often which values come
together where a reward has few values, and else by how far the rewards of a prompt spread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kubealign_components.data.segments import Bools, Floats, Ints

FEW_VALUES = 64
"""A reward with more different values is taken for a continuous one."""
_HELD = 8
"""Of few values each is held by as many completions, on average, or more."""
_NODES = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """The rewards of the sampled completions of all prompts, arrays of shape (n,)."""

    row: Ints
    """The prompt of each, from 0, ascending."""
    reward: Floats
    rows: int
    """Number of prompts."""

    @property
    def number(self) -> Ints:
        """Completions of each prompt, shape (rows,)."""
        return np.bincount(self.row, minlength=self.rows)

    def first(self, number: Ints | int) -> Draws:
        """The first ``number`` draws of each prompt."""
        own = self.number
        rank = np.arange(len(self.row)) - np.repeat(np.cumsum(own) - own, own)
        kept = rank < np.broadcast_to(number, (self.rows,))[self.row]
        return Draws(row=self.row[kept], reward=self.reward[kept], rows=self.rows)

    @property
    def of_all(self) -> Draws:
        """As many draws of each prompt as nearly all have: draws that end by what they brought are no fair
        sample."""
        several = self.number[self.number >= 2]
        return self.first(int(np.quantile(several, 0.1, method="lower")) if len(several) else 1)

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        """Least and highest reward of each prompt, shape (rows,); infinite where it has no completion."""
        low, high = np.full(self.rows, np.inf), np.full(self.rows, -np.inf)
        np.minimum.at(low, self.row, self.reward)
        np.maximum.at(high, self.row, self.reward)
        return low, high

    @property
    def gap(self) -> Floats:
        """Highest minus least reward of each prompt, shape (rows,); 0 where it has no completion."""
        low, high = self.bounds
        return np.maximum(high - low, 0.0, where=self.number > 0, out=np.zeros(self.rows))


def chance_of_change(draws: Draws, to: Ints | int, slack: float) -> Floats:
    """For each prompt the chance, shape (rows,), that after ``to`` draws its best or its worst reward has
    moved by more than ``slack``. A prompt with fewer than two rewards has a chance of 1.
    """
    number = draws.number
    left = np.maximum(to - number, 0)
    low, high = draws.bounds
    box = (low - slack, high + slack)
    values, code = np.unique(draws.reward, return_inverse=True)
    if len(values) <= min(FEW_VALUES, len(code) / _HELD):
        stays = _by_values(draws, values, box, left)
    else:
        tied = (number >= 2) & (low == high)
        stays = np.where(tied, _by_ties(draws, left), _by_spread(draws, box, left))
    return np.where(number >= 2, np.where(left > 0, 1 - stays, 0.0), 1.0)


def _by_ties(draws: Draws, left: Ints) -> Floats:
    """The chance that all of ``left`` draws of a prompt whose rewards are equal equal these: as often as
    rewards that are equal in the first half of a prompt's draws are so in the second, for each doubling."""
    number = draws.number
    half = draws.first(number // 2)
    tied = (half.number >= 2) & (half.gap == 0)
    stayed = (tied & (draws.gap == 0)).sum() / (tied.sum() + 1)
    return np.asarray(stayed ** np.log2(1 + left / np.maximum(number, 1)))


def resolved(chance: Floats, differs: Bools, same: float) -> Bools:
    """The prompts, shape (rows,), that need no more draws: as many as can be, those of the least chance of a
    change first, so that of the pairs of all draws a share ``same`` is expected to be there already.

    Args:
        chance: of a change, for each prompt.
        differs: the prompts whose rewards are not all equal: these have a pair.
        same: the share, from 0 to 1.
    """
    pairs = differs.sum() + chance[~differs].sum()
    order = np.argsort(chance, kind="stable")
    enough = np.cumsum(chance[order]) <= (1 - same) * pairs + 1e-9
    done = np.zeros(len(chance), dtype=np.bool_)
    done[order[enough]] = True
    return done


def _by_values(draws: Draws, values: Floats, box: tuple[Floats, Floats], left: Ints) -> Floats:
    """The chance that all of ``left`` draws lie in ``box``, where rewards have few ``values``: those of a
    prompt are drawn from a Dirichlet distribution around the shares of all, as from Pólya's urn."""
    share, alpha = _urn(draws.of_all, values)
    below = np.concatenate([[0.0], share.cumsum()])
    first, last = np.searchsorted(values, box[0], "left"), np.searchsorted(values, box[1], "right")
    inside = alpha * (below[last] - below[first]).clip(0, 1) + draws.number
    stays = np.ones(draws.rows)
    for drawn in range(int(left.max(initial=0))):
        again = (inside + drawn) / (alpha + draws.number + drawn)
        stays *= np.where(drawn < left, again.clip(max=1), 1.0)
    return stays


def _urn(draws: Draws, values: Floats) -> tuple[Floats, float]:
    """Shares of ``values``, and the concentration of prompts around them with which two draws of one prompt
    tie as often as they do."""
    counts = np.zeros((draws.rows, len(values)))
    np.add.at(counts, (draws.row, np.searchsorted(values, draws.reward)), 1)
    share: Floats = counts.sum(0) / counts.sum()
    number = counts.sum(1)
    pairs = (number * (number - 1)).sum()
    tied = float((counts * (counts - 1)).sum() / pairs) if pairs else 0.0
    common = float((share**2).sum())
    return share, float(np.clip((1 - tied) / max(tied - common, 1e-9), 1e-3, 1e3))


def _by_spread(draws: Draws, box: tuple[Floats, Floats], left: Ints) -> Floats:
    """The chance that all of ``left`` draws lie in ``box``, where those of a prompt are normal, with a
    variance that is log-normal over prompts."""
    mean, squares, number = _moments(draws)
    level, spread = _log_variance(squares, number - 1, *_moments(draws.of_all)[1:])
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    low, high = _open_bounds(draws, box)
    stays = np.zeros(draws.rows)
    for scale_node, scale_weight in zip(nodes, weights):
        scale = np.exp(0.5 * (level + spread * scale_node))
        for mean_node, mean_weight in zip(nodes, weights):
            centre = mean + mean_node * scale / np.sqrt(number)
            inside = _normal_cdf((high - centre) / scale) - _normal_cdf((low - centre) / scale)
            stays += scale_weight * mean_weight * np.clip(inside, 0, 1) ** left
    return stays


def _open_bounds(draws: Draws, box: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """``box`` without the sides at which a reward ends: those values that several prompts reach and none goes
    beyond."""
    low, high = draws.bounds
    ends = draws.reward.min(), draws.reward.max()
    at_end = low == ends[0], high == ends[1]
    several = [int(one.sum()) > max(2, draws.rows // 50) for one in at_end]
    return (
        np.where(at_end[0] & several[0], -np.inf, box[0]),
        np.where(at_end[1] & several[1], np.inf, box[1]),
    )


def _moments(draws: Draws) -> tuple[Floats, Floats, Ints]:
    """Of each prompt the mean, the sum of squared deviations from it, and the draws, one at least."""
    number = np.maximum(draws.number, 1)
    mean = np.bincount(draws.row, draws.reward, draws.rows) / number
    squares = np.bincount(draws.row, (draws.reward - mean[draws.row]) ** 2, draws.rows)
    return np.asarray(mean), np.asarray(squares, np.float64), number


def _log_variance(
    squares: Floats, freedom: Ints, squares_of_all: Floats, number_of_all: Ints
) -> tuple[Floats, Floats]:
    """Mean and standard deviation of what is known of each prompt's log-variance: its own estimate, drawn to
    those of all by as much as these agree."""
    estimate, noise = _estimates(squares, freedom)
    of_all, noise_of_all = _estimates(squares_of_all, number_of_all - 1)
    if not np.isfinite(noise_of_all).any():
        of_all, noise_of_all = estimate, noise
    counted = np.isfinite(noise_of_all)
    if not counted.any():  # then no prompt's rewards differ, of which none is asked here
        return np.zeros(len(squares)), np.zeros(len(squares))
    centre = float(of_all[counted].mean())
    between = max(float(of_all[counted].var() - noise_of_all[counted].mean()), 1e-4)
    trust = between / (between + noise)
    own = np.where(np.isfinite(noise), estimate, centre)
    return centre + trust * (own - centre), np.sqrt((1 - trust) * between)


def _estimates(squares: Floats, freedom: Ints) -> tuple[Floats, Floats]:
    """Of each prompt's log-variance an unbiased estimate and its variance, infinite where there is none."""
    usable = (squares > 0) & (freedom > 0)
    own = np.where(usable, freedom, 1)
    bias, noise = (np.array([0.0, *map(f, range(1, own.max() + 1))])[own] for f in (_bias, _noise))
    estimate = np.log(np.where(usable, squares, 1.0) / own) - bias
    return estimate, np.where(usable, noise, np.inf)


def _bias(freedom: int) -> float:
    """Of the logarithm of a variance that is estimated with ``freedom``: ψ(f/2) - ln(f/2)."""
    start = -1.9635100260214235 if freedom % 2 else -0.5772156649015329
    steps = range(freedom % 2 or 2, freedom, 2)
    return start + sum(2 / n for n in steps) - math.log(freedom / 2)


def _noise(freedom: int) -> float:
    """Variance of such a logarithm: ψ'(f/2)."""
    start = math.pi**2 / 2 if freedom % 2 else math.pi**2 / 6
    return start - sum(4 / n**2 for n in range(freedom % 2 or 2, freedom, 2))


def _normal_cdf(x: Floats) -> Floats:
    """To 2e-4, by a logistic curve (Bowling et al. 2009); NumPy alone has none."""
    x = np.clip(x, -8, 8)
    return np.asarray(1 / (1 + np.exp(-(0.07056 * x**3 + 1.5976 * x))))
