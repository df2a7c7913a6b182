"""The worker of one chunk: what is missing is computed slice by slice, then the part is written."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypedDict, TypeVar

import numpy as np
import pyarrow as pa

from kubealign_components.child_processes import OWN_END
from kubealign_components.data.batches import batched
from kubealign_components.data.chunks import Chunk, Part, Share, check_part, digest_of_ids, row_ids_digest
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.early_end import pass_on
from kubealign_components.data.engine_processes import EngineProcesses
from kubealign_components.data.fingerprint import Provenance, digest
from kubealign_components.data.finished import OutputRequest, finished_elsewhere, record_finished
from kubealign_components.data.less_rows import undeleted_provenance
from kubealign_components.data.manifest import MANIFEST
from kubealign_components.data.named_objects import DamagedObject, set_aside
from kubealign_components.data.slice_index import SliceIndex
from kubealign_components.data.slices import Finished, Result, SliceStore
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ChunkError, CorruptDataset, DataError, NotFound, StoreError
from kubealign_components.preemption import Stop, grace_seconds, preemptible
from kubealign_components.progress import process_name, progress_bar
from kubealign_components.store import beside, join, last_part, store_for

if TYPE_CHECKING:
    from kubealign_components.data.segments import Bools

log = logging.getLogger(__name__)


class _Identified(TypedDict):
    """What every row has that is worked on in chunks."""

    prompt_id: str


In = TypeVar("In", bound=_Identified)
"""A row that a stage takes."""
Out = TypeVar("Out", bound=_Identified)
"""A row that a stage gives."""

ATTEMPTS = 3
"""Times that a part is begun when finished results are lost while it is written."""
HURRIED_SECONDS = 1.0
"""Between two commits of a process that was told to stop."""


@dataclass(frozen=True, slots=True)
class Missing(Generic[In]):
    """A row, and which of its results are not there yet."""

    row: In
    keys: tuple[str, ...]
    """Of the results that are wanted, each once."""
    positions: tuple[int, ...]
    """Where these stand among the row's keys: ``positions[i]`` is the first one of ``keys[i]``."""


class ChunkedStage(Protocol[In, Result, Out]):
    """What a chunked stage brings: how a row's results are called, computed and put together."""

    result_schema: pa.Schema
    """Columns of one result."""
    unread: ClassVar[Sequence[str]]
    """Settings of the step that no result depends on, only what becomes of it: ``a.b`` for one in a group."""

    def keys(self, row: In) -> list[str]:
        """For each result that ``row`` needs a content hash of everything that it depends on."""
        ...

    def compute(self, slices: Iterator[list[Missing[In]]]) -> Iterator[tuple[Missing[In], list[Result]]]:
        """What is missing, one result for each of its keys, as soon as it is known, in any order.

        Takes slices one by one when it has room for more rows: an engine that works on many at once need
        not run dry between two slices. Starts an engine when there is a first slice, and not before.
        """
        ...

    def apply(self, row: In, results: Sequence[Result]) -> Out:
        """The output row; ``results`` are those of :meth:`keys`, in their order, and not to be changed."""
        ...

    def summarise(self, rows: Sequence[Out], stats: Stats) -> None:
        """Count what matters in the output ``rows``; without any, what stands there with a count of 0."""
        ...

    def counted_columns(self, stats: Stats) -> Sequence[str]:
        """Columns of output rows that are enough to count again what ``stats`` counts of them; none where the
        results have to be looked at."""
        ...


class _ResultsLost(Exception):
    """Results that were finished when the part was begun cannot be read any more."""


