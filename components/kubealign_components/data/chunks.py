"""Cutting a dataset into chunks for the pods of a fan-out, and joining what these made of them.

The pieces of a fan-out:

* a *span* is a run of rows of one shard of a dataset;
* a *chunk* is the work of one pod: the spans that make up its share of the rows, as a small descriptor;
* a *slice* is what a worker commits together while it is at it: the results of some rows of its chunk, kept
  in the work prefix for any later run that needs the same (:mod:`kubealign_components.data.slices`);
* a *share* is what one of several processes of a pod works on: some rows of its chunk;
* a *part* is what a worker makes of its whole chunk: a dataset, put together from rows and results
  (:mod:`kubealign_components.data.worker`).

``plan`` cuts a dataset into chunks; a worker turns one chunk into a part; ``merge`` joins the parts when,
and only when, they hold exactly the rows that were planned.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kubealign_components.config import require
from kubealign_components.data.dataset import Dataset, DatasetWriter, why_empty
from kubealign_components.data.fingerprint import Provenance
from kubealign_components.data.limits import MAX_CHUNKS
from kubealign_components.data.origins import USE_OF_PODS, Origin
from kubealign_components.data.seeds import ID_LENGTH, mix64
from kubealign_components.data.slice_index import SliceIndex
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ChunkError, CorruptDataset, KubeAlignError, NotFound
from kubealign_components.json_types import JsonObject
from kubealign_components.pod_use import added, pod_use
from kubealign_components.store import join, scheme_of

log = logging.getLogger(__name__)


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
    undeleted_spans: tuple[tuple[int, int, int], ...] = ()
    """Of the chunk with the rows that are deleted in its shards, where it was cut with them: pieces as in
    ``spans``, by the rows that the files have."""

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: JsonObject) -> Chunk:
        """From :meth:`to_json`, also after KFP has turned its integers into floats.

        Raises:
            ChunkError: another version of KubeAlign planned it.
        """
        expected = {entry.name for entry in fields(cls)}
        if value.keys() != expected:
            raise ChunkError(
                f"a chunk with {', '.join(sorted(value))} was planned by another version of KubeAlign, "
                f"expected one with {', '.join(sorted(expected))}; run again without the cache of Kubeflow, "
                "so that this version plans"
            )
        spans = {
            name: tuple((int(a), int(b), int(c)) for a, b, c in value[name])
            for name in ("spans", "undeleted_spans")
        }
        numbers = {name: int(value[name]) for name in ("index", "of", "rows")}
        return cls(**{**value, **numbers, **spans})


@dataclass(frozen=True, kw_only=True, slots=True)
class Share(Chunk):
    """What one of several processes of a pod works on: it finishes its rows' results and makes no part."""

    number: int
    """From 0."""
    count: int
    """Of the processes."""


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


def plan(
    dataset: Dataset,
    *,
    work: str,
    chunks: int | None = None,
    rows_per_chunk: int | None = None,
    most: int = MAX_CHUNKS,
) -> list[Chunk]:
    """Cut ``dataset`` into at most ``most`` chunks of nearly equal row counts; one that ended early is one.

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
    if dataset.ended_early:
        return [_of_nothing(dataset, work)]
    if not dataset.rows:
        raise ChunkError(f"{dataset.uri} has no rows to cut into chunks: {why_empty(dataset.manifest)}")
    # Cut where it was cut before rows were deleted, so that what was finished of a chunk is found.
    files = [(number, 0, shard.rows_in_file) for number, shard in enumerate(dataset.manifest.shards)]
    all_rows = [np.ones(rows, np.bool_) for _, _, rows in files]
    batches = dataset.marked_batches(["prompt_id"], all_rows)
    ids = pa.chunked_array([batch.column("prompt_id") for batch in batches], pa.string())
    _check_unique(ids, dataset.uri)
    live = ~np.concatenate(dataset.deletions())
    starts = _starts(len(ids), chunks, rows_per_chunk, most)
    before = np.concatenate(([0], np.cumsum(live)))
    shared = bool(dataset.manifest.undeleted) and bool(np.diff(before[starts]).all())
    if not shared:
        ids = ids.filter(pa.array(live))
        starts = _starts(dataset.rows, chunks, rows_per_chunk, most)
        live, before = np.ones(dataset.rows, np.bool_), np.arange(dataset.rows + 1)
    shards = [(number, 0, shard.rows) for number, shard in enumerate(dataset.manifest.shards)]
    planned = []
    for i, (start, stop) in enumerate(pairwise(starts)):
        chunk_ids, low, high = ids.slice(start, stop - start), int(before[start]), int(before[stop])
        chunk = Chunk(
            dataset=dataset.uri,
            fingerprint=dataset.manifest.fingerprint,
            index=i,
            of=len(starts) - 1,
            spans=tuple(_cut(shards, low, high)),
            rows=high - low,
            row_ids=digest_of_ids(chunk_ids.filter(pa.array(live[start:stop]))),
            work=work,
        )
        if shared:
            chunk = replace(chunk, undeleted_spans=tuple(_cut(files, start, stop)))
        planned.append(chunk)
    return planned


def _starts(rows: int, chunks: int | None, rows_per_chunk: int | None, most: int) -> list[int]:
    """Where the chunks of ``rows`` rows begin, and where the last one ends."""
    asked = chunks if chunks is not None else -(-rows // (rows_per_chunk or 1))
    count = min(asked, rows, most)
    if asked > most:
        log.warning("%d chunks were asked for, a fan-out takes at most %d: chunks are larger", asked, most)
    return [rows * i // count for i in range(count + 1)]


def _of_nothing(dataset: Dataset, work: str) -> Chunk:
    """The one chunk of a dataset that ended early: a fan-out has work for one pod or more."""
    return Chunk(
        dataset=dataset.uri,
        fingerprint=dataset.manifest.fingerprint,
        index=0,
        of=1,
        spans=(),
        rows=0,
        row_ids=row_ids_digest([]),
        work=work,
    )


def shares(chunk: Chunk, count: int) -> list[Share]:
    """``chunk`` in ``count`` shares of nearly equal row counts, in order; at most one for each row."""
    whole = {entry.name: getattr(chunk, entry.name) for entry in fields(Chunk)}
    starts = [chunk.rows * i // count for i in range(count + 1)]
    return [
        Share(
            **whole | {"spans": tuple(_cut(chunk.spans, start, stop)), "rows": stop - start},
            number=number,
            count=count,
        )
        for number, (start, stop) in enumerate(pairwise(starts))
    ]


def _cut(spans: Sequence[tuple[int, int, int]], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Rows ``start`` to ``stop`` of those that ``spans`` hold, as spans."""
    first = 0
    for shard, low, high in spans:
        begin, end = max(low, low + start - first), min(high, low + stop - first)
        if begin < end:
            yield shard, begin, end
        first += high - low


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
    dataset.keep_files()
    return dataset


