"""Training examples from selected completions, whole record batches at a time."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kubealign_components.data.arrow_take import take
from kubealign_components.data.schemas import TRAINING_ROW
from kubealign_components.data.seeds import ID_LENGTH, held_out
from kubealign_components.errors import DataError

Ints = NDArray[np.int64]

PAIR = 2
"""Completions of a pairwise example."""
POINT = 1
"""Completions of a pointwise example."""


def from_selection(batch: pa.RecordBatch, *, validation_fraction: float, seed: int) -> pa.RecordBatch:
    """The examples of a batch of ``kubealign.selection/v1`` rows, as ``kubealign.training/v1`` rows.

    A row with pairs gives an example a pair, ``[chosen, rejected]``; a row without gives one a
    completion.
    """
    row, index, size = _members(batch)
    completions = take(pc.list_flatten(batch.column("completions")), index)
    prompt = take(batch.column("prompt_id"), row)
    made = {
        "example_id": _example_ids(prompt, completions.field("completion_id"), size),
        "split": take(_splits(batch.column("prompt_id"), validation_fraction, seed), row),
        "completions": pa.ListArray.from_arrays(
            pa.array(np.concatenate(([0], np.cumsum(size))), pa.int32()), completions
        ),
        "num_references": take(pc.list_value_length(batch.column("reference_rewards")), row),
    }
    columns = [made[name] if name in made else take(batch.column(name), row) for name in TRAINING_ROW.names]
    return pa.RecordBatch.from_arrays(columns, schema=TRAINING_ROW)


def from_training(batch: pa.RecordBatch, *, validation_fraction: float, seed: int) -> pa.RecordBatch:
    """The examples of an earlier training dataset, split anew so that a prompt is on one side only."""
    splits = _splits(batch.column("prompt_id"), validation_fraction, seed)
    columns = [splits if name == "split" else batch.column(name) for name in TRAINING_ROW.names]
    return pa.RecordBatch.from_arrays(columns, schema=TRAINING_ROW)


def sizes(examples: pa.RecordBatch) -> set[int]:
    """The numbers of completions that examples have: :data:`PAIR`, :data:`POINT` or both."""
    counts = set(pc.unique(pc.list_value_length(examples.column("completions"))).to_pylist())
    if not counts <= {PAIR, POINT}:
        raise DataError(
            f"examples have {sorted(counts - {PAIR, POINT})} completions: expected 2 (a pair) or 1 (a point)"
        )
    return counts


def without_logprob(examples: pa.RecordBatch) -> tuple[int, int]:
    """How many completions lack a finite log-probability, and how many there are."""
    values = pc.list_flatten(examples.column("completions")).field("logprob")
    finite = pc.sum(pc.fill_null(pc.is_finite(values), False)).as_py() or 0
    return len(values) - finite, len(values)


def _members(batch: pa.RecordBatch) -> tuple[Ints, Ints, Ints]:
    """Row of each example; completions of all examples, in order; completions of each example."""
    offsets = _offsets(batch.column("completions"))
    pairs = pc.list_flatten(batch.column("pairs"))
    per_row = np.diff(_offsets(batch.column("pairs")))
    paired = np.repeat(np.arange(batch.num_rows), per_row)
    sides = np.stack([pairs.field(side).to_numpy() for side in ("chosen", "rejected")], axis=1)
    count = np.diff(offsets)
    if len(sides) and ((sides < 0) | (sides >= count[paired][:, None])).any():
        raise DataError("a pair names a completion that its row does not have; run select again")
    single = np.flatnonzero(np.repeat(per_row == 0, count))
    row = np.concatenate([paired, np.repeat(np.arange(batch.num_rows), count)[single]])
    index = np.concatenate([(offsets[:-1][paired][:, None] + sides).ravel(), single])
    size = np.concatenate([np.full(len(paired), PAIR), np.full(len(single), POINT)])
    return row, index, size


def _offsets(lists: pa.ListArray) -> Ints:
    offsets: Ints = lists.offsets.to_numpy().astype(np.int64)
    return np.asarray(offsets - offsets[0])


def _example_ids(prompts: pa.Array, completion_ids: pa.Array, size: Ints) -> pa.Array:
    """Content hash (32 hex digits) of each example: its prompt's id and its completions' ids."""
    order = np.insert(
        np.arange(len(prompts), len(prompts) + len(completion_ids)),
        np.cumsum(size) - size,
        np.arange(len(prompts)),
    )
    texts = pa.concat_arrays([prompts, completion_ids]).take(pa.array(order))
    ends = np.frombuffer(texts.buffers()[1], np.int32)[np.cumsum(size + 1)].tolist()
    text = memoryview(texts.buffers()[2] or b"")
    return pa.array(
        [hashlib.sha256(text[a:b]).hexdigest()[:ID_LENGTH] for a, b in pairwise([0, *ends])], pa.string()
    )


def _splits(prompts: pa.Array, fraction: float, seed: int) -> pa.Array:
    held = pa.array(held_out(prompts.to_pylist(), fraction, seed), pa.bool_())
    return pc.if_else(held, "validation", "train")
