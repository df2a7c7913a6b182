"""Datasets: a folder of Parquet shards and the manifest that makes them one.

The manifest is published last and only once: a folder without it is nothing yet, and a reader
follows the manifest alone.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, overload

import pyarrow as pa
import pyarrow.parquet as pq

from kubealign_components.data.deletions import packed
from kubealign_components.data.fingerprint import Provenance, canonical_json, file_digest
from kubealign_components.data.job_thread import JobThread
from kubealign_components.data.manifest import (
    DROPPED_EXAMPLES,
    ENDED_EARLY,
    MANIFEST,
    UNDELETED,
    UNDELETED_FROM,
    Manifest,
    Shard,
)
from kubealign_components.data.origins import with_use
from kubealign_components.data.schemas import ROWS
from kubealign_components.data.shard_rows import ShardRows
from kubealign_components.data.shards import (
    ROW_GROUP_BYTES,
    ShardFile,
    copy_object,
    publish_shard,
)
from kubealign_components.data.stats import Stats
from kubealign_components.data.unpacked import json_columns, unpacked
from kubealign_components.errors import CorruptDataset, EmptyDataset, NotFound, SchemaMismatch, StoreError
from kubealign_components.json_types import JsonObject
from kubealign_components.store import join, last_part, store_for

if TYPE_CHECKING:
    import datasets
    import pandas

    from kubealign_components.data.segments import Bools

R = TypeVar("R")

SHARD_BYTES = 128 * 2**20

COPIES = 16
"""Shards that a store copies at once."""


class Dataset(ShardRows):
    """An existing dataset at ``uri``; rows are read through the store and checked against SHA-256."""

    def __init__(self, uri: str, manifest: Manifest) -> None:
        super().__init__(uri, manifest)
        self.copy = uri
        """Where a model's files are read: a copy on this machine where there is one."""

    @classmethod
    def open(cls, uri: str, *schemas: str, allow_empty: bool = False) -> Dataset:
        """Open the dataset at ``uri`` if it is of one of ``schemas`` (of any kind when none is given).

        Raises:
            NotFound: no manifest there: not a dataset, or one that was never finished.
            SchemaMismatch: a dataset of another kind; names both.
            EmptyDataset: it has no rows, ``allow_empty`` is False, and no stage has ended early on its way.
        """
        where = join(uri, MANIFEST)
        try:
            text = store_for(uri).read(where)
        except NotFound as error:
            raise NotFound(f"{uri} is no finished dataset: it has no {MANIFEST}") from error
        manifest = Manifest.from_json(text, where)
        if schemas and manifest.schema not in schemas:
            raise SchemaMismatch(f"{uri} is {manifest.schema}, expected {' or '.join(schemas)}")
        if not manifest.rows and not allow_empty and not manifest.ended_early:
            raise EmptyDataset(f"{uri} ({manifest.schema}) has no rows: {why_empty(manifest)}")
        return cls(uri, manifest)

    def __repr__(self) -> str:
        dropped = sum(self.manifest.stats.get("dropped", {}).values())
        lost = f", {dropped} dropped" if dropped else ""
        return f"<{self.manifest.schema} {self.manifest.slug!r}: {self.rows} rows{lost}, {self.uri}>"

    def __len__(self) -> int:
        return self.rows

    def __bool__(self) -> bool:
        """A dataset is one without rows, too, as models may be."""
        return True

    def __iter__(self) -> Iterator[JsonObject]:
        """Rows for people, in order: chats, tools and metadata as lists and mappings."""
        return map(unpacked, self.iter_rows())

    @property
    def ended_early(self) -> str:
        """Why nothing was made, where a stage ended early; empty for what was made."""
        return self.manifest.ended_early

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.manifest.rows

    def undeleted(self) -> Dataset | None:
        """The dataset that this is with the rows that are deleted, in the same files, whatever became of the
        one that they were taken from; None where the manifest does not tell."""
        manifest, says = self.manifest, self.manifest.extra.get(UNDELETED_FROM)
        if not isinstance(says, dict) or not {"step", "stats", "extra"} <= says.keys():
            return None
        shards = tuple(replace(shard, rows=shard.rows_in_file, deleted="") for shard in manifest.shards)
        whole = replace(
            manifest,
            shards=shards,
            rows=sum(shard.rows for shard in shards),
            fingerprint=manifest.undeleted,
            recipe=manifest.recipe | {manifest.undeleted: says["step"]},
            origins={manifest.undeleted: manifest.origins[manifest.fingerprint]} | manifest.origins,
            stats=says["stats"],
            extra=says["extra"],
        )
        return Dataset(self.uri, whole)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The whole dataset in memory; for small ones and for single columns."""
        schema = ROWS[self.manifest.schema]
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        return pa.Table.from_batches(self.batches(columns, batch_rows=65536), schema=schema)

    def to_pandas(self, columns: Sequence[str] | None = None) -> pandas.DataFrame:
        """The rows as a frame, in memory; chats, tools and metadata as in :meth:`__iter__`."""
        table = self.table(columns)
        frame: pandas.DataFrame = table.to_pandas()
        for name in json_columns(table.schema):
            frame[name] = [unpacked(row)[name] for row in table.select([name]).to_pylist()]
        return frame

    def to_datasets(self, columns: Sequence[str] | None = None) -> datasets.Dataset:
        """The rows as a ``datasets.Dataset``, in memory; chats and tools are JSON text in it."""
        import datasets

        return datasets.Dataset(self.table(columns))

    @overload
    def iter_rows(self, columns: Sequence[str] | None = None) -> Iterator[JsonObject]: ...

    @overload
    def iter_rows(self, columns: Sequence[str] | None = None, *, of: type[R]) -> Iterator[R]: ...

    def iter_rows(self, columns: Sequence[str] | None = None, *, of: type | None = None) -> Iterator[object]:
        """Rows as dicts, in order.

        Args:
            columns: names to read; those of ``of`` by default, or else all.
            of: a TypedDict of :mod:`kubealign_components.data.schemas`, or one with some of its columns, that
                says what a row holds.

        Raises:
            SchemaMismatch: ``of`` has a column that rows of this kind have not.
        """
        if of is not None:
            columns = self._columns_of(of) if columns is None else columns
        for batch in self.batches(columns):
            yield from batch.to_pylist()

    def _columns_of(self, kind: type) -> list[str]:
        """The columns of the TypedDict ``kind``, in the order of the schema."""
        names, asked = ROWS[self.manifest.schema].names, kind.__annotations__.keys()
        if lacking := sorted(asked - set(names)):
            raise SchemaMismatch(
                f"{self.uri} is {self.manifest.schema}, which has no {' and no '.join(lacking)}: expected "
                f"the columns of a {kind.__name__}"
            )
        return [name for name in names if name in asked]

    def verify(self) -> None:
        """Read every shard and hold it to the manifest.

        Raises:
            CorruptDataset, NotFound: a shard is damaged or gone; names it.
        """
        with closing(self._files(range(len(self.manifest.shards)))) as files:
            for number, path in enumerate(files):
                self._check_rows(number, pq.read_metadata(path).num_rows)

    def check_sizes(self) -> None:
        """Hold the sizes of the shards to the manifest, without reading them.

        Raises:
            CorruptDataset: a shard is of another size, or gone; names it.
        """
        sizes = {last_part(entry.uri): entry.size for entry in store_for(self.home).list(self.home)}
        for shard in self.manifest.shards:
            size = sizes.get(last_part(shard.path))
            if size != shard.size:
                stands = "is gone" if size is None else f"has {size} bytes"
                raise CorruptDataset(
                    f"{self.shard_uri(shard)} {stands}, the manifest says {shard.size} bytes; make the "
                    "dataset again"
                )


class DatasetWriter:
    """Writes rows to shards and publishes them, then the manifest.

    Use as a context; nothing is visible as a dataset until :meth:`commit`, and leaving the block
    without it leaves no dataset. When a dataset with the same fingerprint is already published at
    ``uri`` (a retried pod), :meth:`commit` keeps that one.

    Row groups are encoded in a thread, and shards published in another, one behind: an error of theirs
    (StoreError) is raised by a later call.
    """

    def __init__(
        self, uri: str, schema: str, provenance: Provenance, *, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.uri = uri
        self.schema = schema
        self.provenance = provenance
        self.rows = 0
        self.undeleted = ""
        """See :attr:`Manifest.undeleted`."""
        self._undeleted_from: JsonObject = {}
        self._shards: list[Shard] = []
        self._copied: list[str] = []
        self._shard_bytes = shard_bytes
        self._pending: list[pa.Table] = []
        self._pending_bytes = 0

    def __enter__(self) -> DatasetWriter:
        self._folder = tempfile.TemporaryDirectory(prefix="kubealign-write-")
        self._numbers = count()
        self._file = self._new_file()
        self._encoder, self._publisher = JobThread("encode-rows"), JobThread("publish-shard")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._encoder.end()
        self._publisher.end()
        with suppress(OSError):  # a full disk refuses the footer as well, and has been reported
            self._file.close()
        self._folder.cleanup()
        if kind is not None:
            self._remove_copies()

    def _remove_copies(self) -> None:
        """Remove what was taken over for a dataset that is none, unless another attempt has made it one."""
        with suppress(StoreError):
            store = store_for(self.uri)
            for uri in self._copied if not store.exists(join(self.uri, MANIFEST)) else ():
                store.delete(uri)

    def write_rows(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Append rows given as dicts; a column that is not in the schema is an error (ValueError)."""
        if rows:
            self.write(pa.RecordBatch.from_pylist(list(rows), schema=ROWS[self.schema]))

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Append a record batch or table with the schema's columns."""
        if not batch.num_rows:
            return
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        self._pending.append(table.cast(ROWS[self.schema]))
        self._pending_bytes += table.nbytes
        self.rows += batch.num_rows
        if self._pending_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def adopt_less(self, source: Dataset, deleted: Sequence[Bools]) -> None:
        """Take over the shards of ``source``, of which no row is deleted, without some rows.

        Args:
            source: the dataset.
            deleted: for each shard which rows are not of this dataset, shape (rows,).
        """
        shards = tuple(
            replace(shard, rows=shard.rows - int(mask.sum()), deleted=packed(mask))
            for shard, mask in zip(source.manifest.shards, deleted, strict=True)
        )
        manifest = replace(source.manifest, shards=shards, rows=sum(shard.rows for shard in shards))
        self.adopt(Dataset(source.uri, manifest))
        if source.manifest.fingerprint != self.provenance.fingerprint:
            self.undeleted = source.manifest.fingerprint
            # Examples of what was dropped may be of the rows that are gone.
            extra = {name: said for name, said in source.manifest.extra.items() if name != DROPPED_EXAMPLES}
            step, stats = source.manifest.provenance.step, source.manifest.stats
            self._undeleted_from = {UNDELETED_FROM: {"step": step, "stats": stats, "extra": extra}}

    def adopt(self, *sources: Dataset) -> None:
        """Take over the shards of ``sources`` as they are: the store copies many at once, no rows pass
        through here."""
        self.close_shard()
        copies: list[tuple[str, str]] = []
        for source in sources:
            for shard in source.manifest.shards:
                taken = replace(shard, path=self._shard_name(shard.sha256))
                copies.append((source.shard_uri(shard), join(self.uri, taken.path)))
                self._shards.append(taken)
                self.rows += shard.rows

        def take(copy: tuple[str, str]) -> None:
            if copy_object(*copy):
                self._copied.append(copy[1])

        with ThreadPoolExecutor(COPIES, "copy-shard") as pool:
            list(pool.map(take, copies))

    def commit(self, stats: Stats, extra: Mapping[str, object] | None = None) -> Dataset:
        """Publish the dataset and open it; ``stats`` must add up.

        Raises:
            CorruptDataset: another dataset is already published at this URI.
        """
        stats.check()
        self.close_shard()
        ended = self.provenance.ended_early
        extra = {**(extra or {}), **({ENDED_EARLY: ended} if ended else {})}
        extra = {**extra, **({UNDELETED: self.undeleted} if self.undeleted else {}), **self._undeleted_from}
        manifest = Manifest(
            schema=self.schema,
            rows=self.rows,
            shards=tuple(self._shards),
            fingerprint=self.provenance.fingerprint,
            recipe=self.provenance.recipe,
            slug=self.provenance.slug,
            parents=self.provenance.parents,
            identity=self.provenance.identity,
            origins=with_use(self.provenance.origins, self.provenance.fingerprint),
            stats=stats.to_json(),
            extra=json.loads(canonical_json(extra)),
        )
        where = join(self.uri, MANIFEST)
        if not store_for(self.uri).publish(where, manifest.to_json().encode()):
            standing = Dataset.open(self.uri, allow_empty=True)
            if standing.manifest.fingerprint != manifest.fingerprint:
                raise CorruptDataset(
                    f"{self.uri} already holds dataset {standing.manifest.slug!r} "
                    f"({standing.manifest.fingerprint[:12]}); choose another place for {manifest.slug!r}"
                )
            return standing
        return Dataset(self.uri, manifest)

    def close_shard(self) -> None:
        """End the current shard and wait until it is published; the next row starts another."""
        self._flush()
        self._encoder.run(self._end_file)
        self._encoder.wait()
        self._publisher.wait()

    def _flush(self) -> None:
        """Hand what is pending to the encoder as one row group."""
        if not self._pending:
            return
        rows = pa.concat_tables(self._pending)
        self._pending.clear()
        size, self._pending_bytes = self._pending_bytes, 0
        self._encoder.run(self._encode, rows, size)

    def _encode(self, rows: pa.Table, size: int) -> None:
        try:
            self._file.write(rows, size)
        except OSError as error:
            raise self._cannot_write(error) from error
        if self._file.size >= self._shard_bytes:
            self._end_file()

    def _end_file(self) -> None:
        if not self._file.rows:
            return
        try:
            self._file.close()
        except OSError as error:
            raise self._cannot_write(error) from error
        self._publisher.run(self._publish, self._file)
        self._file = self._new_file()

    def _publish(self, file: ShardFile) -> None:
        sha256, size = file_digest(file.path), file.size
        shard = Shard(path=self._shard_name(sha256), rows=file.rows, size=size, sha256=sha256)
        publish_shard(file.path, join(self.uri, shard.path), sha256)
        file.path.unlink()
        self._shards.append(shard)

    def _new_file(self) -> ShardFile:
        return ShardFile(Path(self._folder.name, f"{next(self._numbers)}.parquet"), ROWS[self.schema])

    def _cannot_write(self, error: OSError) -> StoreError:
        return StoreError(
            f"cannot write a shard of {self.uri} in {self._folder.name}: {error}; free space there or name "
            "another place in TMPDIR"
        )

    def _shard_name(self, sha256: str) -> str:
        # The content hash in the name keeps two writers that race from mixing their shards.
        return f"shard-{len(self._shards):05d}-{sha256[:12]}.parquet"


def why_empty(manifest: Manifest) -> str:
    """Why there are no rows: the counts of what was dropped, by reason."""
    dropped = manifest.stats.get("dropped", {})
    reasons = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
    return f"all were dropped ({reasons})" if reasons else "none came in"
