"""The rewards that a selection goes by: as they were given, at equal length, or shuffled within prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.null_runs import NULL_RUN, SHUFFLED
from kubealign_components.data.sampled import FACTS, sampled
from kubealign_components.data.seeds import Keys
from kubealign_components.data.segments import Bools, Floats, Ints, order_by
from kubealign_components.data.shard_rows import completion_columns

AS_GIVEN, LENGTH_CONTROLLED = "as_given", "length_controlled"
REWARDS = (AS_GIVEN, LENGTH_CONTROLLED, SHUFFLED)
NOTES: Mapping[str, Sequence[str]] = {
    AS_GIVEN: (),
    LENGTH_CONTROLLED: (
        "Rewards are those at equal length: what a token more goes with among one writer's completions of a "
        "prompt was taken out before any were chosen.",
    ),
    SHUFFLED: (NULL_RUN,),
}
"""What a reader is told of the rewards on a page."""
_COLUMNS = (
    *FACTS,
    *completion_columns("reward", "num_tokens", "model"),
)


class LengthSlope:
    """Least-squares slope of reward over tokens with a level of its own for every prompt's completions of one
    writer, so that a longer and better writer is no reward of length; prompts count alike.

    Sums are exact, so that the order of prompts does not matter.
    """

    def __init__(self) -> None:
        self._products: list[Floats] = []
        self._squares: list[Floats] = []
        self._tokens = self._completions = 0

    def add(self, row: Ints, writer: Ints, reward: Floats, tokens: Floats) -> None:
        """Add completions, arrays of shape (n,); those without reward or length do not count.

        Args:
            row: the prompt of each, from 0.
            writer: who wrote each, see :func:`writers_of`.
            reward: NaN where there is none.
            tokens: NaN where they are not counted.
        """
        counted = np.isfinite(reward) & np.isfinite(tokens)
        row, writer, reward, tokens = (own[counted] for own in (row, writer, reward, tokens))
        self._tokens += int(tokens.sum())
        self._completions += len(tokens)
        counts = np.maximum(np.bincount(row), 1)
        _, level = np.unique(np.stack([row, writer]), axis=1, return_inverse=True)
        length, centred = (own - _means(level, own)[level] for own in (tokens, reward))
        self._products.append(np.bincount(row, length * centred) / counts)
        self._squares.append(np.bincount(row, length * length) / counts)

    @property
    def value(self) -> float:
        """In reward a token; 0 where no prompt has completions of different lengths."""
        products, squares = (math.fsum(chain(*own)) for own in (self._products, self._squares))
        return products / squares if squares else 0.0

    @property
    def mean_tokens(self) -> float:
        """Of all completions; 0 without any."""
        return self._tokens / max(self._completions, 1)


def length_slope(rewarded: Dataset) -> LengthSlope:
    """The :class:`LengthSlope` of all completions of ``rewarded``, read in one pass over two columns."""
    slope = LengthSlope()
    for batch in rewarded.batches(list(_COLUMNS), batch_rows=None):
        lists = batch.column("completions")
        offsets = lists.offsets.to_numpy()
        completions = lists.values.slice(offsets[0], offsets[-1] - offsets[0])
        row = np.repeat(np.arange(batch.num_rows), np.diff(offsets))
        reward, tokens = (numbers_of(completions, name) for name in ("reward", "num_tokens"))
        slope.add(row, writers_of(completions), reward, tokens)
    return slope


def _means(level: Ints, values: Floats) -> Floats:
    """The mean of the values of each level, which are numbered from 0 without a gap."""
    means: Floats = np.bincount(level, values) / np.bincount(level)
    return means


def writers_of(completions: pa.StructArray) -> Ints:
    """A number for who wrote each of ``completions``, shape (n,): -1 for those that a source brought, and
    otherwise one for each policy that has sampled, references apart from those of further rounds."""
    model = pc.fill_null(completions.field("model").cast(pa.string()), "").dictionary_encode()
    codes: Ints = model.indices.to_numpy().astype(np.int64)
    reference = pc.fill_null(completions.field("reference"), False).to_numpy(zero_copy_only=False)
    return np.where(sampled(completions), 2 * codes + reference, -1)


def numbers_of(completions: pa.StructArray, name: str) -> Floats:
    """The field ``name`` of each completion, NaN where it is null."""
    values: Floats = completions.field(name).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def at_equal_length(reward: Floats, tokens: Floats, slope: LengthSlope) -> Floats:
    """``reward`` as it would be were all completions of the dataset as long as their mean, by ``slope``."""
    return np.asarray(reward - slope.value * (tokens - slope.mean_tokens))


def shuffle_within(row: Ints, reference: Bools, to: Keys, of: Keys) -> Ints:
    """For each completion the place of the one of its prompt that it gets the reward of, shape (n,).

    Args:
        row: the prompt of each, ascending.
        reference: of copies of one completion, which have the same keys, such a one comes first.
        to: random keys of who gets.
        of: random keys of what is given, independent of ``to``.
    """
    origin = np.empty(len(row), dtype=np.int64)
    origin[order_by(row, to, ~reference)] = order_by(row, of, ~reference)
    return origin
