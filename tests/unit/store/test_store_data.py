"""Datasets and the chunk protocol on every store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import PROMPTS
from kubealign_components.data.stats import Stats
from kubealign_components.errors import CorruptDataset, NotFound
from kubealign_components.store import join, store_for
from support.chunk_worker import Upper, run
from support.tiny import prompt_row

ROWS = [prompt_row(f"question {i} ü", ["yes", "no"]) for i in range(30)]


def write(uri: str, rows: Sequence[dict[str, Any]] = ROWS, shards: int = 3) -> Dataset:
    with DatasetWriter(uri, PROMPTS, derive("test", 1, {"rows": len(rows)})) as writer:
        for number in range(shards):
            writer.write_rows(rows[number * len(rows) // shards : (number + 1) * len(rows) // shards])
            writer.close_shard()
        return writer.commit(Stats(rows_in=len(rows), rows_out=len(rows)))


def test_a_dataset_reads_back_identical(place: str) -> None:
    uri = join(place, "dataset")
    write(uri)
    opened = Dataset.open(uri, PROMPTS)
    assert list(opened.iter_rows()) == ROWS
    assert len(opened.manifest.shards) == 3
    assert len(list(store_for(uri).list(uri))) == 4
    assert write(uri).manifest == opened.manifest


def test_an_unfinished_dataset_is_none(place: str) -> None:
    uri = join(place, "dataset")
    with DatasetWriter(uri, PROMPTS, derive("test", 1, {})) as writer:
        writer.write_rows(ROWS)
        writer.close_shard()
    assert len(list(store_for(uri).list(uri))) == 1
    with pytest.raises(NotFound, match="no finished dataset"):
        Dataset.open(uri)


def test_a_damaged_shard_is_noticed(place: str) -> None:
    dataset = write(join(place, "dataset"))
    uri, store = dataset.shard_uri(dataset.manifest.shards[1]), store_for(place)
    data = store.read(uri)
    store.delete(uri)
    store.publish(uri, data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(CorruptDataset, match=uri):
        list(dataset.iter_rows())


def test_chunks_resume_and_merge(place: str) -> None:
    dataset = write(join(place, "prompts"))
    chunks = plan(dataset, work=join(place, "work"), chunks=3)
    killed = Upper(fail_after=6)
    with pytest.raises(RuntimeError, match="killed"):
        run(chunks[0], killed, 3)
    again = Upper()
    parts = [run(chunk, again, 3) for chunk in chunks]
    assert len(killed.computed) == 6
    assert sorted(killed.computed + again.computed) == sorted(row["prompt_id"] for row in ROWS)
    merged = merge(parts, chunks, join(place, "merged"))
    assert [row["metadata"] for row in merged.iter_rows()] == [row["prompt_id"].upper() for row in ROWS]
    assert merged.manifest.stats["counts"]["seen"] == 30
    third = Upper()
    repeated = [run(chunk, third, 3) for chunk in chunks]
    assert third.computed == []
    assert merge(repeated, chunks, join(place, "merged")).manifest.fingerprint == merged.manifest.fingerprint
