"""Whatever is damaged in a work prefix between two runs: the second gives the same rows, and computes only
what the damage took."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kubealign_components.data.chunks import Chunk, merge, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.stats import Stats
from kubealign_components.errors import CorruptDataset
from support.chunk_worker import Row, Upper, run
from support.datasets import MakeDataset, flip_a_bit, questions
from support.tiny import prompt_row
from support.watched_store import WatchedStore

ROWS, SLICE, CHUNKS = 12, 2, 2


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": flip_a_bit,
    "cut": lambda path: os.truncate(path, 9),
    "empty": lambda path: os.truncate(path, 0),
    "gone": Path.unlink,
}
KINDS = {
    "part's shard": "parts/*/shard-*",
    "part's manifest": "parts/*/manifest.json",
    "slice": "*/data/*",
    "record": "*/commits/*",
    "head of a pack": "*/packs/*",
    "bucket": "*/buckets/*",
}


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore()


def merged(chunks: list[Chunk], stage: Upper, output: Path) -> list[str]:
    parts = [run(chunk, stage, SLICE) for chunk in chunks]
    return [row["metadata"] for row in merge(parts, chunks, str(output)).iter_rows()]


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_run_heals(
    store: WatchedStore, make_dataset: MakeDataset, tmp_path: Path, kind: str, how: str
) -> None:
    dataset = make_dataset([prompt_row(f"question {i}") for i in range(ROWS)])
    work = tmp_path / "work" / "upper"
    chunks = plan(dataset, work=f"faulty://{tmp_path}/work", chunks=CHUNKS)
    run(chunks[0], Upper(), SLICE)
    expected = merged(chunks, Upper(), tmp_path / "first")
    late = make_dataset([prompt_row("late")])
    run(plan(late, work=f"faulty://{tmp_path}/work", chunks=1)[0], Upper(), SLICE)  # its record stays one
    [victim, *_] = sorted(work.glob(KINDS[kind]))
    DAMAGE[how](victim)
    if "part" not in kind:
        shutil.rmtree(work / "parts")  # or nothing else would be looked at
    again = Upper()
    assert merged(chunks, again, tmp_path / "second") == expected
    lost = {"slice": SLICE}
    if how == "gone":
        lost["head of a pack"] = ROWS  # nothing tells that there was one
    assert len(again.computed) <= lost.get(kind, 0)
    third = Upper()
    assert merged(chunks, third, tmp_path / "third") == expected
    assert third.computed == []


def test_a_slice_that_goes_while_the_part_is_written_is_made_again(
    store: WatchedStore, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    dataset = make_dataset([prompt_row(f"question {i}") for i in range(ROWS)])
    [chunk] = plan(dataset, work=f"faulty://{tmp_path}/work", chunks=1)
    with pytest.raises(RuntimeError, match="killed"):
        run(chunk, Upper(fail_after=ROWS // 2), SLICE)
    [first, *_] = (tmp_path / "work").rglob("data/*")
    good = first.read_bytes()

    def before(what: str, uri: str) -> None:
        if what == "publish" and len(list(first.parent.iterdir())) == ROWS // SLICE:
            store.before = lambda _what, _uri: None
            first.unlink()

    store.before = before
    stage = Upper()
    part = run(chunk, stage, SLICE)
    assert first.read_bytes() == good
    assert len(stage.computed) == ROWS // 2 + SLICE
    assert part.reused_rows == ROWS // 2
    assert sorted(row["metadata"] for row in Dataset.open(part.uri).iter_rows()) == sorted(
        row["prompt_id"].upper() for row in dataset.iter_rows()
    )


def test_a_flipped_byte_between_chunk_and_merge_is_named_and_healed_by_the_next_run(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    dataset = make_dataset([prompt_row(f"question {i}") for i in range(ROWS)])
    chunks = plan(dataset, work=str(tmp_path / "work"), chunks=CHUNKS)
    parts = [run(chunk, Upper(), SLICE) for chunk in chunks]
    shard = next((tmp_path / "work").rglob("parts/*/shard-*"))
    flip_a_bit(shard)
    with pytest.raises(CorruptDataset, match=f"part of chunk . of 2 is damaged.*{shard.name}.*Run again"):
        merge(parts, chunks, str(tmp_path / "merged"))
    again = Upper()
    assert len(merged(chunks, again, tmp_path / "merged")) == ROWS
    assert again.computed == []


def test_a_damaged_shard_that_a_killed_writer_left_is_replaced(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    [chunk] = plan(make_dataset([prompt_row("one")]), work=str(tmp_path / "work"), chunks=1)
    part = Path(run(chunk, Upper(), SLICE).uri)
    (part / "manifest.json").unlink()  # as if it had not been published yet
    flip_a_bit(next(part.glob("shard-*")))
    Dataset.open(run(chunk, Upper(), SLICE).uri).verify()


def test_a_chunk_fetches_each_of_its_shards_once(
    store: WatchedStore, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    made = make_dataset([prompt_row(f"question {i}") for i in range(ROWS)], shards=3)
    dataset = Dataset.open(f"faulty://{made.uri}")
    chunks = plan(dataset, work=f"faulty://{tmp_path}/work", chunks=CHUNKS)
    store.asked.clear()
    run(chunks[0], Upper(), SLICE)
    asked = sum(n for (what, folder), n in store.asked.items() if what == "fetch" and folder != "data")
    assert asked == len(chunks[0].spans) == 2


class Counted(Upper):
    """Counts the rows that it puts together, and loses results amid that."""

    def __init__(self, work: Path) -> None:
        super().__init__()
        self.work, self.applied = work, 0

    def apply(self, row: Row, results: Sequence[Row]) -> Row:
        self.applied += 1
        lost = self.work.with_name("lost")
        if self.applied == SLICE and not lost.exists():
            self.work.rename(lost)
        return super().apply(row, results)

    def summarise(self, rows: Sequence[Row], stats: Stats) -> None:
        super().summarise(rows, stats)
        stats.counts["applied"] += self.applied
        self.applied = 0


def test_rows_whose_results_are_lost_amid_the_part_are_counted_once(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    [chunk] = plan(make_dataset(questions(ROWS)), work=str(tmp_path / "work"), chunks=1)
    run(chunk, Upper(), SLICE)
    shutil.rmtree(tmp_path / "work/upper/parts")
    [data] = (tmp_path / "work/upper").glob("*/data")
    stage = Counted(data)
    part = run(chunk, stage, SLICE)
    assert stage.computed, "nothing was lost"
    assert Dataset.open(part.uri).manifest.stats["counts"] == {"seen": ROWS, "applied": ROWS}
