"""Moving rows: what Arrow's ``take`` and ``filter`` give, six times as fast where rows hold token ids.

Arrow moves a list of numbers number by number, and a byte string in one copy. So a list of token ids
is seen as the bytes that it lies in, without a copy, while rows are moved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubealign_components.data.schemas import TOKEN_IDS

Rows = TypeVar("Rows", pa.Array, pa.RecordBatch)

_BYTES = pa.large_binary()
_WIDTH = 4
"""Bytes of a token id, an int32."""


def take(rows: Rows, index: NDArray[np.int64]) -> Rows:
    """The ``rows`` at ``index``, in its order.

    Args:
        rows: an array or a record batch.
        index: integers in [0, rows), any number of them.
    """
    indices = pa.array(index)
    return _moved(rows, lambda array: array.take(indices))


def keep(rows: Rows, mask: NDArray[np.bool_]) -> Rows:
    """The ``rows`` where ``mask``, of shape (rows,), is true; where it is true of all, ``rows`` itself."""
    if mask.all():
        return rows
    kept = pa.array(mask)
    return _moved(rows, lambda array: array.filter(kept))


def _moved(rows: Rows, move: Callable[[pa.Array], pa.Array]) -> Rows:
    if isinstance(rows, pa.RecordBatch):
        columns = [_moved(column, move) for column in rows.columns]
        return pa.RecordBatch.from_arrays(columns, schema=rows.schema)
    return _as_lists(move(_as_bytes(rows)), rows.type)


def _as_bytes(array: pa.Array) -> pa.Array:
    """``array`` with byte strings for its lists of token ids, at any depth."""
    kind = array.type
    if kind == TOKEN_IDS:
        return _bytes_of(array)
    if pa.types.is_list(kind) and pa.types.is_nested(kind.value_type):
        values = _as_bytes(array.values)
        return _with_values(array, pa.list_(values.type), values)
    if pa.types.is_struct(kind) and not array.null_count:
        members = [_as_bytes(array.field(i)) for i in range(kind.num_fields)]
        fields = [pa.field(kind.field(i).name, member.type) for i, member in enumerate(members)]
        return pa.StructArray.from_arrays(members, fields=fields)
    return array


def _as_lists(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """``array`` as ``kind``, the type that it had before :func:`_as_bytes`."""
    if array.type == kind:
        return array
    if kind == TOKEN_IDS:
        ends = np.frombuffer(array.buffers()[1], np.int64)[: array.offset + len(array) + 1] // _WIDTH
        data = array.buffers()[2] or pa.py_buffer(b"")
        ids = pa.Array.from_buffers(pa.int32(), int(ends[-1]), [None, data])
        buffers = [array.buffers()[0], pa.py_buffer(ends.astype(np.int32))]
        return pa.Array.from_buffers(kind, len(array), buffers, offset=array.offset, children=[ids])
    if pa.types.is_list(kind):
        return _with_values(array, kind, _as_lists(array.values, kind.value_type))
    members = [_as_lists(array.field(i), kind.field(i).type) for i in range(kind.num_fields)]
    return pa.StructArray.from_arrays(members, fields=list(kind))


def _bytes_of(lists: pa.ListArray) -> pa.Array:
    """The bytes of each list of token ids."""
    values = lists.values
    ends = np.frombuffer(lists.buffers()[1], np.int32)[: lists.offset + len(lists) + 1]
    offsets = pa.py_buffer((ends.astype(np.int64) + values.offset) * _WIDTH)
    buffers = [lists.buffers()[0], offsets, values.buffers()[1] or pa.py_buffer(b"")]
    return pa.Array.from_buffers(_BYTES, len(lists), buffers, offset=lists.offset)


def _with_values(lists: pa.ListArray, kind: pa.DataType, values: pa.Array) -> pa.Array:
    """``lists`` as ``kind``, of other ``values``."""
    buffers = lists.buffers()[:2]
    return pa.Array.from_buffers(kind, len(lists), buffers, offset=lists.offset, children=[values])
