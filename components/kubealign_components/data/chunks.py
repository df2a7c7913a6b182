"""The chunk protocol: what makes a pod cheap to lose.

``plan`` cuts a dataset into chunks; a worker turns one chunk into a *part*; ``merge`` joins the
parts when, and only when, they hold exactly the rows that were planned.

Inside a chunk, work proceeds in slices. A finished slice is committed to the work prefix: first its
data under a name made of its content, then a commit record with the keys of its rows, published
only if absent. A row's key is a content hash, and the folder it lies in is named by the stage's
settings and models: so a worker that starts again, another run, or a run over a grown dataset finds
every row that was ever finished, whatever the chunk and slice sizes were.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kubealign_components.config import require
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import Provenance, digest
from kubealign_components.data.limits import MAX_CHUNKS
from kubealign_components.data.manifest import MANIFEST
from kubealign_components.data.seeds import ID_LENGTH, mix64
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ChunkError, CorruptDataset, KubeAlignError, NotFound
from kubealign_components.preemption import Preempted, preemptible
from kubealign_components.progress import progress_bar
from kubealign_components.store import join, store_for

log = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A descriptor of one chunk: small JSON that a planning task returns."""

    dataset: str
    """URI of the dataset that is cut."""
    fingerprint: str
    """Its fingerprint when it was planned."""
    index: int
    of: int
    spans: tuple[tuple[int, int, int], ...]
    """``(shard number, first row, end row)`` of each piece."""
    rows: int
    row_ids: str
    """SHA-256 over the prompt ids of its rows, in order."""
    work: str
    """URI of the work prefix."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Chunk:
        """From :meth:`to_json`, also after KFP has turned its integers into floats."""
        spans = tuple((int(a), int(b), int(c)) for a, b, c in value["spans"])
        numbers = {name: int(value[name]) for name in ("index", "of", "rows")}
        return cls(**{**value, **numbers, "spans": spans})


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What a worker gives back for its chunk: where the part is and what was reused."""

    index: int
    uri: str
    rows: int
    reused_rows: int
    """Rows that an earlier attempt or run had already finished."""

    def to_json(self) -> str:
        """One line of JSON, small enough for ``Collected``."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Part:
        """From :meth:`to_json`."""
        return cls(**json.loads(text))


class ChunkedStage(Protocol):
    """What a chunked stage brings: how a row is keyed, computed and put together."""

    result_schema: pa.Schema
    """Columns of a row's result."""

    def key(self, row: Row) -> str:
        """Content hash of everything in ``row`` that its result depends on."""
        ...

    def compute(self, slices: Iterator[list[Row]]) -> Iterator[tuple[Row, Row]]:
        """Every row with its result, as soon as it is known, in any order.

        Takes slices one by one when it has room for more rows: an engine that works on many at once need
        not run dry between two slices. Starts an engine when there is a first slice, and not before.
        """
        ...

    def apply(self, row: Row, result: Row) -> Row:
        """The output row."""
        ...

    def summarise(self, rows: Sequence[Row], stats: Stats) -> None:
        """Count what matters in the output ``rows``."""
        ...


