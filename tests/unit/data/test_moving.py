"""Rows moved as bytes are the rows that Arrow itself would give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from kubealign_components.data.arrow_take import keep, take
from kubealign_components.data.schemas import COMPLETION, PROMPT_ROW, TOKEN_IDS

token_ids = st.lists(st.integers(0, 2**31 - 1), max_size=4)
completions = st.fixed_dictionaries(
    {"completion_id": st.text(max_size=3), "token_ids": st.none() | token_ids, "reward": st.floats(0, 1)}
)
rows = st.fixed_dictionaries(
    {
        "prompt_id": st.text(max_size=3),
        "answers": st.none() | st.lists(st.text(max_size=2), max_size=2),
        "prompt_token_ids": st.none() | token_ids,
        "completions": st.none() | st.lists(completions, max_size=3),
    }
)


@given(st.lists(rows, max_size=8), st.data())
def test_moved_rows_are_arrows_own(made: list[dict[str, Any]], data: st.DataObject) -> None:
    whole = pa.RecordBatch.from_pylist(made, schema=PROMPT_ROW)
    start = data.draw(st.integers(0, len(made)))
    batch = whole.slice(start, data.draw(st.integers(0, len(made))))
    mask = data.draw(st.lists(st.booleans(), min_size=batch.num_rows, max_size=batch.num_rows))
    index = data.draw(st.lists(st.integers(0, batch.num_rows - 1), max_size=9)) if batch.num_rows else []
    kept = keep(batch, np.array(mask, dtype=np.bool_))
    taken = take(batch, np.array(index, dtype=np.int64))
    for moved, expected in (
        (kept, batch.filter(pa.array(mask, pa.bool_()))),
        (taken, batch.take(pa.array(index, pa.int64()))),
        (take(taken, np.arange(len(index))[::-1]), taken.take(pa.array(range(len(index))[::-1], pa.int64()))),
    ):
        moved.validate(full=True)
        assert moved.schema == expected.schema
        assert moved.to_pylist() == expected.to_pylist()


def test_structs_that_are_null_stay_so() -> None:
    whole = pa.array([{"completion_id": "a", "token_ids": [1, 2]}, None, {"token_ids": [3]}], COMPLETION)
    moved = take(whole, np.array([1, 2, 0]))
    moved.validate(full=True)
    assert moved.to_pylist() == [whole[1].as_py(), whole[2].as_py(), whole[0].as_py()]


def test_values_that_begin_inside_a_buffer() -> None:
    ids = pa.array(range(10), pa.int32()).slice(3)
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 2, 7], pa.int32()), ids, type=TOKEN_IDS)
    assert take(lists, np.array([2, 0])).to_pylist() == [[5, 6, 7, 8, 9], [3, 4]]