def merge(parts: Sequence[Part], chunks: Sequence[Chunk], output: str) -> Dataset:
    """Join ``parts`` into one dataset at ``output``; the store copies the shards. What the workers noted of
    their finished slices is joined as well, so that later workers find it in few reads.

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
    opened = [_open_part(chunk, by_index[chunk.index]) for chunk in chunks]
    first = opened[0].manifest
    stats = Stats()
    for chunk, part in zip(chunks, opened):
        check_part(chunk, part, first.fingerprint, first.schema)
        stats.add(Stats.from_json(part.manifest.stats))
    stats.counts["chunks"] = len(chunks)
    stats.counts["rows_reused"] = sum(part.reused_rows for part in parts)
    stats.counts["chunks_reused"] = sum(part.reused_rows == part.rows for part in parts)
    undeleted = {part.manifest.undeleted for part in opened}
    provenance = _of_this_run(first.provenance, chunks[0])
    provenance = replace(provenance, origins=_of_all(opened))
    with DatasetWriter(output, first.schema, provenance) as writer:
        writer.adopt(*opened)
        writer.undeleted = undeleted.pop() if len(undeleted) == 1 else ""
        merged = writer.commit(stats, {"chunked": True})
    for folder in {uri for chunk, part in zip(chunks, opened) if (uri := _slices_of(chunk, part))}:
        try:
            SliceIndex(folder).compact()
        except KubeAlignError as error:
            log.warning("the index of %s stays as it is, which costs later workers time: %s", folder, error)
    return merged


def _of_all(parts: Sequence[Dataset]) -> dict[str, Origin]:
    """The origins of ``parts``, which are of one step, with what all of them took, and this pod."""
    first = parts[0].manifest
    origins = [part.manifest.origins.get(first.fingerprint, {}) for part in parts]
    use = added([*(origin.get(USE_OF_PODS, {}) for origin in origins), pod_use()])
    return {**first.origins, first.fingerprint: {**origins[0], USE_OF_PODS: use}} if use else first.origins


def _of_this_run(provenance: Provenance, chunk: Chunk) -> Provenance:
    """``provenance`` of a part, with the place of the dataset that ``chunk`` was cut from: the run that made
    the part may have been an earlier one, and gone."""
    parents = (
        parent | ({"uri": chunk.dataset} if parent["fingerprint"] == chunk.fingerprint else {})
        for parent in provenance.parents
    )
    return replace(provenance, parents=tuple(parents))


def _open_part(chunk: Chunk, part: Part) -> Dataset:
    """The part of ``chunk``, whole: by the bytes of its shards where these lie on this machine, else by their
    sizes, because a store behind a network holds its objects to checksums of its own."""
    try:
        dataset = Dataset.open(part.uri)
        dataset.check_sizes()
        if scheme_of(part.uri) == "file":
            dataset.verify()
    except (CorruptDataset, NotFound) as error:
        raise CorruptDataset(
            f"the part of chunk {chunk.index + 1} of {chunk.of} is damaged: {error}. Run again (without "
            "the cache of Kubeflow, which would hand out the same part): its worker sets it aside and makes "
            "it anew from the slices that it finished"
        ) from error
    return dataset


def _slices_of(chunk: Chunk, part: Dataset) -> str | None:
    """Folder of the slices that ``part`` was made of."""
    name = part.manifest.extra.get("slices")
    if not isinstance(name, str) or not re.fullmatch("[0-9a-f]{16}", name):
        return None
    return join(chunk.work, part.manifest.provenance.step["stage"], name)


def check_part(chunk: Chunk, part: Dataset, fingerprint: str, schema: str) -> None:
    """Raise :class:`ChunkError` unless ``part`` is of ``chunk``, ``fingerprint`` and ``schema``."""
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


def row_ids_digest(ids: Sequence[str]) -> str:
    """SHA-256 over row ids in order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def digest_of_ids(ids: pa.ChunkedArray) -> str:
    """:func:`row_ids_digest` without a Python object for every id."""
    one = pa.ListArray.from_arrays(pa.array([0, len(ids)], pa.int32()), ids.combine_chunks())
    return hashlib.sha256(pc.binary_join(one, "\n")[0].as_buffer()).hexdigest()


def _check_unique(ids: pa.ChunkedArray, where: str) -> None:
    # Sorting 64-bit hashes is far faster than a table of texts; the texts decide only where two agree.
    hashes = [hash_of_ids for chunk in ids.chunks if (hash_of_ids := _hashes(chunk)) is not None]
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
