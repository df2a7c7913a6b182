"""The shards of a dataset as Parquet files: written, read, published and copied."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from kubealign_components.data.fingerprint import file_digest
from kubealign_components.data.schemas import shard_encoding
from kubealign_components.errors import NotFound
from kubealign_components.store import store_for

if TYPE_CHECKING:
    from kubealign_components.data.segments import Bools

ROW_GROUP_BYTES = 8 * 2**20


class ShardFile:
    """A Parquet file that is being written at ``path``."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.rows = 0
        self._schema = schema
        self._writer: pq.ParquetWriter | None = None

    @property
    def size(self) -> int:
        """Bytes on disk so far."""
        return self.path.stat().st_size

    def write(self, rows: pa.Table, size: int) -> None:
        """Append ``rows`` of ``size`` bytes, as one row group unless they are far too many for one."""
        if self._writer is None:
            encoding = shard_encoding(self._schema)
            self._writer = pq.ParquetWriter(
                self.path,
                self._schema,
                compression="zstd",
                use_dictionary=encoding.dictionary,
                column_encoding=encoding.by_column,
                write_statistics=False,
            )
        groups = max(1, size // ROW_GROUP_BYTES)
        self._writer.write_table(rows, row_group_size=-(-rows.num_rows // groups))
        self.rows += rows.num_rows

    def close(self) -> None:
        """End the file, if it was begun."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def digest_at(uri: str) -> str:
    """SHA-256 of the object at ``uri``.

    Raises:
        NotFound: there is none.
    """
    with tempfile.TemporaryDirectory(prefix="kubealign-read-") as folder:
        return file_digest(store_for(uri).fetch(uri, Path(folder)))


def publish_shard(path: Path, uri: str, sha256: str) -> None:
    """Publish a shard. What a killed writer left under its name is the same, or damaged, and goes."""
    store = store_for(uri)
    if store.publish_file(path, uri):
        return
    with suppress(NotFound):
        if digest_at(uri) == sha256:
            return
    store.delete(uri)
    store.publish_file(path, uri)


def copy_object(source: str, target: str) -> bool:
    """Publish ``source`` under ``target``, from store to store, or by the store where it is one; False when
    ``target`` exists."""
    store = store_for(target)
    if type(store) is type(store_for(source)):
        return store.copy(source, target)
    with tempfile.TemporaryDirectory(prefix="kubealign-copy-") as folder:
        return store.publish_file(store_for(source).fetch(source, Path(folder)), target)


def read_groups(
    file: pq.ParquetFile, groups: list[int], columns: list[str] | None, batch_rows: int | None
) -> Iterator[pa.RecordBatch]:
    """Record batches of ``columns`` of the row ``groups``, in order.

    Args:
        file: the shard.
        groups: numbers of row groups.
        columns: names to read; None for all.
        batch_rows: most rows in a batch; None for row groups as they were written.
    """
    # One thread reads faster than several: a row group's columns are too small to share out.
    if batch_rows is not None:
        yield from file.iter_batches(batch_rows, row_groups=groups, columns=columns, use_threads=False)
        return
    for group in groups:
        table = file.read_row_group(group, columns=columns, use_threads=False)
        yield from table.combine_chunks().to_batches()


def read_span(
    file: pq.ParquetFile,
    columns: Sequence[str] | None,
    batch_rows: int | None,
    start: int,
    stop: int,
    marked: Bools | None = None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Rows ``start`` to ``stop`` of a shard, batch by batch, with the number of the first; row groups outside
    are not read.

    Args:
        file: the shard.
        columns: names to read; None for all.
        batch_rows: most rows in a batch; None for row groups as they were written.
        start: the first row.
        stop: behind the last row.
        marked: a flag for each row of the shard: row groups in which no row has one are not read either.
    """
    if start >= stop:
        return
    sizes = (file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
    edges = list(accumulate(sizes, initial=0))
    groups = [
        group
        for group, (first, end) in enumerate(pairwise(edges))
        if first < stop and end > start and (marked is None or marked[first:end].any())
    ]
    names = None if columns is None else list(columns)
    for together in [groups] if marked is None else [[group] for group in groups]:
        begin = edges[together[0]] if together else stop
        for batch in read_groups(file, together, names, batch_rows):
            low = max(start, begin)
            part = batch.slice(low - begin, max(0, stop - low))
            begin += batch.num_rows
            if part.num_rows:
                yield low, part


def with_new_fields(
    batch: pa.RecordBatch, schema: pa.Schema, columns: Sequence[str] | None
) -> pa.RecordBatch:
    """``batch`` with nulls for the fields that ``schema`` was given since it was written.

    Args:
        batch: as it was read.
        schema: of the dataset's kind.
        columns: what was asked for; parts of columns stay as they are.
    """
    if columns is not None and not set(columns) <= set(schema.names):
        return batch
    present = pa.schema([schema.field(name) for name in batch.schema.names])
    return batch if batch.schema.types == present.types else batch.cast(present)