def run_chunk(
    chunk: Chunk,
    dataset: Dataset,
    stage: ChunkedStage[In, Result, Out],
    *,
    schema: str,
    provenance: Provenance,
    slice_rows: int,
    engines: EngineProcesses | None = None,
) -> Part:
    """Compute what is missing of ``chunk``, slice by slice, and publish its part.

    Of a :class:`~kubealign_components.data.chunks.Share` what is missing is computed, and no part is made.

    Args:
        chunk: the descriptor.
        dataset: what it was cut from, from :func:`kubealign_components.data.chunks.open_chunk`.
        stage: computes the results.
        schema: kind of the part.
        provenance: of the merged dataset, the same for every chunk.
        slice_rows: rows committed together; at most this many are lost with the pod.
        engines: processes that share the work where there are several; None for this one alone.

    Raises:
        CorruptDataset: the chunk's rows are not those planned, or the storage damages what is written to it.
        StoreError: no room for a slice or the part.
        Preempted: SIGTERM came; the process leaves with exit code 143.
    """
    name = provenance.step["stage"]
    folder = provenance.results_key(stage.unread)[:16]
    uri = join(chunk.work, name, folder)
    if isinstance(chunk, Share):
        return _finish_share(chunk, dataset, stage, name, uri, slice_rows)
    part_uri = _part_uri(chunk, name, provenance.fingerprint)
    if _finished_part(part_uri, chunk, provenance.fingerprint, schema) is not None:
        log.info("%s chunk %d of %d was finished before", name, chunk.index + 1, chunk.of)
        return Part(index=chunk.index, uri=part_uri, rows=chunk.rows, reused_rows=chunk.rows)
    shared = engines.of(chunk) if engines is not None else []
    # The processes' grace begins with this one's, and they have to be gone before it ends.
    grace = grace_seconds() + (OWN_END if shared else 0)
    with preemptible(f"{name} chunk {chunk.index + 1} of {chunk.of}", grace=grace) as check:
        work = _ChunkWork(chunk, dataset, stage, check, name, uri)
        if chunk.undeleted_spans and _make_part_less_rows(work, part_uri, schema, provenance, folder):
            return Part(index=chunk.index, uri=part_uri, rows=chunk.rows, reused_rows=chunk.rows)
        before = None
        if engines is not None and shared and work.misses_any():
            before = engines.compute(shared, check)
        with work.open_slices() as slices:
            reused = _make_part(work, slices, part_uri, schema, provenance, folder, slice_rows)
    complete = reused if before is None else before
    return Part(index=chunk.index, uri=part_uri, rows=chunk.rows, reused_rows=complete)


def pass_chunk_on(chunk: Chunk, ended: Dataset, *, stage: str, version: int, schema: str) -> Part:
    """The part of ``chunk``, which was cut from the dataset ``ended`` that ended early: one that did, too.

    Args:
        chunk: the descriptor.
        ended: what it was cut from.
        stage: that has nothing to work on.
        version: of the stage.
        schema: kind of the part.
    """
    part = digest([chunk.fingerprint, chunk.row_ids])[:32]
    uri = join(chunk.work, stage, "parts", part)
    extra = {"row_ids": chunk.row_ids}
    pass_on("ended", ended, stage=stage, version=version, schema=schema, output=uri, extra=extra)
    return Part(index=chunk.index, uri=uri, rows=0, reused_rows=0)


def _finish_share(
    share: Share, dataset: Dataset, stage: ChunkedStage[In, Result, Out], name: str, uri: str, slice_rows: int
) -> Part:
    """Compute what is missing of ``share``; tells how many of its rows missed nothing."""
    with preemptible(f"{name} chunk {share.index + 1} of {share.of}, process {share.number + 1}") as check:
        work = _ChunkWork(share, dataset, stage, check, name, uri)
        with work.open_slices() as slices:
            reused = work.compute_missing(slices, slice_rows)
    return Part(index=share.index, uri="", rows=share.rows, reused_rows=reused)


def _make_part(
    work: _ChunkWork[In, Result, Out],
    slices: SliceStore[Result],
    uri: str,
    schema: str,
    provenance: Provenance,
    folder: str,
    slice_rows: int,
) -> int:
    """Compute what is missing and write the part; gives the number of rows that missed nothing at first."""
    reused = None
    for _ in range(ATTEMPTS):
        complete = work.compute_missing(slices, slice_rows)
        reused = complete if reused is None else reused
        try:
            with DatasetWriter(uri, schema, provenance) as writer:
                work.write_part(writer, slices, {"row_ids": work.chunk.row_ids, "slices": folder})
            return reused
        except _ResultsLost as lost:
            log.warning("%s; what is lost is made again", lost)
            work.stage.summarise([], Stats())  # of the rows that were put together before
    raise CorruptDataset(
        f"{work.uri}: finished results were lost {ATTEMPTS} times while the part was written; look after the "
        "storage before you run again"
    )


def _make_part_less_rows(
    work: _ChunkWork[In, Result, Out], uri: str, schema: str, provenance: Provenance, folder: str
) -> bool:
    """Publish the part from that of the same chunk with the rows that were deleted since; False where that
    cannot be taken, which is logged. The deleted rows alone are counted, to take that from its counts."""
    whole = undeleted_provenance(provenance, [work.dataset])
    if whole is None:
        return False
    try:
        why = _take_part_less_rows(work, uri, schema, provenance, whole, folder)
    except _ResultsLost as lost:
        work.stage.summarise([], Stats())  # of the rows that were put together before
        why = str(lost)
    except (ChunkError, CorruptDataset, NotFound, StoreError) as error:
        why = str(error)
    if why:
        log.info("%s chunk %d is made of all rows: %s", work.name, work.chunk.index + 1, why)
    return not why


