"""The worker of one chunk: what is missing is computed slice by slice, then the part is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import pyarrow as pa

from kubealign_components.data.chunks import Chunk, Part, Row, check_part, row_ids_digest
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import Provenance, digest
from kubealign_components.data.manifest import MANIFEST
from kubealign_components.data.slices import SliceStore
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ChunkError, CorruptDataset, KubeAlignError, NotFound
from kubealign_components.preemption import Preempted, preemptible
from kubealign_components.progress import progress_bar
from kubealign_components.store import join, store_for

log = logging.getLogger(__name__)


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
        check_part(chunk, part, fingerprint, schema)
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
