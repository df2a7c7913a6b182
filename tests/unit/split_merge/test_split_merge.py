"""split and merge as stages and components; the protocol itself is tested with the chunks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kubealign_components.config import from_mapping, semantic_params
from kubealign_components.data.chunks import Chunk, Part
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import COMPLETIONS, PROMPTS
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ChunkError, ConfigError, EmptyDataset, SchemaMismatch
from kubealign_components.merge.stage import run as merge
from kubealign_components.split.stage import SplitConfig
from kubealign_components.split.stage import run as split
from support.datasets import MakeDataset, questions


def part_of(chunk: Chunk, dataset: Dataset, folder: Path, *, step: str = "work") -> Part:
    """A worker that copies its chunk's rows."""
    uri = str(folder / f"part-{chunk.index}-{step}")
    provenance = derive(step, 1, {}, inputs={"prompts": dataset})
    with DatasetWriter(uri, COMPLETIONS, provenance) as writer:
        for batch in dataset.batches(spans=chunk.spans):
            writer.write(batch)
        stats = Stats(rows_in=chunk.rows, rows_out=writer.rows)
        stats.counts["seen"] = writer.rows
        writer.commit(stats, {"row_ids": chunk.row_ids})
    return Part(
        index=chunk.index, uri=uri, rows=chunk.rows, reused_rows=chunk.rows if chunk.index == 0 else 0
    )


def test_chunks_cover_every_row_once(make_dataset: MakeDataset) -> None:
    dataset = make_dataset(questions(23), shards=4)
    for config in (SplitConfig(chunks=5), SplitConfig(rows_per_chunk=4), SplitConfig(rows_per_chunk=1000)):
        chunks = split(config, dataset=dataset)
        ids = [
            row["prompt_id"]
            for chunk in chunks
            for batch in dataset.batches(spans=chunk.spans)
            for row in batch.to_pylist()
        ]
        assert ids == [row["prompt_id"] for row in questions(23)]
        sizes = [chunk.rows for chunk in chunks]
        assert sum(sizes) == 23
        assert max(sizes) - min(sizes) <= 1
        assert all(chunk.work == f"{dataset.uri}.work" for chunk in chunks)
    assert len(split(SplitConfig(chunks=5), dataset=dataset)) == 5
    assert len(split(SplitConfig(rows_per_chunk=4), dataset=dataset)) == 6
    assert split(SplitConfig(work="s3://b/w"), dataset=dataset)[0].work == "s3://b/w"


def test_no_setting_of_split_is_semantic() -> None:
    assert semantic_params(SplitConfig(chunks=3, rows_per_chunk=7, work="w")) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunks": 101}, r"chunks=101: expected 0 \(follow rows_per_chunk\) to 100"),
        ({"chunks": -1}, r"chunks=-1"),
        ({"rows_per_chunk": 0}, r"rows_per_chunk=0: expected a positive number of rows"),
    ],
)
def test_settings_are_checked_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(SplitConfig, settings, "split")


def test_descriptors_survive_kfp(make_dataset: MakeDataset) -> None:
    for chunk in split(SplitConfig(chunks=3), dataset=make_dataset(questions(8), shards=2)):
        # KFP hands integers on as floats.
        through = json.loads(json.dumps(chunk.to_json()), parse_int=float)
        assert Chunk.from_json(through) == chunk
        assert len(json.dumps(chunk.to_json())) < 1000


def test_merge_copies_shards_and_adds_up_counts(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = make_dataset(questions(10), shards=3)
    chunks = split(SplitConfig(chunks=4), dataset=dataset)
    parts = [part_of(chunk, dataset, tmp_path) for chunk in chunks]
    merged = merge(parts=list(reversed(parts)), chunks=chunks, output=str(tmp_path / "merged"))
    assert list(merged.iter_rows()) == list(dataset.iter_rows())
    stats = merged.manifest.stats
    assert (stats["rows_in"], stats["rows_out"], stats["counts"]["seen"]) == (10, 10, 10)
    assert stats["counts"]["chunks"] == 4
    assert stats["counts"]["chunks_reused"] == 1
    assert stats["counts"]["rows_reused"] == chunks[0].rows
    assert merged.manifest.fingerprint == derive("work", 1, {}, inputs={"prompts": dataset}).fingerprint
    for part in parts:  # linked, not written again
        [shard] = Dataset.open(part.uri).manifest.shards
        assert (Path(part.uri) / shard.path).stat().st_nlink == 2


def test_merge_refuses_parts_of_another_recipe(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = make_dataset(questions(6))
    chunks = split(SplitConfig(chunks=2), dataset=dataset)
    parts = [part_of(chunks[0], dataset, tmp_path), part_of(chunks[1], dataset, tmp_path, step="other")]
    with pytest.raises(ChunkError, match="parts of one dataset share one recipe"):
        merge(parts=parts, chunks=chunks, output=str(tmp_path / "merged"))
    assert not (tmp_path / "merged" / "manifest.json").exists()


def test_components_run_the_stages(make_dataset: MakeDataset, tmp_path: Path) -> None:
    from kfp import dsl

    from kubealign_components.merge.component import merge as merge_component
    from kubealign_components.split.component import split as split_component

    source = make_dataset(questions(7))
    artifact = dsl.Dataset(name="prompts", uri=source.uri, metadata={"schema": PROMPTS})
    planned = split_component.python_func(dataset=artifact, work=str(tmp_path / "work"), chunks=3)
    assert isinstance(planned, list)
    parts = [part_of(Chunk.from_json(chunk), source, tmp_path).to_json() for chunk in planned]
    dataset = dsl.Dataset(name="dataset", uri=str(tmp_path / "merged"), metadata={})
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "metrics"), metadata={})
    report = dsl.HTML(name="report", uri=str(tmp_path / "report.html"))
    again = merge_component.python_func(
        source=artifact,
        parts=parts,
        chunks=planned,
        dataset=dataset,
        metrics=metrics,
        report=report,
        rows_per_chunk=4,
    )
    assert Path(report.path).read_text().startswith("<!doctype html>")
    assert dataset.metadata["schema"] == COMPLETIONS
    assert dataset.metadata["rows"] == metrics.metadata["rows"] == 7
    assert metrics.metadata["chunks"] == 3
    assert [chunk["rows"] for chunk in again] == [3, 4]
    assert again[0]["dataset"] == dataset.uri
    assert again[0]["work"] == str(tmp_path / "work"), "beside the dataset, and not below its URI"


def test_merge_takes_the_dataset_that_was_cut(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset, other = make_dataset(questions(6)), make_dataset(questions(5))
    chunks = split(SplitConfig(chunks=2), dataset=dataset)
    parts = [part_of(chunk, dataset, tmp_path) for chunk in chunks]
    with pytest.raises(ChunkError, match="the chunks were planned on"):
        merge(parts=parts, chunks=chunks, source=other, output=str(tmp_path / "merged"))


def test_an_empty_or_other_dataset_is_refused_before_planning(make_dataset: MakeDataset) -> None:
    from kfp import dsl

    from kubealign_components.artifacts import open_dataset
    from kubealign_components.split.component import split as component

    empty = dsl.Dataset(name="prompts", uri=make_dataset([]).uri, metadata={})
    with pytest.raises(EmptyDataset, match="none came in"):
        component.python_func(dataset=empty)
    other = dsl.Dataset(name="prompts", uri=make_dataset(questions(1)).uri, metadata={"schema": PROMPTS})
    with pytest.raises(SchemaMismatch, match=f"prompts is {PROMPTS}, expected {COMPLETIONS}"):
        open_dataset(other, COMPLETIONS)
