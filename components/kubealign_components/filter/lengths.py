"""What of a batch fits, by the token ids that it has: arrays of lengths, no Python object a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kubealign_components.data.arrow_take import keep
from kubealign_components.data.schemas import PROMPT_ROW
from kubealign_components.data.stats import Stats
from kubealign_components.errors import DataError

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """See ``FilterConfig`` for the meaning of each."""

    max_seq_len: int
    max_prompt_len: int
    min_completions: int


def fitting(batch: pa.RecordBatch, limits: Limits, stats: Stats) -> pa.RecordBatch:
    """The rows of ``batch`` that fit, with the completions that fit; counts what is dropped.

    Raises:
        DataError: a row without prompt token ids.
    """
    stats.rows_in += batch.num_rows
    prompt = _lengths(batch.column("prompt_token_ids"))
    if (prompt < 0).any():
        name = batch.column("prompt_id")[int(np.argmax(prompt < 0))].as_py()
        raise DataError(f"prompt {name} has no token ids although its dataset is tokenised; filter again")
    short = prompt <= limits.max_prompt_len
    stats.drop("prompt_too_long", int((~short).sum()))
    lists = batch.column("completions")
    counts = _lengths(lists)
    row: Ints = np.repeat(np.arange(batch.num_rows), np.maximum(counts, 0))
    fits = _fit(lists, row, limits.max_seq_len - prompt, short, stats)
    left = np.bincount(row[fits], minlength=batch.num_rows)
    usable = short & (left >= limits.min_completions)
    stats.drop("too_few_completions", int((short & ~usable).sum()))
    fits &= usable[row]
    if usable.any():
        stats.counts["completions"] += int(fits.sum())
    return _kept(batch, usable, fits, left)


def _fit(lists: pa.ListArray, row: Ints, room: Ints, short: Bools, stats: Stats) -> Bools:
    """Which completions have tokens and fit into the ``room`` of their row."""
    length = np.maximum(_lengths(lists.flatten().field("token_ids")), 0)
    considered = short[row]
    empty = considered & (length == 0)
    long = considered & (length > room[row])
    for name, mask in (("completions_empty", empty), ("completions_too_long", long)):
        if mask.any():
            stats.counts[name] += int(mask.sum())
    return np.asarray(considered & ~empty & ~long)


def _kept(batch: pa.RecordBatch, usable: Bools, fits: Bools, left: Ints) -> pa.RecordBatch:
    if usable.all() and fits.all():
        return batch
    offsets = np.concatenate(([0], np.cumsum(left[usable])))
    kept = keep(batch.column("completions").flatten(), fits)
    completions = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), kept)
    columns = [
        completions if name == "completions" else keep(batch.column(name), usable)
        for name in PROMPT_ROW.names
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PROMPT_ROW)


def _lengths(lists: pa.ListArray) -> Ints:
    """Lengths, shape (n,); -1 where null."""
    lengths: Ints = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64)