def _take_part_less_rows(
    work: _ChunkWork[In, Result, Out],
    uri: str,
    schema: str,
    provenance: Provenance,
    whole: Provenance,
    folder: str,
) -> str:
    """Publish the part, of ``provenance``, from that of ``whole``; why not, or nothing."""
    chunk, spans = work.chunk, work.chunk.undeleted_spans
    flags = work.dataset.deletions()
    inside = [np.zeros_like(of_file) for of_file in flags]
    for number, start, stop in spans:
        inside[number][start:stop] = True
    batches = work.dataset.marked_batches(["prompt_id"], inside)
    ids = pa.chunked_array([batch.column("prompt_id") for batch in batches], pa.string())
    deleted = np.concatenate([flags[number][start:stop] for number, start, stop in spans])
    before = replace(chunk, rows=len(ids), row_ids=digest_of_ids(ids))
    source = _part_uri(before, work.name, whole.fingerprint)
    part = _finished_part(source, before, whole.fingerprint, schema)
    undiminished = OutputRequest(
        work=chunk.work,
        stage=work.name,
        key=digest([whole.fingerprint, before.row_ids]),
        output=uri,
        provenance=whole,
    )
    if part is None and (part := finished_elsewhere(undiminished)) is not None:
        _require_whole(part, before, whole.fingerprint, schema)
    if part is None:
        return "it is not there with the rows that are gone"
    if digest_of_ids(ids.filter(pa.array(~deleted))) != chunk.row_ids:
        return f"{chunk.dataset} has other rows"
    marked = part.by_shard(deleted)
    stats = Stats.from_json(part.manifest.stats)
    rows = work.put_together([of_file & gone for of_file, gone in zip(inside, flags)])
    if columns := work.stage.counted_columns(stats):
        rows = (batch.to_pylist() for batch in part.marked_batches(columns, marked))
    counted, nothing = Stats(rows_in=int(deleted.sum()), rows_out=int(deleted.sum())), Stats()
    for some in rows:
        work.check()
        work.stage.summarise(some, counted)
    work.stage.summarise([], nothing)  # names of counts that stand there when they are 0, too
    with DatasetWriter(uri, schema, provenance) as writer:
        writer.adopt_less(part, marked)
        writer.commit(stats.less(counted, nothing.counts), {"row_ids": chunk.row_ids, "slices": folder})
    record_finished(undiminished)
    return ""


