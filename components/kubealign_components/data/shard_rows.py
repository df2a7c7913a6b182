"""The rows of the shards of a manifest: fetched, verified, and read without those that are deleted."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kubealign_components.data.arrow_take import keep
from kubealign_components.data.deletions import unpacked_deletions
from kubealign_components.data.fingerprint import file_digest
from kubealign_components.data.manifest import Manifest, Shard
from kubealign_components.data.schemas import ROWS
from kubealign_components.data.shards import read_span, with_new_fields
from kubealign_components.errors import CorruptDataset
from kubealign_components.store import beside, join, scheme_of, store_for

if TYPE_CHECKING:
    from kubealign_components.data.segments import Bools, Ints

BATCH_ROWS = 512

AHEAD = 3
"""Shards of a store behind a network that are fetched while one is read."""


def completion_columns(*names: str) -> tuple[str, ...]:
    """Fields of completions as a reader names columns, so that it reads no others."""
    return tuple(f"completions.list.element.{name}" for name in names)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of the file of a shard: those that ``mask``, a flag for each row of the file,
    has; all where it is None."""

    number: int
    start: int
    stop: int
    mask: Bools | None


def _piece(number: int, rows: Ints, mask: Bools) -> _Piece:
    """The shortest piece with all of ``rows``, which ascend; an empty one where there are none."""
    return _Piece(number, int(rows[0]), int(rows[-1]) + 1, mask) if len(rows) else _Piece(number, 0, 0, mask)


class ShardRows:
    """Rows of the dataset at ``uri``; every row that is read of a dataset is read here."""

    def __init__(self, uri: str, manifest: Manifest) -> None:
        self.uri = uri
        self.manifest = manifest
        self._kept: dict[int, Path] | None = None

    def shard_uri(self, shard: Shard) -> str:
        """Where ``shard`` lies."""
        return join(self.home, shard.path)

    @property
    def home(self) -> str:
        """The folder of the shards: beside what ``uri`` points at, where it is a link of a run folder."""
        if not self.manifest.shards_in:
            return self.uri
        local = scheme_of(self.uri) == "file"
        uri = os.path.realpath(self.uri.removeprefix("file://")) if local else self.uri
        return beside(uri, self.manifest.shards_in)

    def keep_files(self) -> None:
        """Fetch and verify a shard once, however often it is read: it stays on this machine until this object
        goes."""
        if self._kept is None:
            self._kept = {}

    @cached_property
    def _kept_in(self) -> str:
        """The folder for shards that are kept; made when there is one to fetch, or a kill leaves it empty."""
        folder = tempfile.mkdtemp(prefix="kubealign-kept-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def batches(
        self,
        columns: Sequence[str] | None = None,
        *,
        batch_rows: int | None = BATCH_ROWS,
        spans: Iterable[tuple[int, int, int]] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Record batches of at most ``batch_rows`` rows, in order, in bounded memory.

        Args:
            columns: names to read; all by default.
            batch_rows: most rows in a batch; None for row groups as they were written, about 8 MB
                each, which is the fastest for work on whole columns.
            spans: ``(shard number, first row, end row)`` to read; everything by default.

        Raises:
            CorruptDataset: a shard is not the one that the manifest describes.
        """
        if spans is None:
            spans = [(i, 0, shard.rows) for i, shard in enumerate(self.manifest.shards)]
        yield from self._read([self._live(*span) for span in spans], columns, batch_rows)

    def marked_batches(
        self, columns: Sequence[str] | None, marked: Sequence[Bools]
    ) -> Iterator[pa.RecordBatch]:
        """The rows that are marked, whether or not they are deleted, in order, as row groups have them.

        Args:
            columns: names to read; None for all.
            marked: for each shard a flag for each row of its file.
        """
        pieces = [_piece(number, np.flatnonzero(flags), flags) for number, flags in enumerate(marked)]
        yield from self._read([piece for piece in pieces if piece.start < piece.stop], columns, None)

    def deleted_batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows that are deleted in the shards, as in :meth:`marked_batches`."""
        return self.marked_batches(columns, self.deletions())

    def by_shard(self, flags: Bools) -> list[Bools]:
        """``flags``, one for each row that is not deleted, as one array for each shard."""
        ends = np.cumsum([shard.rows for shard in self.manifest.shards])
        return np.split(flags, ends[:-1])

    def deletions(self) -> list[Bools]:
        """For each shard which rows of its file are deleted, shape (rows of the file,)."""
        return [self._deleted(number) for number in range(len(self.manifest.shards))]

    def _deleted(self, number: int) -> Bools:
        shard = self.manifest.shards[number]
        return unpacked_deletions(shard.deleted, shard.rows_in_file)

    def _live(self, number: int, start: int, stop: int) -> _Piece:
        """Rows ``start`` to ``stop`` of those of shard ``number`` that are not deleted."""
        if not self.manifest.shards[number].deleted:
            return _Piece(number, start, stop, None)
        live = ~self._deleted(number)
        return _piece(number, np.flatnonzero(live)[start:stop], live)

    def _read(
        self, pieces: Sequence[_Piece], columns: Sequence[str] | None, batch_rows: int | None
    ) -> Iterator[pa.RecordBatch]:
        schema = ROWS[self.manifest.schema]
        with closing(self._files([piece.number for piece in pieces])) as files:
            for path, piece in zip(files, pieces):
                with pq.ParquetFile(path) as file:
                    self._check_rows(piece.number, file.metadata.num_rows)
                    mask = piece.mask
                    for first, batch in read_span(file, columns, batch_rows, piece.start, piece.stop, mask):
                        kept = batch if mask is None else keep(batch, mask[first : first + batch.num_rows])
                        if kept.num_rows:
                            yield with_new_fields(kept, schema, columns)

    def _check_rows(self, number: int, held: int) -> None:
        shard = self.manifest.shards[number]
        if held != shard.rows_in_file:
            raise CorruptDataset(
                f"{self.shard_uri(shard)} has {held} rows, the manifest says {shard.rows_in_file}; make the "
                "dataset again"
            )

    def _files(self, numbers: Sequence[int]) -> Generator[Path, None, None]:
        """A verified local file of each shard; the next are fetched and hashed while one is read."""
        most = 1 if scheme_of(self.uri) == "file" else AHEAD
        with (
            tempfile.TemporaryDirectory(prefix="kubealign-read-") as folder,
            ThreadPoolExecutor(most, "fetch-shard") as threads,
        ):
            ahead: deque[Future[Path]] = deque()
            for position, number in enumerate([*numbers, *[None] * most]):
                if number is not None:
                    ahead.append(threads.submit(self._file, number, Path(folder, str(position))))
                if position >= most and ahead:
                    path = ahead.popleft().result()
                    yield path
                    if path.is_relative_to(folder):
                        path.unlink()

    def _file(self, number: int, folder: Path) -> Path:
        shard = self.manifest.shards[number]
        if self._kept is None:
            return self._verified(shard, folder)
        if number not in self._kept:
            here = scheme_of(self.uri) == "file"
            self._kept[number] = self._verified(shard, folder if here else Path(self._kept_in))
        return self._kept[number]

    def _verified(self, shard: Shard, folder: Path) -> Path:
        uri = self.shard_uri(shard)
        path = store_for(uri).fetch(uri, folder)
        actual = file_digest(path)
        if actual != shard.sha256:
            raise CorruptDataset(
                f"{uri}: {path.stat().st_size} bytes with SHA-256 {actual[:12]}, the manifest says "
                f"{shard.size} bytes with {shard.sha256[:12]}; the shard is damaged, make the dataset again"
            )
        return path
