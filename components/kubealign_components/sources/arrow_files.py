"""Parquet and Arrow files: batches are checked before they are read, and values become plain ones."""

from __future__ import annotations

import datetime
import json
import math
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kubealign_components.errors import DataError
from kubealign_components.sources.bytes_of import Row, Unreadable

BATCH_ROWS = 256


def read_parquet(path: Path, name: str) -> Iterator[Row]:
    """The rows of a Parquet file."""
    with pq.ParquetFile(path) as file:
        _check_names(file.schema_arrow, name)
        total, seen = max(1, file.metadata.num_rows), 0
        for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
            for row in _rows(batch):
                seen += 1
                yield row, min(1.0, seen / total)


def read_arrow(path: Path, name: str) -> Iterator[Row]:
    """The Arrow streams that ``save_to_disk`` writes, or Arrow files."""
    # Not mapped into memory: a file that is shorter than it says must be an error and not a bus error.
    with pa.OSFile(str(path)) as file:
        size = max(1, file.size())
        for batch in _batches(file):
            _check_names(batch.schema, name)
            batch.validate(full=True)
            for start in range(0, batch.num_rows, BATCH_ROWS):
                for row in _rows(batch.slice(start, BATCH_ROWS)):
                    yield row, min(1.0, file.tell() / size)


def _batches(file: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    if file.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(file)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        file.seek(0)
        yield from pa.ipc.open_stream(file)


def _check_names(schema: pa.Schema, name: str) -> None:
    double = [column for column, count in Counter(schema.names).items() if count > 1]
    if double:
        raise DataError(f"{name} has the column {double[0]!r} twice; rename one of the two")


def _rows(batch: pa.RecordBatch) -> Iterator[object]:
    """The rows of a batch; one with a value that Python cannot hold is :class:`Unreadable`."""
    try:
        columns = {name: _column(column) for name, column in zip(batch.schema.names, batch.columns)}
    except (ValueError, OverflowError) as error:  # UnicodeDecodeError is a ValueError
        if batch.num_rows > 1:
            for number in range(batch.num_rows):
                yield from _rows(batch.slice(number, 1))
        else:
            yield Unreadable("unreadable_value", str(error))
        return
    for number in range(batch.num_rows):
        yield {name: values[number] for name, values in columns.items()}


def _column(column: pa.Array) -> list[object]:
    kind = column.type
    values: list[Any] = column.to_pylist(maps_as_pydicts="lossy")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind):
        return values
    if isinstance(kind, pa.JsonType):
        return [None if value is None else json.loads(value) for value in values]
    return [_plain(value, kind) for value in values]


def _plain(value: Any, kind: pa.DataType) -> object:
    """``value`` as JSON has values, without the null members that Arrow gives every object for the keys
    of its neighbours. Decimals stay, so that answers keep their digits."""
    if value is None:
        return None
    if pa.types.is_struct(kind):
        members = {field.name: _plain(value.get(field.name), field.type) for field in kind}
        return {name: _number(member) for name, member in members.items() if member is not None}
    if pa.types.is_map(kind):
        return {str(key): _number(_plain(item, kind.item_type)) for key, item in value.items()}
    if _is_list(kind):
        return [_plain(item, kind.value_type) for item in value]
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        value = float(str(kind.to_pandas_dtype()(value)))  # 0.1, not 0.10000000149011612
    return _scalar(value)


def _scalar(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):  # text that was written without saying so
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, datetime.timedelta) else value


def _number(value: object) -> object:
    if not isinstance(value, Decimal):
        return value
    return int(value) if value == int(value) else float(value)


def _is_list(kind: pa.DataType) -> bool:
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(kind) for check in checks)
