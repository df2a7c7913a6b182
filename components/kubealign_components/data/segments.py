"""Flat arrays over the completions of many rows, sorted by row, so that a row is a segment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def segments(row: Ints) -> tuple[Ints, Ints, Ints]:
    """First index, length and own rank of each element's segment of equal ``row``; each shape (n,)."""
    starts = np.flatnonzero(changes(row))
    sizes = np.diff(starts, append=len(row))
    first = np.repeat(starts, sizes)
    return first, np.repeat(sizes, sizes), np.arange(len(row)) - first


def within(counts: Ints) -> Ints:
    """``0..c-1`` for every ``c`` of ``counts``, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def order_by(row: Ints, *keys: NDArray[np.generic]) -> Ints:
    """The stable order by ``row``, then by each key; like ``np.lexsort((*reversed(keys), row))``.

    Several times as fast: where the first key decides, the others are not looked at, and NumPy sorts 16-bit
    integers in linear time; a batch rarely has more rows or elements.
    """
    order: Ints = np.argsort(keys[0])
    order = order[np.argsort(_small(row)[order], kind="stable")]
    tied = ~(changes(row[order]) | changes(keys[0][order]))
    if tied.any():
        order = np.lexsort((*(_dense(key) for key in reversed(keys)), _small(row)))
    return order


def _small(row: Ints) -> NDArray[np.generic]:
    """``row``, 0 or more, in 16 bits where that is enough."""
    return row.astype(np.uint16) if row.max(initial=0) < 2**16 else row


def _dense(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Ranks from 0 that order as ``values`` do; equal values share one."""
    order = np.argsort(values)
    ranks = np.empty(len(values), dtype=np.uint16 if len(values) <= 2**16 else np.uint32)
    ranks[order] = np.cumsum(changes(values[order])) - 1
    return ranks


def changes(values: NDArray[np.generic]) -> Bools:
    """Whether each element differs from the one before it; the first one does."""
    changed = np.ones(len(values), dtype=np.bool_)
    changed[1:] = values[1:] != values[:-1]
    return changed