@dataclass(frozen=True, slots=True)
class _ChunkWork(Generic[In, Result, Out]):
    """A chunk at work."""

    chunk: Chunk
    dataset: Dataset
    stage: ChunkedStage[In, Result, Out]
    check: Stop
    """Ends the process when it was told to stop."""
    name: str
    uri: str
    """Folder of the slices."""
    keys: dict[str, list[str]] = field(default_factory=dict)
    """Of the rows that were read, by prompt id: they hash all that a row holds, and it is read more than
    once."""

    def open_slices(self, batches: Iterable[pa.RecordBatch] | None = None) -> SliceStore[Result]:
        """Finished results of the chunk's rows, or of ``batches``. Chunks of one plan share no row."""
        chunk = self.chunk
        plan: list[str | int] = [chunk.fingerprint, chunk.of]
        number = chunk.index
        if isinstance(chunk, Share):  # a plan of its own: the chunk's worker looks for what is committed here
            plan.append(chunk.count)
            number = chunk.index * chunk.count + chunk.number
        index = SliceIndex(self.uri, digest(plan)[:16], number)
        batches = batches or self.dataset.batches(["prompt_id"], spans=self.chunk.spans)
        ids = (name for batch in batches for name in batch["prompt_id"].to_pylist())
        return SliceStore(self.uri, self.stage.result_schema, index, ids)

    def misses_any(self) -> bool:
        """Whether a result of any row is not finished."""
        with self.open_slices() as slices:
            for row in self._rows():
                keys = set(self._keys(row))
                if keys - slices.finished(row["prompt_id"], keys):
                    return True
        return False

    def compute_missing(self, slices: SliceStore[Result], slice_rows: int) -> int:
        """Commit every result that is not committed yet; gives the number of rows that needed some and
        missed none."""
        complete, committed = 0, 0.0
        finished: list[Finished[Result]] = []
        chunk = self.chunk
        label = f"{self.name} {chunk.index + 1}/{chunk.of}"
        if isinstance(chunk, Share):
            label = process_name(label, chunk.number + 1, chunk.count)

        def missing() -> Iterator[Missing[In]]:
            nonlocal complete
            for row in self._rows():
                keys = self._keys(row)
                lacking = _first_positions(keys, slices.finished(row["prompt_id"], set(keys)))
                if lacking:
                    # Here, where the stage asks for more: what it has computed it has given back.
                    self.check()
                    yield Missing(row, tuple(lacking), tuple(lacking.values()))
                else:
                    complete += bool(keys)
                    bar.update(1)

        def commit() -> None:
            nonlocal committed
            rows, finished[:] = finished[:], []
            if rows:
                slices.commit(rows)
            committed = time.monotonic()

        computed = self.stage.compute(batched(missing(), slice_rows))
        with progress_bar(self.chunk.rows, "prompts", label) as bar:
            try:
                for one, results in computed:
                    finished.append(Finished(one.row["prompt_id"], one.keys, tuple(results)))
                    bar.update(1)
                    if len(finished) >= slice_rows:
                        commit()
                        self.check()
                    elif self.check.requested and time.monotonic() - committed > HURRIED_SECONDS:
                        commit()  # the time to stop in may end amid the slice
            finally:  # what was given back is finished, whatever came after it
                commit()
        if complete:
            log.info("%s: %d of %d rows were finished before", label, complete, self.chunk.rows)
        return complete

    def write_part(self, writer: DatasetWriter, slices: SliceStore[Result], extra: dict[str, str]) -> None:
        """Put rows and results together, and publish them."""
        stats = Stats(rows_in=self.chunk.rows)
        ids: list[str] = []
        for batch in batched(self._rows(), 256):
            self.check()
            rows = [self._finished(row, slices) for row in batch]
            ids += [row["prompt_id"] for row in rows]
            self.stage.summarise(rows, stats)
            writer.write_rows(rows)
        if row_ids_digest(ids) != self.chunk.row_ids:
            raise CorruptDataset(
                f"chunk {self.chunk.index}: {self.chunk.dataset} no longer holds the rows that were planned"
            )
        stats.rows_out = writer.rows
        writer.commit(stats, extra)

    def put_together(self, marked: Sequence[Bools]) -> Iterator[list[Out]]:
        """The rows of the dataset that are marked, with their results.

        Raises:
            _ResultsLost: results of one are gone.
        """
        with self.open_slices(self.dataset.marked_batches(["prompt_id"], marked)) as slices:
            for batch in self.dataset.marked_batches(None, marked):
                yield [self._finished(row, slices) for row in batch.to_pylist()]

    def _rows(self) -> Iterator[In]:
        for batch in self.dataset.batches(spans=self.chunk.spans):
            yield from batch.to_pylist()

    def _keys(self, row: In) -> list[str]:
        keys = self.keys.get(row["prompt_id"])
        if keys is None:
            keys = self.keys[row["prompt_id"]] = self.stage.keys(row)
        return keys

    def _finished(self, row: In, slices: SliceStore[Result]) -> Out:
        keys = self._keys(row)
        results = slices.results(row["prompt_id"], keys)
        if lost := set(keys) - results.keys():
            raise _ResultsLost(f"{len(lost)} results of prompt {row['prompt_id']} are gone from {self.uri}")
        return self.stage.apply(row, [results[key] for key in keys])


def _first_positions(keys: Sequence[str], finished: set[str]) -> dict[str, int]:
    """The first position of each key that is not finished."""
    positions: dict[str, int] = {}
    for position, key in enumerate(keys):
        if key not in finished:
            positions.setdefault(key, position)
    return positions


def _part_uri(chunk: Chunk, name: str, fingerprint: str) -> str:
    """Where the part of ``chunk`` is, of the stage ``name`` and the dataset of that fingerprint."""
    return join(chunk.work, name, "parts", digest([fingerprint, chunk.row_ids])[:32])


def _finished_part(uri: str, chunk: Chunk, fingerprint: str, schema: str) -> Dataset | None:
    """The part of ``chunk`` where it stands at ``uri``, whole. A damaged one is set aside: its slices are
    there to make it again."""
    try:
        part = Dataset.open(uri, schema)
        _require_whole(part, chunk, fingerprint, schema)
    except NotFound as error:
        if store_for(uri).exists(join(uri, MANIFEST)):
            _set_part_aside(uri, error)
        return None
    except (ChunkError, DataError) as error:
        _set_part_aside(uri, error)
        return None
    return part


def _require_whole(part: Dataset, chunk: Chunk, fingerprint: str, schema: str) -> None:
    """Raise unless ``part`` is that of ``chunk``, to the last byte; its files stay here."""
    check_part(chunk, part, fingerprint, schema)
    part.keep_files()
    part.verify()


def _set_part_aside(uri: str, why: Exception) -> None:
    log.warning("a part is set aside and made again from its finished slices: %s", why)
    parts, _, part = uri.rpartition("/")
    shards = [entry.uri for entry in store_for(uri).list(uri) if not entry.uri.endswith(MANIFEST)]
    for damaged in (join(uri, MANIFEST), *shards):  # the manifest first: without it there is no dataset
        name = last_part(damaged)
        set_aside(
            DamagedObject(damaged, "is of a damaged part"), join(beside(parts, "damaged"), f"{part}-{name}")
        )
