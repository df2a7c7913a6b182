"""The index of finished slices: few reads, no row lost whatever is joined, killed or damaged meanwhile."""

from __future__ import annotations

import io
import logging
import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubealign_components.data import slice_index
from kubealign_components.data.named_objects import content_name, publish_named
from kubealign_components.data.slice_index import ROW_ID, SliceIndex
from kubealign_components.data.slices import Finished, SliceStore
from kubealign_components.store import join
from support.datasets import flip_a_bit
from support.watched_store import WatchedStore

Known = dict[str, list[str]]


def commit(folder: str, rows: list[str], plan: str = "", chunk: int = 0) -> str:
    """Publish a slice of ``rows`` and commit it; gives its name."""
    out = io.BytesIO()
    pq.write_table(pa.table({ROW_ID: rows, "row_key": rows}), out)
    name = content_name(out.getvalue())
    publish_named(join(folder, "data", f"{name}.parquet"), out.getvalue())
    SliceIndex(folder, plan, chunk).add(name, rows)
    return name


def committed(folder: str, slices: int, rows: int = 3) -> Known:
    """Commit some slices; gives what the index has to know."""
    known: Known = {}
    for number in range(slices):
        names = [f"prompt {number} {i}" for i in range(rows)]
        name = commit(folder, names)
        known |= {row: [name] for row in names}
    return known


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore()


@pytest.fixture
def folder(store: WatchedStore, tmp_path: Path) -> str:
    return f"faulty://{tmp_path}/work/stage/settings"


def objects(folder: str, kind: str) -> list[Path]:
    return sorted(Path(folder.removeprefix("faulty://")).glob(f"{kind}/*"))


def test_a_worker_reads_the_buckets_of_its_rows_and_no_record(
    store: WatchedStore, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slice_index, "BUCKET_ROWS", 16)
    known = committed(folder, 200, 4)
    SliceIndex(folder).compact()
    assert (objects(folder, "commits"), len(objects(folder, "packs"))) == ([], 1)
    assert len(objects(folder, "buckets")) == 64
    store.asked.clear()
    two = ["prompt 17 1", "prompt 140 3"]
    assert SliceIndex(folder).find([*two, "unknown"]) == {row: known[row] for row in two}
    assert store.times("read", "buckets") <= 3
    assert store.times("read") <= 4
    assert SliceIndex(folder).find(known) == known


def test_records_of_other_chunks_of_the_same_plan_are_not_read(store: WatchedStore, folder: str) -> None:
    for chunk in range(12):
        commit(folder, [f"row {chunk}"], "a" * 16, chunk)
    other = commit(folder, ["row 3", "row of a larger chunk"], "b" * 16, 5)
    store.asked.clear()
    found = SliceIndex(folder, "a" * 16, 3).find(["row 3"])
    assert len(found["row 3"]) == 2
    assert other in found["row 3"]
    assert store.times("read", "commits") == 2
    assert len(SliceIndex(folder, "a" * 16, 1).find(["row 1"])) == 1


def test_packs_stay_few_and_rows_are_written_again_a_few_times_only(store: WatchedStore, folder: str) -> None:
    known: Known = {}
    written = 0
    for night in range(40):
        for number in range(2):
            row = f"night {night} {number}"
            known[row] = [commit(folder, [row])]
        before = {path: path.stat().st_size for path in objects(folder, "buckets")}
        SliceIndex(folder).compact()
        written += sum(p.stat().st_size for p in objects(folder, "buckets") if p not in before)
    assert len(objects(folder, "packs")) <= 4
    assert written < 8 * 20 * len(known)
    assert SliceIndex(folder).find(known) == known


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


steps = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.integers(0, 5)),
        st.tuples(st.just("compact"), st.none() | st.integers(0, 14)),
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(schedule=steps)
def test_compaction_that_is_killed_anywhere_loses_no_row(
    tmp_path_factory: pytest.TempPathFactory, schedule: list[tuple[str, int | None]]
) -> None:
    """Killed before its n-th write or deletion; every row stands in the index at every moment."""
    store = WatchedStore()
    folder = f"faulty://{tmp_path_factory.mktemp('index')}/slices"
    known: dict[str, set[str]] = {}
    for number, (what, value) in enumerate(schedule):
        if what == "commit":
            rows = [f"prompt {value}", f"prompt {number + 10}"]
            name = commit(folder, rows)
            for row in rows:
                known.setdefault(row, set()).add(name)
        else:
            die_at(store, value)
            with suppress(Killed):
                SliceIndex(folder).compact()
            store.before = lambda _what, _uri: None
        assert {row: set(names) for row, names in SliceIndex(folder).find(known).items()} == known


