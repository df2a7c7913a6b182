"""The named strategies: which two completions of a prompt form a pair.

A strategy proposes candidate pairs of each row in an order of preference; :func:`choose_pairs` puts
the higher reward first, drops the candidates that are no pair, and takes the first few of each row.
Random orders come from the completions' keys: they depend on the seed and on what the completions
are, not on their position, the batch or the chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kubealign_components.data.seeds import Keys, mix64
from kubealign_components.data.segments import Floats, Ints, order_by, segments, within

# Quantiles are ratios of small integers: differences are exact to far better than this.
TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """The distinct completions of a batch that may form pairs, sorted by row; arrays of shape (n,)."""

    row: Ints
    reward: Floats
    """That is gone by."""
    given: Floats
    """By which completions tie."""
    margin: Floats
    """Half the width of the interval of each reward; 0 where it is exact."""
    quantile: Floats
    key: Keys
    """Random and fixed for the completion, see :func:`kubealign_components.data.seeds.id_keys`."""
    references: Ints
    """Number of reference rewards of the row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StrategySettings:
    """What a strategy may ask for; see ``SelectConfig`` for the meaning of each."""

    pairs_per_prompt: int
    min_quantile_gap: float
    k: int
    best_quantile: float
    worst_quantile: float
    middle_quantile: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Proposed pairs of positions in the pool, arrays of shape (m,); low ``priority`` comes first."""

    a: Ints
    b: Ints
    priority: NDArray[np.uint64] | Ints


Strategy = Callable[[Pool, StrategySettings], Candidates]


def best_worst(pool: Pool, rules: StrategySettings) -> Candidates:  # noqa: ARG001
    """The i-th best with the i-th worst."""
    order, first, size, rank = _by_reward(pool)
    top = np.flatnonzero(rank < size // 2)
    mirror = first[top] + size[top] - 1 - rank[top]
    return Candidates(a=order[top], b=order[mirror], priority=rank[top])


def best_random(pool: Pool, rules: StrategySettings) -> Candidates:  # noqa: ARG001
    """The best with each of the others, in random order."""
    order, first, _, rank = _by_reward(pool)
    others = order[rank > 0]
    return Candidates(a=order[first[rank > 0]], b=others, priority=mix64(pool.key[others]))


def random_pairs(pool: Pool, rules: StrategySettings) -> Candidates:  # noqa: ARG001
    """Every two completions, in random order."""
    _, size, rank = segments(pool.row)
    later = size - 1 - rank
    a = np.repeat(np.arange(len(pool.row)), later)
    b = a + 1 + within(later)
    return Candidates(a=a, b=b, priority=_pair_keys(pool, a, b))


def top_bottom_k(pool: Pool, rules: StrategySettings) -> Candidates:
    """Each of the k best with each of the k worst, in random order; top and bottom never overlap."""
    order, first, size, rank = _by_reward(pool)
    k = np.minimum(rules.k, size // 2)
    top = np.flatnonzero(rank < k)
    a = np.repeat(order[top], k[top])
    bottom = np.repeat(first[top] + size[top] - k[top], k[top]) + within(k[top])
    b = order[bottom]
    return Candidates(a=a, b=b, priority=_pair_keys(pool, a, b))


def quantile_bands(pool: Pool, rules: StrategySettings) -> Candidates:
    """The offline recipe's heuristic: bad completions matter most, but not only the very worst.

    Pair 1 takes the completion of the highest quantile and, as reject, the *best of the worst band*
    (quantile at most ``max(worst_quantile, 1/n)``), else the best of the middle, else the next of
    the best band (quantile at least ``best_quantile``). The remaining completions are split at
    ``middle_quantile`` and shuffled; each further pair takes one of either side, and two of the same
    side once the other is used up. Equal quantiles stand in random order.
    """
    order = order_by(pool.row, -pool.quantile, pool.key)
    row, quantile = pool.row[order], pool.quantile[order]
    first, _, rank = segments(row)
    others = np.flatnonzero(rank > 0)
    floor = np.maximum(rules.worst_quantile, 1.0 / pool.references[order])
    band = np.where(quantile >= rules.best_quantile, 2, np.where(quantile <= floor, 0, 1))
    by_band = others[order_by(row[others], band[others], rank[others])]
    reject = by_band[segments(row[by_band])[2] == 0]
    rest = order[np.setdiff1d(others, reject)]
    a, b, turn = _across(pool, rest, rules.middle_quantile)
    return Candidates(
        a=np.concatenate([order[first[reject]], a]),
        b=np.concatenate([order[reject], b]),
        priority=np.concatenate([np.zeros(len(reject), dtype=np.int64), turn + 1]),
    )


STRATEGIES: dict[str, Strategy] = {
    strategy.__name__: strategy
    for strategy in (best_worst, best_random, random_pairs, quantile_bands, top_bottom_k)
}


def choose_pairs(strategy: Strategy, pool: Pool, rules: StrategySettings) -> tuple[Ints, Ints]:
    """Positions in the pool of the chosen and the rejected, shape (pairs,) each, sorted by row.

    Every pair has a reward on the chosen side that is strictly higher, by more than both margins, given
    rewards that do not tie, and a quantile gap of at least ``min_quantile_gap``; a candidate that has not
    makes room for the next.
    """
    pairs = strategy(pool, rules)
    better = pool.reward[pairs.a] >= pool.reward[pairs.b]
    chosen = np.where(better, pairs.a, pairs.b)
    rejected = np.where(better, pairs.b, pairs.a)
    gap = pool.quantile[chosen] - pool.quantile[rejected]
    apart = pool.reward[chosen] - pool.margin[chosen] > pool.reward[rejected] + pool.margin[rejected]
    apart &= pool.given[chosen] != pool.given[rejected]
    good = apart & (gap >= rules.min_quantile_gap - TOLERANCE)
    chosen, rejected = chosen[good], rejected[good]
    order = order_by(pool.row[chosen], pairs.priority[good])
    chosen, rejected = chosen[order], rejected[order]
    _, _, rank = segments(pool.row[chosen])
    taken = rank < rules.pairs_per_prompt
    return chosen[taken], rejected[taken]


def _by_reward(pool: Pool) -> tuple[Ints, Ints, Ints, Ints]:
    """Order by falling reward within rows, ties at random, with the segments of that order."""
    order = order_by(pool.row, -pool.reward, pool.key)
    return order, *segments(pool.row[order])


def _pair_keys(pool: Pool, a: Ints, b: Ints) -> Keys:
    return mix64(pool.key[a] + pool.key[b])  # symmetric: the pair has no order yet


def _across(pool: Pool, rest: Ints, middle: float) -> tuple[Ints, Ints, Ints]:
    """Pair the completions ``rest`` across ``middle``, then what is left over among itself."""
    upper = pool.quantile[rest] >= middle
    order = order_by(pool.row[rest], upper, mix64(pool.key[rest]))
    rest, upper = rest[order], upper[order]
    row = pool.row[rest]
    _, side, rank = segments(2 * row + upper)
    _, size, _ = segments(row)
    both = np.minimum(side, size - side)
    over = np.maximum(rank - both, 0)
    turn = np.where(rank < both, rank, both + over // 2)
    order = order_by(row, turn)
    rest, row, turn = rest[order], row[order], turn[order]
    pair = np.flatnonzero((row[1:] == row[:-1]) & (turn[1:] == turn[:-1]))
    return rest[pair], rest[pair + 1], turn[pair]
