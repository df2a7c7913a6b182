"""The chunk protocol: any chunking, any interruption, the same rows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubealign_components.data.chunks import Chunk, Part, merge, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import derive
from kubealign_components.errors import ChunkError, ConfigError, CorruptDataset
from support.chunk_worker import Row, Upper, run
from support.datasets import questions
from support.tiny import prompt_row


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 23), chunks=st.integers(1, 9), slice_rows=st.integers(1, 7), shards=st.integers(1, 4)
)
def test_any_chunking_gives_the_same_rows_and_fingerprint(
    make_dataset: Callable[..., Dataset],
    tmp_path_factory: Any,
    rows: int,
    chunks: int,
    slice_rows: int,
    shards: int,
) -> None:
    folder = tmp_path_factory.mktemp("work")
    dataset = make_dataset(questions(rows), shards=shards)
    planned = [Chunk.from_json(c.to_json()) for c in plan(dataset, work=str(folder / "work"), chunks=chunks)]
    parts = [Part.from_json(run(c, Upper(), slice_rows).to_json()) for c in planned]
    merged = merge(parts, planned, str(folder / "merged"))
    expected = derive("upper", 1, {}, inputs={"prompts": dataset})
    assert merged.manifest.fingerprint == expected.fingerprint
    assert [r["metadata"] for r in merged.iter_rows()] == [
        r["prompt_id"].upper() for r in dataset.iter_rows()
    ]
    assert merged.manifest.stats["counts"]["seen"] == rows


@pytest.mark.parametrize("other", [{}, {"later": 1}])
def test_a_chunk_that_another_version_planned_is_refused(other: dict[str, int]) -> None:
    with pytest.raises(
        ChunkError, match=r"index.* planned by another version .*undeleted_spans.*; run again"
    ):
        Chunk.from_json({"index": 0, "of": 1, **other})


def test_lineage_leads_to_the_dataset_of_this_run_and_not_of_an_earlier_one(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    for number in (1, 2):
        dataset = make_dataset(questions(6))
        chunks = plan(dataset, work=str(tmp_path / "work"), chunks=2)
        parts = [run(chunk, Upper()) for chunk in chunks]
        merged = merge(parts, chunks, str(tmp_path / f"merged-{number}"))
        assert [parent["uri"] for parent in merged.manifest.provenance.parents] == [dataset.uri]
        shutil.rmtree(dataset.uri)
    assert sum(part.reused_rows for part in parts) == 6


def test_a_killed_chunk_repeats_only_the_slice_in_flight(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset(questions(10))
    [chunk] = plan(dataset, work=str(tmp_path / "work"), chunks=1)
    first = Upper(fail_after=6)
    with pytest.raises(RuntimeError, match="killed"):
        run(chunk, first)
    second = Upper()
    part = run(chunk, second)
    assert len(first.computed) == 6
    assert len(second.computed) == 4
    assert set(first.computed).isdisjoint(second.computed)
    assert part.reused_rows == 6
    third = Upper()
    assert run(chunk, third).reused_rows == 10
    assert third.computed == []


class Hashing(Upper):
    """Tells whose keys it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.hashed: list[str] = []

    def keys(self, row: Row) -> list[str]:
        self.hashed.append(row["prompt_id"])
        return super().keys(row)


def test_a_worker_hashes_a_row_once(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    """To see what is missing, and to put the part together."""
    dataset = make_dataset(questions(5))
    [chunk] = plan(dataset, work=str(tmp_path / "work"), chunks=1)
    stage = Hashing()
    run(chunk, stage)
    assert sorted(stage.hashed) == sorted({row["prompt_id"] for row in dataset.iter_rows()})


def test_a_grown_dataset_computes_only_its_new_rows(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    work = str(tmp_path / "work")
    [chunk] = plan(make_dataset(questions(7)), work=work, chunks=1)
    run(chunk, Upper(), 3)
    grown = make_dataset(list(reversed(questions(12))))
    again = [(c, Upper()) for c in plan(grown, work=work, chunks=3)]
    parts = [run(c, stage, 2) for c, stage in again]
    assert sum(len(stage.computed) for _, stage in again) == 5
    merged = merge(parts, [c for c, _ in again], str(tmp_path / "merged"))
    assert merged.manifest.stats["counts"]["rows_reused"] == 7
    assert [r["prompt_id"] for r in merged.iter_rows()] == [r["prompt_id"] for r in grown.iter_rows()]


def test_merge_refuses_missing_double_and_foreign_parts(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    chunks = plan(make_dataset(questions(6)), work=str(tmp_path / "work"), chunks=3)
    parts = [run(c, Upper()) for c in chunks]
    other = plan(make_dataset(questions(9)), work=str(tmp_path / "work"), chunks=3)
    foreign = run(other[0], Upper())
    with pytest.raises(ChunkError, match="do not match the planned chunks"):
        merge(parts[:2], chunks, str(tmp_path / "a"))
    with pytest.raises(ChunkError, match="do not match the planned chunks"):
        merge([*parts, parts[0]], chunks, str(tmp_path / "b"))
    with pytest.raises(ChunkError, match="not the 2 planned"):
        merge([foreign, *parts[1:]], chunks, str(tmp_path / "c"))


def test_a_changed_slice_is_set_aside_by_name_and_made_again(
    make_dataset: Callable[..., Dataset], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = make_dataset(questions(4))
    [chunk] = plan(dataset, work=str(tmp_path / "work"), chunks=1)
    with pytest.raises(RuntimeError):
        run(chunk, Upper(fail_after=2))
    [data] = (tmp_path / "work").rglob("data/*.parquet")
    good = data.read_bytes()
    os.truncate(data, len(good) - 5)
    again = Upper()
    run(chunk, again)
    assert len(again.computed) == 4
    assert data.name in caplog.text
    assert data.read_bytes() == good
    assert (data.parent.parent / "damaged" / data.name).read_bytes() == good[:-5]


def test_plan_bounds(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = make_dataset(questions(250))
    assert len(plan(dataset, work="w", rows_per_chunk=1)) == 100
    assert len(plan(dataset, work="w", chunks=3)) == 3
    assert len(plan(dataset, work="w", rows_per_chunk=1000)) == 1
    with pytest.raises(ConfigError, match="exactly one"):
        plan(dataset, work="w")
    with pytest.raises(ConfigError, match="chunks=-1"):
        plan(dataset, work="w", chunks=-1)
    with pytest.raises(CorruptDataset, match="more than once"):
        plan(make_dataset([prompt_row("a"), prompt_row("a")]), work="w", chunks=1)