def die_at(store: WatchedStore, write: int | None) -> None:
    left = [write]

    def before(what: str, _uri: str) -> None:
        if what in ("publish", "delete") and left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

    store.before = before


@pytest.mark.parametrize("seed", range(12))
def test_a_reader_misses_nothing_while_others_join(store: WatchedStore, folder: str, seed: int) -> None:
    """Before some of a reader's requests a whole compaction happens, with new records."""
    draw = random.Random(seed)
    known = committed(folder, 6)
    SliceIndex(folder).compact()
    known |= committed_more(folder, "late", 3)
    busy = False

    def before(what: str, _uri: str) -> None:
        nonlocal busy
        if not busy and what in ("read", "list") and draw.random() < 0.3:
            busy = True
            committed_more(folder, str(draw.random()), 9)
            SliceIndex(folder).compact()
            busy = False

    store.before = before
    found = SliceIndex(folder).find(known)
    store.before = lambda _what, _uri: None
    assert found == known


def committed_more(folder: str, label: str, slices: int) -> Known:
    return {row: [commit(folder, [row])] for row in (f"{label} {number}" for number in range(slices))}


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": flip_a_bit,
    "cut": lambda path: os.truncate(path, 9),
    "empty": lambda path: os.truncate(path, 0),
}


@pytest.mark.parametrize("how", [*DAMAGE, "gone"])
@pytest.mark.parametrize("kind", ["commits", "packs", "buckets"])
def test_what_a_damaged_record_knew_is_entered_again_from_the_slices(
    store: WatchedStore, folder: str, caplog: pytest.LogCaptureFixture, kind: str, how: str
) -> None:
    known = committed(folder, 4)
    SliceIndex(folder).compact()
    known |= committed_more(folder, "late", 3)
    if how == "gone" and kind != "buckets":
        pytest.skip("a record that is gone leaves no trace: its rows are computed again")
    [victim, *_] = objects(folder, kind)
    DAMAGE.get(how, Path.unlink)(victim)
    with caplog.at_level(logging.WARNING):
        assert SliceIndex(folder).find(known) == known
    assert victim.name in caplog.text
    assert (victim.parent.parent / "damaged" / victim.name).exists() == (how != "gone")
    SliceIndex(folder).compact()
    assert SliceIndex(folder).find(known) == known


def test_compaction_mends_as_well(store: WatchedStore, folder: str) -> None:
    known = committed(folder, 4)
    SliceIndex(folder).compact()
    known |= committed_more(folder, "late", 30)
    flip_a_bit(objects(folder, "buckets")[0])
    flip_a_bit(objects(folder, "commits")[0])
    SliceIndex(folder).compact()
    assert SliceIndex(folder).find(known) == known


def test_a_slice_that_is_gone_leaves_the_index_with_the_next_compaction(
    store: WatchedStore, folder: str
) -> None:
    known = committed(folder, 3)
    SliceIndex(folder).compact()
    [gone] = known["prompt 1 0"]
    next(path for path in objects(folder, "data") if path.stem == gone).unlink()
    known |= committed_more(folder, "late", 5)
    SliceIndex(folder).compact()
    kept = {row: names for row, names in known.items() if names != [gone]}
    assert SliceIndex(folder).find(known) == kept


def test_keys_of_rows_that_nobody_asked_for_are_not_told_as_finished(folder: str) -> None:
    """A key may be of two rows: what is told as finished is what is given."""
    schema = pa.schema([("reward", pa.float64())])
    with SliceStore(folder, schema, SliceIndex(folder), []) as every:
        rows = [("a", "shared"), ("b", "own")]
        every.commit([Finished(row, (key,), ({"reward": 1.0},)) for row, key in rows])
    with SliceStore(folder, schema, SliceIndex(folder), ["b"]) as one:
        keys = ["own", "shared"]
        assert one.finished("b", keys) == one.results("b", keys).keys() == {"own"}
