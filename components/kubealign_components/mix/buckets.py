"""A shuffle of rows in memory, or of more than fit there, through temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from kubealign_components.data.arrow_take import take
from kubealign_components.data.job_thread import JobThread
from kubealign_components.data.seeds import Keys
from kubealign_components.errors import StoreError

BUFFER_BYTES = 24 * 2**20
MAX_BUCKETS = 256  # files open at once


class Buckets:
    """Rows by the high bits of their keys.

    The buckets one after the other, each sorted by key, are all rows sorted by key, however many
    buckets there are. Within a bucket, rows stay in the order in which they were added.

    Args:
        count: number of buckets, 1 to :data:`MAX_BUCKETS`; one after :meth:`finish` when all rows
            stayed in memory.
        schema: of the rows.
        memory_bytes: rows that stay in memory; with more, all are written out.
        buffer_bytes: rows that are written out at once.
    """

    def __init__(
        self,
        count: int,
        schema: pa.Schema,
        *,
        memory_bytes: int,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self.count = count
        self.rows = 0
        self._schema = schema
        self._memory_bytes = memory_bytes
        self._buffer_bytes = buffer_bytes
        self._spilled = False
        self._in_memory: pa.RecordBatch | None = None
        self._pending: list[tuple[pa.RecordBatch, Keys]] = []
        self._pending_bytes = 0
        self._files: dict[int, pa.OSFile] = {}
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def __enter__(self) -> Buckets:
        self._folder = tempfile.TemporaryDirectory(prefix="kubealign-mix-")
        self._thread = JobThread("buckets")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.end()
        for file in self._files.values():
            file.close()
        self._folder.cleanup()

    def add(self, rows: pa.RecordBatch, keys: Keys) -> None:
        """Add ``rows`` with one uniformly distributed key each; they are written out in a thread.

        Raises:
            StoreError: the temporary files cannot be written, or could not be before.
        """
        self._pending.append((rows, keys))
        self._pending_bytes += rows.nbytes
        self.rows += len(rows)
        if self._pending_bytes > (self._buffer_bytes if self._spilled else self._memory_bytes):
            self._spilled = True
            self._flush()

    def finish(self) -> None:
        """End adding; the buckets can be read after."""
        if not self._spilled:
            self.count = 1
            self._in_memory = pa.concat_batches([batch for batch, _ in self._pending] or [self._none()])
            self._pending.clear()
            return
        self._flush()
        self._thread.wait()
        try:
            for number, writer in self._writers.items():
                writer.close()
                self._files[number].close()
        except OSError as error:
            raise self._cannot_write(error) from error

    def read(self, number: int, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """The rows of bucket ``number``, in the order in which they were added."""
        names = self._schema.names if columns is None else list(columns)
        if self._in_memory is not None:
            return self._in_memory.select(names)
        if number not in self._writers:
            return self._none().select(names)
        fields = [self._schema.get_field_index(name) for name in names]
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        with (
            pa.memory_map(str(self._path(number))) as file,
            pa.ipc.open_stream(file, options=options) as reader,
        ):
            return pa.concat_batches(reader)

    def _flush(self) -> None:
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        if pending:
            self._thread.run(self._write_out, pending)

    def _none(self) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist([], schema=self._schema)

    def _write_out(self, pending: list[tuple[pa.RecordBatch, Keys]]) -> None:
        while pending:
            size, count = 0, 0
            while count < len(pending) and size < self._buffer_bytes:
                size += pending[count][0].nbytes
                count += 1
            self._write_some(pending[:count])
            del pending[:count]

    def _write_some(self, pending: list[tuple[pa.RecordBatch, Keys]]) -> None:
        rows = pa.concat_batches([batch for batch, _ in pending])
        keys = np.concatenate([keys for _, keys in pending])
        bucket = ((keys >> np.uint64(32)) * np.uint64(self.count)) >> np.uint64(32)
        order = np.argsort(bucket.astype(np.uint16), kind="stable")
        edges = np.searchsorted(bucket[order], np.arange(self.count + 1))
        rows = take(rows, order)
        try:
            for number in np.flatnonzero(np.diff(edges)).tolist():
                self._writer(number).write(rows.slice(edges[number], edges[number + 1] - edges[number]))
        except OSError as error:
            raise self._cannot_write(error) from error

    def _writer(self, number: int) -> pa.ipc.RecordBatchStreamWriter:
        if number not in self._writers:
            self._files[number] = pa.OSFile(str(self._path(number)), "wb")
            self._writers[number] = pa.ipc.new_stream(self._files[number], self._schema)
        return self._writers[number]

    def _path(self, number: int) -> Path:
        return Path(self._folder.name) / f"{number}.arrow"

    def _cannot_write(self, error: OSError) -> StoreError:
        return StoreError(
            f"cannot write the shuffle's temporary files in {self._folder.name}: {error}; free space there "
            "or name another place in TMPDIR"
        )
