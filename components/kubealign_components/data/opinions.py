"""What a judge's opinions are worth: whether its two orders agree, how its scores spread, and whether
principles agree with each other. Read column by column: millions of judgements are seconds of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kubealign_components.data.dataset import Dataset

Floats = NDArray[np.float64]
Orders = NDArray[np.float32]
BINS = 40
CHANCE = 0.5
"""The most consistency that a judge without an opinion reaches."""
_LEAVES = [f"judgements.list.element.{leaf}" for leaf in ("first", "second", "principle", "s12", "s21")]


class Opinions:
    """The judgements of a dataset under one principle.

    A judgement is consistent when both orders prefer the same completion. Whoever looks at the position
    alone is never consistent. Whoever answers at random is half of the time, if it likes no position, and
    less often if it does: so half is the most that no opinion at all gives.
    """

    def __init__(self) -> None:
        self.consistent = 0
        self._orders: list[Orders] = []

    def extend(self, s12: Floats, s21: Floats) -> None:
        """Judgements, by their log-odds in both orders."""
        self.consistent += int(np.count_nonzero(s12 * s21 > 0))
        self._orders.append(np.stack([s12, s21]).astype(np.float32))

    @property
    def orders(self) -> Orders:
        """Log-odds of shape (2, judgements), in nats: of the one order, and of the other."""
        if len(self._orders) > 1:
            self._orders = [np.concatenate(self._orders, axis=1)]
        return self._orders[0] if self._orders else np.empty((2, 0), np.float32)

    @property
    def scores(self) -> Orders:
        """Means of both orders, in which a preference for a position cancels."""
        scores: Orders = self.orders.sum(axis=0) / 2
        return scores

    @property
    def positions(self) -> Orders:
        """Log-odds for what is shown first, whatever it is."""
        positions: Orders = (self.orders[0] - self.orders[1]) / 2
        return positions

    @property
    def count(self) -> int:
        """How many judgements there are."""
        return len(self.orders[0])

    @property
    def consistency(self) -> float:
        """Share of judgements whose orders agree; NaN without any."""
        return self.consistent / self.count if self.count else float("nan")

    @property
    def prefers_first_shown(self) -> float:
        """Mean log-odds, in nats, for what is shown first; NaN without any judgement."""
        return float(np.mean(self.positions, dtype=np.float64)) if self.count else float("nan")

    def histogram(self) -> tuple[list[int], float, float]:
        """Counts of the debiased scores in even bins, and the nats at which the bins begin and end."""
        return symmetrical(self.scores)


class Survey:
    """The judgements of a dataset, by principle and between principles."""

    def __init__(self) -> None:
        self.opinions: dict[str, Opinions] = {}
        self.pairs = 0
        """Pairs of completions that were judged."""
        self._balance, self._decided = np.zeros((0, 0)), np.zeros((0, 0))

    def add(self, judgements: pa.ListArray) -> None:
        """Rows, by their lists of judgements."""
        each = judgements.flatten()
        if not len(each):
            return
        encoded = each.field("principle").dictionary_encode()
        names: list[str] = encoded.dictionary.to_pylist()
        for name in names:
            self.opinions.setdefault(name, Opinions())
        s12, s21 = (each.field(name).to_numpy(zero_copy_only=False) for name in ("s12", "s21"))
        own = encoded.indices.to_numpy(zero_copy_only=False)
        for number, name in enumerate(names):
            self.opinions[name].extend(s12[own == number], s21[own == number])
        column = {name: i for i, name in enumerate(self.opinions)}
        self._compare(_pair_of(judgements, each), np.array([column[name] for name in names])[own], s12 + s21)

    def agreement(self, one: str, other: str) -> float:
        """Of the pairs on which both principles have a preference, the share on which they prefer the same
        completion; NaN where there is no such pair."""
        i, j = (list(self.opinions).index(name) for name in (one, other))
        decided = self._decided[i, j]
        return float((self._balance[i, j] / decided + 1) / 2) if decided else float("nan")

    def _compare(self, pair: NDArray[np.int64], principle: NDArray[np.int64], score: Floats) -> None:
        """Count for every two principles on how many pairs they agree, less those on which they do not."""
        size, grown = len(self.opinions), len(self.opinions) - len(self._decided)
        if grown:
            self._balance, self._decided = (np.pad(m, (0, grown)) for m in (self._balance, self._decided))
        signs = np.zeros((int(pair.max(initial=-1)) + 1, size))
        signs[pair, principle] = np.sign(score)
        self._balance += signs.T @ signs
        self._decided += np.abs(signs).T @ np.abs(signs)
        self.pairs += len(signs)


def survey(judged: Dataset) -> Survey:
    """What the judgements of ``judged`` (``kubealign.judged/v1``) are worth, from one pass over them."""
    whole = Survey()
    for batch in judged.batches(_LEAVES, batch_rows=None):
        whole.add(batch.column("judgements"))
    return whole


def overall(opinions: Mapping[str, Opinions], names: Sequence[str]) -> float:
    """Consistency under all of the principles ``names`` together; NaN without any judgement."""
    chosen = [opinions[name] for name in names if name in opinions]
    count = sum(one.count for one in chosen)
    return sum(one.consistent for one in chosen) / count if count else float("nan")


def symmetrical(values: Orders) -> tuple[list[int], float, float]:
    """Counts of ``values`` in even bins, and where the bins begin and end: symmetrical about 0, around 99 %
    of the values; the outer bins take the rest."""
    edge = float(np.quantile(np.abs(values), 0.99)) if len(values) else 0.0
    edge = edge or 1.0
    counts, _ = np.histogram(np.clip(values, -edge, edge), bins=BINS, range=(-edge, edge))
    return counts.tolist(), -edge, edge


def _pair_of(lists: pa.ListArray, each: pa.StructArray) -> NDArray[np.int64]:
    """For each judgement the number, from 0, of the pair that it is of."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    first, second = (
        each.field(n).to_numpy(zero_copy_only=False).astype(np.int64) for n in ("first", "second")
    )
    row = np.repeat(np.arange(len(lengths)), lengths)
    many = int(max(first.max(initial=0), second.max(initial=0))) + 1
    inverse: NDArray[np.int64] = np.unique((row * many + first) * many + second, return_inverse=True)[1]
    return inverse