def plan(
    dataset: Dataset,
    *,
    work: str,
    chunks: int | None = None,
    rows_per_chunk: int | None = None,
    most: int = MAX_CHUNKS,
) -> list[Chunk]:
    """Cut ``dataset`` into at most ``most`` chunks of nearly equal row counts.

    Args:
        dataset: with unique prompt ids.
        work: URI of the work prefix.
        chunks: how many, or None to follow ``rows_per_chunk``; never more than there are rows.
        rows_per_chunk: most rows in a chunk; grows when it would take too many chunks.
        most: chunks of a fan-out.

    Raises:
        ConfigError: not exactly one of ``chunks`` and ``rows_per_chunk``, or not positive.
        ChunkError: there are no rows.
        CorruptDataset: a prompt id stands twice.
    """
    require(
        (chunks is None) != (rows_per_chunk is None),
        "chunks",
        chunks,
        "exactly one of chunks and rows_per_chunk",
    )
    for name, value in (("chunks", chunks), ("rows_per_chunk", rows_per_chunk)):
        require(value is None or value > 0, name, value, "a positive number")
    if not dataset.rows:
        raise ChunkError(f"{dataset.uri} has no rows to cut into chunks; show says which stage dropped them")
    wanted = chunks if chunks is not None else -(-dataset.rows // (rows_per_chunk or 1))
    count = min(wanted, dataset.rows, most)
    if wanted > most:
        log.warning("%d chunks were asked for, a fan-out takes at most %d: chunks are larger", wanted, most)
    ids = dataset.table(["prompt_id"]).column("prompt_id")
    _check_unique(ids, dataset.uri)
    starts = [dataset.rows * i // count for i in range(count + 1)]
    return [
        Chunk(
            dataset=dataset.uri,
            fingerprint=dataset.manifest.fingerprint,
            index=i,
            of=count,
            spans=tuple(_spans(dataset, start, stop)),
            rows=stop - start,
            row_ids=_digest_of(ids.slice(start, stop - start)),
            work=work,
        )
        for i, (start, stop) in enumerate(pairwise(starts))
    ]


def open_chunk(chunk: Chunk, *schemas: str) -> Dataset:
    """The dataset that ``chunk`` was cut from.

    Raises:
        ChunkError: it changed since the plan.
    """
    dataset = Dataset.open(chunk.dataset, *schemas)
    if dataset.manifest.fingerprint != chunk.fingerprint:
        raise ChunkError(
            f"chunk {chunk.index} was planned on {chunk.fingerprint[:12]}, but {chunk.dataset} is now "
            f"{dataset.manifest.fingerprint[:12]}; plan again"
        )
    return dataset


def run_chunk(
    chunk: Chunk,
    dataset: Dataset,
    stage: ChunkedStage,
    *,
    schema: str,
    provenance: Provenance,
    slice_rows: int,
) -> Part:
    """Compute what is missing of ``chunk``, slice by slice, and publish its part.

    Args:
        chunk: the descriptor.
        dataset: what it was cut from, from :func:`open_chunk`.
        stage: computes the rows.
        schema: kind of the part.
        provenance: of the merged dataset, the same for every chunk.
        slice_rows: rows committed together; at most this many are lost with the pod.

    Raises:
        CorruptDataset: committed bytes were changed, or the chunk's rows are not those planned.
        StoreError: no room for a slice or the part.
        Preempted: SIGTERM came; the process leaves with exit code 143.
    """
    name = provenance.step["stage"]
    work = join(chunk.work, name, provenance.work_key[:16])
    part_uri = join(chunk.work, name, "parts", digest([provenance.fingerprint, chunk.row_ids])[:32])
    if _finished_part(part_uri, chunk, provenance.fingerprint, schema):
        log.info("%s chunk %d of %d was finished before", name, chunk.index + 1, chunk.of)
        return Part(index=chunk.index, uri=part_uri, rows=chunk.rows, reused_rows=chunk.rows)
    with preemptible(f"{name} chunk {chunk.index + 1} of {chunk.of}") as check:
        slices = SliceStore(work, stage.result_schema)
        reused = _compute_missing(chunk, dataset, stage, slices, slice_rows, name, check)
        _write_part(part_uri, chunk, dataset, stage, slices, check, schema=schema, provenance=provenance)
    return Part(index=chunk.index, uri=part_uri, rows=chunk.rows, reused_rows=reused)


def merge(parts: Sequence[Part], chunks: Sequence[Chunk], output: str) -> Dataset:
    """Join ``parts`` into one dataset at ``output``; the store copies the shards.

    Raises:
        ChunkError: a part is missing, there twice, of other rows than planned, or of another recipe.
        CorruptDataset: a part is damaged; its chunk, run again, makes it anew.
    """
    if not chunks:
        raise ChunkError("no chunks were planned, so there is nothing to merge; plan a dataset that has rows")
    by_index = {part.index: part for part in parts}
    planned = {chunk.index for chunk in chunks}
    if len(by_index) != len(parts) or set(by_index) != planned:
        raise ChunkError(
            f"parts {sorted(p.index for p in parts)} do not match the planned chunks {sorted(planned)}; "
            "run the missing chunks again"
        )
    opened = [Dataset.open(by_index[chunk.index].uri) for chunk in chunks]
    first = opened[0].manifest
    stats = Stats()
    for chunk, part in zip(chunks, opened):
        _check_part(chunk, part, first.fingerprint, first.schema)
        part.check_sizes()
        _add_json(stats, part.manifest.stats)
    stats.counts["chunks"] = len(chunks)
    stats.counts["rows_reused"] = sum(part.reused_rows for part in parts)
    stats.counts["chunks_reused"] = sum(part.reused_rows == part.rows for part in parts)
    with DatasetWriter(output, first.schema, first.provenance) as writer:
        writer.adopt(*opened)
        return writer.commit(stats, {"chunked": True})


def row_ids_digest(ids: Sequence[str]) -> str:
    """SHA-256 over row ids in order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


class SliceStore:
    """Finished rows under one work prefix, by key."""

    def __init__(self, uri: str, schema: pa.Schema) -> None:
        self._uri = uri
        self._schema = pa.schema([("row_key", pa.string()), *schema])
        self._slice_of: dict[str, tuple[str, str, str]] = {}
        self._load = lru_cache(maxsize=8)(self._read)
        store = store_for(uri)
        commits = [o.uri for o in store.list(join(uri, "commits")) if o.uri.endswith(".json")]
        with ThreadPoolExecutor(16) as pool:
            records = pool.map(lambda u: _parse_commit(store.read(u), u), commits)
            for commit, record in zip(commits, records):
                self._index(record, commit)

    def __contains__(self, key: str) -> bool:
        return key in self._slice_of

    def __getitem__(self, key: str) -> Row:
        return self._load(*self._slice_of[key])[key]

    def commit(self, keys: Sequence[str], results: Sequence[Row]) -> None:
        """Publish the results of one slice; when another worker was first, its results stand."""
        rows = [{**result, "row_key": key} for key, result in zip(keys, results, strict=True)]
        store = store_for(self._uri)
        encoded = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=self._schema), encoded, compression="zstd")
        content = encoded.getvalue().to_pybytes()
        sha256 = hashlib.sha256(content).hexdigest()
        data = join(self._uri, "data", f"{sha256[:32]}.parquet")
        store.publish(data, content)
        record = {"data": data.rsplit("/", 1)[1], "sha256": sha256, "keys": list(keys)}
        commit = join(self._uri, "commits", f"{digest(list(keys))[:32]}.json")
        if not store.publish(commit, json.dumps(record).encode()):
            record = _parse_commit(store.read(commit), commit)
        self._index(record, commit)

    def _index(self, record: dict[str, Any], commit: str) -> None:
        for key in record["keys"]:
            self._slice_of.setdefault(key, (record["data"], record["sha256"], commit))

    def _read(self, name: str, sha256: str, commit: str) -> dict[str, Row]:
        uri = join(self._uri, "data", name)
        try:
            data = store_for(uri).read(uri)
        except NotFound as error:
            raise CorruptDataset(
                f"{uri} is gone since it was committed; delete {commit} and run again"
            ) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptDataset(
                f"{uri}: bytes changed since they were committed; delete it and {commit}, and run again"
            )
        return {row.pop("row_key"): row for row in pq.read_table(pa.BufferReader(data)).to_pylist()}


def _finished_part(uri: str, chunk: Chunk, fingerprint: str, schema: str) -> bool:
    """Whether the part of ``chunk`` stands at ``uri``, whole. A damaged one is removed: its slices are there
    to make it again."""
    try:
        part = Dataset.open(uri, schema)
    except NotFound:
        return False
    except KubeAlignError as error:
        _remove(uri, error)
        return False
    try:
        _check_part(chunk, part, fingerprint, schema)
        part.verify()
    except (ChunkError, CorruptDataset, NotFound) as error:
        _remove(uri, error)
        return False
    return True


def _remove(uri: str, why: Exception) -> None:
    log.warning("a part is removed and made again from its finished slices: %s", why)
    store = store_for(uri)
    store.delete(join(uri, MANIFEST))  # first: without it what is left is no dataset
    for entry in list(store.list(uri)):
        store.delete(entry.uri)


def _compute_missing(
    chunk: Chunk,
    dataset: Dataset,
    stage: ChunkedStage,
    slices: SliceStore,
    slice_rows: int,
    name: str,
    check: Callable[[], None],
) -> int:
    """Commit every row of ``chunk`` that is not committed yet; gives the number that were."""
    reused = 0
    finished: list[tuple[Row, Row]] = []
    label = f"{name} {chunk.index + 1}/{chunk.of}"

    def missing() -> Iterator[Row]:
        nonlocal reused
        for row in _rows(dataset, chunk):
            if stage.key(row) in slices:
                reused += 1
                bar.update(1)
            else:
                # Here, where the stage asks for more: what it has computed it has given back.
                check()
                yield row

    def commit() -> None:
        if finished:
            slices.commit([stage.key(row) for row, _ in finished], [result for _, result in finished])
            finished.clear()

    with progress_bar(chunk.rows, "prompts", label) as bar:
        try:
            for pair in stage.compute(_batched(missing(), slice_rows)):
                finished.append(pair)
                bar.update(1)
                if len(finished) >= slice_rows:
                    commit()
                    check()
        except Preempted:
            commit()
            raise
        commit()
    if reused:
        log.info("%s: %d of %d rows were finished before", label, reused, chunk.rows)
    return reused


def _write_part(
    uri: str,
    chunk: Chunk,
    dataset: Dataset,
    stage: ChunkedStage,
    slices: SliceStore,
    check: Callable[[], None],
    *,
    schema: str,
    provenance: Provenance,
) -> None:
    stats = Stats(rows_in=chunk.rows)
    ids: list[str] = []
    with DatasetWriter(uri, schema, provenance) as writer:
        for batch in _batched(_rows(dataset, chunk), 256):
            check()
            rows = [stage.apply(row, slices[stage.key(row)]) for row in batch]
            ids += [row["prompt_id"] for row in rows]
            stage.summarise(rows, stats)
            writer.write_rows(rows)
        if row_ids_digest(ids) != chunk.row_ids:
            raise CorruptDataset(
                f"chunk {chunk.index}: {chunk.dataset} no longer holds the rows that were planned"
            )
        stats.rows_out = writer.rows
        writer.commit(stats, {"row_ids": chunk.row_ids})


def _rows(dataset: Dataset, chunk: Chunk) -> Iterator[Row]:
    for batch in dataset.batches(spans=chunk.spans):
        yield from batch.to_pylist()


def _batched(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _spans(dataset: Dataset, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    first = 0
    for number, shard in enumerate(dataset.manifest.shards):
        low, high = max(start - first, 0), min(stop - first, shard.rows)
        if low < high:
            yield number, low, high
        first += shard.rows


def _digest_of(ids: pa.ChunkedArray) -> str:
    """:func:`row_ids_digest` without a Python object for every id."""
    one = pa.ListArray.from_arrays(pa.array([0, len(ids)], pa.int32()), ids.combine_chunks())
    return hashlib.sha256(pc.binary_join(one, "\n")[0].as_buffer()).hexdigest()


def _check_unique(ids: pa.ChunkedArray, where: str) -> None:
    # Sorting 64-bit hashes is far faster than a table of texts; the texts decide only where two agree.
    hashes = [found for chunk in ids.chunks if (found := _hashes(chunk)) is not None]
    if len(hashes) == ids.num_chunks:
        ordered: NDArray[np.uint64] = np.sort(np.concatenate(hashes))
        if not (ordered[1:] == ordered[:-1]).any():
            return
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise CorruptDataset(
            f"{where}: prompt id {twice[0]['values'].as_py()} stands more than once; import_prompts merges "
            "duplicates"
        )


def _hashes(ids: pa.Array) -> NDArray[np.uint64] | None:
    """A 64-bit hash of each id, shape (n,); None when an id is no content hash."""
    offsets = np.frombuffer(ids.buffers()[1], dtype=np.int32)[ids.offset : ids.offset + len(ids) + 1]
    if not len(ids) or (np.diff(offsets) != ID_LENGTH).any():
        return None
    texts = np.frombuffer(ids.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[-1]]
    words = texts.reshape(len(ids), ID_LENGTH).view(np.uint64)
    hashes = np.zeros(len(ids), dtype=np.uint64)
    for column in words.T:
        hashes = mix64(hashes ^ column)
    return hashes


def _check_part(chunk: Chunk, part: Dataset, fingerprint: str, schema: str) -> None:
    manifest = part.manifest
    if manifest.extra.get("row_ids") != chunk.row_ids or manifest.rows != chunk.rows:
        raise ChunkError(
            f"part {chunk.index} at {part.uri} holds {manifest.rows} rows, not the {chunk.rows} planned"
        )
    if manifest.fingerprint != fingerprint or manifest.schema != schema:
        raise ChunkError(
            f"part {chunk.index} at {part.uri} is {manifest.schema} {manifest.fingerprint[:12]}, the "
            f"first part is {schema} {fingerprint[:12]}; parts of one dataset share one recipe"
        )


def _add_json(stats: Stats, other: Mapping[str, Any]) -> None:
    stats.rows_in += other["rows_in"]
    stats.rows_out += other["rows_out"]
    stats.dropped.update(other["dropped"])
    stats.counts.update(other["counts"])
    stats.add(Stats(sums={name: (total, count) for name, (total, count) in other["sums"].items()}))


def _parse_commit(text: bytes, where: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(text)
        if {"data", "sha256", "keys"} <= record.keys():
            return record
    except (ValueError, AttributeError):
        pass
    raise CorruptDataset(f"{where}: not a commit record; delete it and run again")
