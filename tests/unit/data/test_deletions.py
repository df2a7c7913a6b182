"""Rows that are deleted in the shards of a dataset are not read, whoever reads and from wherever."""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubealign_components.data.chunks import plan
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.deletions import count_deletions, is_deletions, packed, unpacked_deletions
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.manifest import Manifest
from kubealign_components.data.schemas import PROMPTS
from kubealign_components.data.stats import Stats
from kubealign_components.errors import CorruptDataset
from kubealign_components.store import faulty, register
from support.chunk_worker import Upper, run
from support.tiny import prompt_row

ROWS = [prompt_row(f"What is {i}?", ["One."] * (i % 3)) for i in range(24)]


def written(folder: Path, sizes: list[int]) -> Dataset:
    """A dataset of the first rows, in shards of these sizes."""
    edges = list(accumulate(sizes, initial=0))
    with DatasetWriter(str(folder), PROMPTS, derive("test", 1, {})) as writer:
        for start, stop in pairwise(edges):
            writer.write_rows(ROWS[start:stop])
            writer.close_shard()
        return writer.commit(Stats(rows_in=edges[-1], rows_out=edges[-1]))


def shortened(folder: Path, whole: Dataset, deleted: list[bool]) -> Dataset:
    """``whole`` without the rows that ``deleted`` marks, in the same shards."""
    ends = np.cumsum([shard.rows for shard in whole.manifest.shards])
    with DatasetWriter(str(folder), PROMPTS, derive("test", 1, {"less": True})) as writer:
        writer.adopt_less(whole, np.split(np.array(deleted, np.bool_), ends[:-1]))
        left = len(deleted) - sum(deleted)
        return writer.commit(Stats(rows_in=left, rows_out=left))


@settings(max_examples=30)
@given(data=st.data())
def test_a_reader_sees_the_rows_that_are_left_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("deletions")
    sizes = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
    whole = written(folder / "whole", sizes)
    deleted = data.draw(st.lists(st.booleans(), min_size=whole.rows, max_size=whole.rows))
    shortened(folder / "less", whole, deleted)
    less = Dataset.open(str(folder / "less"), PROMPTS, allow_empty=True)
    left = [row for row, gone in zip(ROWS, deleted) if not gone]
    assert list(less.iter_rows()) == left
    assert less.rows == len(left)
    assert less.manifest.undeleted == whole.manifest.fingerprint
    every = [np.ones(rows, np.bool_) for rows in sizes]
    assert [row for batch in less.marked_batches(None, every) for row in batch.to_pylist()] == ROWS[
        : whole.rows
    ]
    assert [row for batch in less.deleted_batches() for row in batch.to_pylist()] == [
        row for row, gone in zip(ROWS, deleted) if gone
    ]
    less.verify()
    less.check_sizes()
    batch_rows = data.draw(st.none() | st.integers(1, 5))
    number = data.draw(st.integers(0, len(sizes) - 1))
    first = sum(shard.rows for shard in less.manifest.shards[:number])
    low, high = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
    read = less.batches(["prompt_id"], batch_rows=batch_rows, spans=[(number, low, high)])
    of_shard = left[first : first + less.manifest.shards[number].rows]
    assert [row["prompt_id"] for batch in read for row in batch.to_pylist()] == [
        row["prompt_id"] for row in of_shard[low:high]
    ]
    with DatasetWriter(str(folder / "again"), PROMPTS, derive("test", 1, {"again": True})) as writer:
        writer.adopt(whole, less)
        both = writer.commit(Stats(rows_in=whole.rows + less.rows, rows_out=whole.rows + less.rows))
    assert list(both.iter_rows()) == [*ROWS[: whole.rows], *left]


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_a_deletion_vector_is_what_it_was_made_of(flags: list[bool]) -> None:
    text = packed(np.array(flags))
    assert unpacked_deletions(text, len(flags)).tolist() == flags
    assert count_deletions(text) == sum(flags)
    assert is_deletions(text, len(flags) - sum(flags)) is any(flags)
    assert not is_deletions(text, len(flags) - sum(flags) + 8)


LATE = packed(np.arange(9) == 8)


@pytest.mark.parametrize("text", [7, "!", "AAAA", LATE[:-4], LATE])
def test_another_deletion_vector_is_refused(tmp_path: Path, text: object) -> None:
    """One of as many rows as the shard has not, or that is none."""
    less = shortened(tmp_path / "less", written(tmp_path / "whole", [4]), [True, False, True, False])
    [shard] = less.manifest.shards
    assert not is_deletions(text, shard.rows)
    object.__setattr__(shard, "deleted", text)
    with pytest.raises(CorruptDataset, match="deletion vector"):
        Manifest.from_json(less.manifest.to_json().encode(), "here")


def test_chunks_hold_the_rows_that_are_left(tmp_path: Path) -> None:
    deleted = [i % 5 == 0 for i in range(16)]
    less = shortened(tmp_path / "less", written(tmp_path / "whole", [5, 8, 3]), deleted)
    for chunks in (1, 3, 16):
        planned = plan(less, work=str(tmp_path / "work"), chunks=chunks)
        read = [row for chunk in planned for b in less.batches(spans=chunk.spans) for row in b.to_pylist()]
        assert read == list(less.iter_rows())
        assert sum(chunk.rows for chunk in planned) == less.rows
        assert all(chunk.rows for chunk in planned)


def test_a_part_that_cannot_be_taken_over_is_made_of_all_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And no copy of a shard stays where that broke off."""
    whole = written(tmp_path / "whole", [12, 12])
    less = shortened(tmp_path / "less", whole, [i % 6 == 0 for i in range(24)])
    work = f"faulty://{tmp_path}/work"
    register(faulty.SCHEME, lambda: faulty.FaultyStore({}))
    for chunk in plan(whole, work=work, chunks=1):
        run(chunk, Upper())
    [chunk] = plan(less, work=work, chunks=1)
    store = faulty.FaultyStore({1: "before"})  # the manifest, after the shard
    register(faulty.SCHEME, lambda: store)
    with caplog.at_level("INFO"):
        part = Dataset.open(run(chunk, stage := Upper()).uri)
    assert "is made of all rows: cannot write" in caplog.text
    assert [row["prompt_id"] for row in part.iter_rows()] == [row["prompt_id"] for row in less.iter_rows()]
    assert not stage.computed
    assert not part.manifest.undeleted
    held = {path.name for path in Path(part.uri.removeprefix("faulty://")).iterdir()}
    assert held == {"manifest.json", *(shard.path for shard in part.manifest.shards)}
