"""Chunks under kill -9, refusing storage, races and SIGTERM: the same rows, and no work done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubealign_components.data.chunks import Chunk, Part, merge, plan
from kubealign_components.data.worker import Missing
from kubealign_components.errors import ChunkError, CorruptDataset, EngineError, StoreError
from kubealign_components.preemption import EXIT_CODE, preemptible
from kubealign_components.store import faulty, register
from support import chunk_worker
from support.chunk_worker import Row, Upper, run
from support.datasets import MakeDataset, flip_a_bit, questions

WRITES = 6  # of a chunk of two slices: data and record of each, shard, manifest


def worker(
    chunk: Chunk, folder: Path, *, write: int = -1, moment: str = "", seconds: float = 0, salt: str = ""
) -> subprocess.Popen[str]:
    """A process on ``chunk`` that dies at ``moment`` of its write number ``write``."""
    (folder / "chunk.json").write_text(json.dumps(chunk.to_json()))
    arguments = [folder / "chunk.json", 2, folder / "computed", write, moment, seconds, salt]
    command = [sys.executable, chunk_worker.__file__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def computed(folder: Path) -> Counter[str]:
    return Counter((folder / "computed").read_text().split())


@pytest.mark.parametrize("moment", faulty.MOMENTS)
@pytest.mark.parametrize("write", range(WRITES))
def test_killed_at_a_commit_boundary(
    make_dataset: MakeDataset, tmp_path: Path, write: int, moment: str
) -> None:
    dataset = make_dataset(questions(4))
    [chunk] = plan(dataset, work=f"faulty://{tmp_path}/work", chunks=1)
    killed = worker(chunk, tmp_path, write=write, moment=moment)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    register(faulty.SCHEME, lambda: faulty.FaultyStore({}))
    again = Upper()
    part = run(chunk, again)
    merged = merge([part], [chunk], str(tmp_path / "merged"))
    [clean] = plan(dataset, work=str(tmp_path / "clean"), chunks=1)
    expected = merge([run(clean, Upper())], [clean], str(tmp_path / "expected"))
    assert merged.manifest.shards == expected.manifest.shards
    assert list(merged.iter_rows()) == list(expected.iter_rows())
    twice = set(computed(tmp_path)) & set(again.computed)
    in_flight = write < 4 and (write % 2 == 0 or moment != "after")
    assert len(twice) == (2 if in_flight else 0)


schedules = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, 30), st.sampled_from(faulty.MOMENTS), max_size=4),
        st.integers(1, 5),
        st.integers(1, 4),
    ),
    max_size=4,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.integers(1, 13), schedule=schedules)
def test_any_schedule_of_refusals_gives_the_same_rows(
    make_dataset: MakeDataset,
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    schedule: list[tuple[dict[int, str], int, int]],
) -> None:
    """Every attempt has faults, a slice size and a number of chunks of its own."""
    folder = tmp_path_factory.mktemp("schedule")
    dataset = make_dataset(questions(rows))
    for faults, slice_rows, chunks in [*schedule, ({}, 2, 2)]:
        store = faulty.FaultyStore(faults)
        register(faulty.SCHEME, lambda store=store: store)
        planned = plan(dataset, work=f"faulty://{folder}/work", chunks=chunks)
        try:
            parts = [run(chunk, Upper(), slice_rows) for chunk in planned]
            merged = merge(parts, planned, f"faulty://{folder}/merged")
        except StoreError as error:
            assert "asked for" in str(error)
    assert [r["prompt_id"] for r in merged.iter_rows()] == [r["prompt_id"] for r in dataset.iter_rows()]
    assert all(r["metadata"] == r["prompt_id"].upper() for r in merged.iter_rows())


def test_two_workers_on_one_chunk_publish_one_part(make_dataset: MakeDataset, tmp_path: Path) -> None:
    [chunk] = plan(make_dataset(questions(12)), work=str(tmp_path / "work"), chunks=1)
    racing = [worker(chunk, tmp_path, seconds=0.05, salt=salt) for salt in "xy"]
    parts = [Part.from_json(process.communicate()[0]) for process in racing]
    assert parts[0].uri == parts[1].uri
    merged = merge(parts[:1], [chunk], str(tmp_path / "merged"))
    assert {row["metadata"].rstrip("xy") for row in merged.iter_rows()} == {
        row["prompt_id"].upper() for row in merged.iter_rows()
    }
    assert merged.rows == 12
    assert len(list((tmp_path / "work").rglob("manifest.json"))) == 1


@pytest.mark.parametrize("moment", faulty.MOMENTS)
@pytest.mark.parametrize("write", range(3))  # two shards, then the manifest
def test_a_merge_that_was_killed_is_merged_again(
    make_dataset: MakeDataset, tmp_path: Path, write: int, moment: str
) -> None:
    register(faulty.SCHEME, lambda: faulty.FaultyStore({}))
    dataset = make_dataset(questions(6))
    chunks = plan(dataset, work=f"faulty://{tmp_path}/work", chunks=2)
    parts = [run(chunk, Upper()) for chunk in chunks]
    planned = {"parts": [p.to_json() for p in parts], "chunks": [c.to_json() for c in chunks]}
    (tmp_path / "parts.json").write_text(json.dumps(planned))
    output = f"faulty://{tmp_path}/merged"
    command = [chunk_worker.__file__, "merge", str(tmp_path / "parts.json"), output, str(write), moment]
    assert subprocess.run([sys.executable, *command]).returncode == -signal.SIGKILL
    finished = (write, moment) == (2, "after")
    assert (tmp_path / "merged" / "manifest.json").exists() == finished
    merged = merge(parts, chunks, output)
    assert [r["prompt_id"] for r in merged.iter_rows()] == [r["prompt_id"] for r in dataset.iter_rows()]


@pytest.fixture
def slow(make_dataset: MakeDataset, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A worker in the middle of its first slice."""
    [chunk] = plan(make_dataset(questions(8)), work=str(tmp_path / "work"), chunks=1)
    process = worker(chunk, tmp_path, seconds=1)
    while not (tmp_path / "computed").exists():
        time.sleep(0.02)
    yield process
    process.kill()
    process.communicate()


def test_sigterm_finishes_the_slice_in_flight(slow: subprocess.Popen[str], tmp_path: Path) -> None:
    slow.send_signal(signal.SIGTERM)
    _, said = slow.communicate(timeout=20)
    assert slow.returncode == EXIT_CODE
    assert "upper chunk 1 of 1: SIGTERM" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "work").rglob("manifest.json"))
    again = Upper()
    run(Chunk.from_json(json.loads((tmp_path / "chunk.json").read_text())), again)
    assert len(again.computed) == 6, "all but the two rows of that slice"


ONE_BY_ONE = """
import json, os, signal, sys, time
from pathlib import Path
from kubealign_components.data.chunks import Chunk
from support.chunk_worker import Row, Upper, run

class OneByOne(Upper):
    def compute(self, slices):
        for slice in slices:
            for number, missing in enumerate(slice):
                if number == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.5)
                if number == 5:  # as when the time is over
                    os.kill(os.getpid(), signal.SIGKILL)
                yield from super().compute(iter([[missing]]))

run(Chunk.from_json(json.loads(Path(sys.argv[1]).read_text())), OneByOne(), 8)
"""


def test_what_is_computed_when_the_time_to_stop_in_ends_amid_a_slice_is_kept(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    [chunk] = plan(make_dataset(questions(8)), work=str(tmp_path / "work"), chunks=1)
    (tmp_path / "chunk.json").write_text(json.dumps(chunk.to_json()))
    command = [sys.executable, "-c", ONE_BY_ONE, str(tmp_path / "chunk.json")]
    tests = Path(chunk_worker.__file__).parents[1]
    done = subprocess.run(command, cwd=tests, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    again = Upper()
    run(chunk, again, 8)
    assert len(again.computed) == 4, "the first four were given back when it was told to stop, or after it"


def test_what_is_computed_before_an_error_is_kept(make_dataset: MakeDataset, tmp_path: Path) -> None:
    class FailingAmid(Upper):
        def compute(self, slices: Iterator[list[Missing]]) -> Iterator[tuple[Missing, list[Row]]]:
            for missing in slices:
                yield from super().compute(iter([missing[:5]]))
                raise EngineError("amid the slice")

    [chunk] = plan(make_dataset(questions(8)), work=str(tmp_path / "work"), chunks=1)
    with pytest.raises(EngineError, match="amid the slice"):
        run(chunk, FailingAmid(), 8)
    again = Upper()
    run(chunk, again, 8)
    assert len(again.computed) == 3


def test_a_slice_that_does_not_end_is_abandoned() -> None:
    program = (
        "import os, signal, time\n"
        "from kubealign_components.preemption import preemptible\n"
        "with preemptible('a stage', grace=0.3):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert done.returncode == EXIT_CODE
    assert "abandoned" in done.stderr


def test_handlers_are_restored_and_other_threads_run_without() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with preemptible("a stage") as check:
        assert signal.getsignal(signal.SIGTERM) is not before
        check()
    assert signal.getsignal(signal.SIGTERM) is before
    seen: list[object] = []

    def elsewhere() -> None:
        with preemptible("a stage") as check:
            check()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


def test_nothing_planned_is_nothing_to_merge(tmp_path: Path) -> None:
    with pytest.raises(ChunkError, match="no chunks were planned"):
        merge([], [], str(tmp_path))


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "flipped shard": ("shard-*", flip_a_bit),
    "missing shard": ("shard-*", Path.unlink),
    "cut shard": ("shard-*", lambda p: os.truncate(p, 40)),
    "flipped manifest": ("manifest.json", flip_a_bit),
    "cut manifest": ("manifest.json", lambda p: os.truncate(p, 40)),
    "empty manifest": ("manifest.json", lambda p: os.truncate(p, 0)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_part_is_made_again_from_its_slices(
    make_dataset: MakeDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    dataset = make_dataset(questions(6))
    chunks = plan(dataset, work=str(tmp_path / "work"), chunks=2)
    for chunk in chunks:
        run(chunk, Upper())
    pattern, damage = DAMAGE[kind]
    damage(next((tmp_path / "work").rglob(f"parts/*/{pattern}")))
    again = Upper()
    parts = [run(chunk, again) for chunk in chunks]
    assert again.computed == []  # nothing but the slices was needed
    assert "made again from its finished slices" in caplog.text
    merged = merge(parts, chunks, str(tmp_path / "merged"))
    assert [row["metadata"] for row in merged.iter_rows()] == [
        row["prompt_id"].upper() for row in dataset.iter_rows()
    ]


def test_a_part_that_is_cut_between_chunk_and_merge_is_named(
    make_dataset: MakeDataset, tmp_path: Path
) -> None:
    chunks = plan(make_dataset(questions(6)), work=str(tmp_path / "work"), chunks=2)
    parts = [run(chunk, Upper()) for chunk in chunks]
    shard = next((tmp_path / "work").rglob("parts/*/shard-*"))
    os.truncate(shard, 40)
    with pytest.raises(CorruptDataset, match=rf"{shard.name} has 40 bytes"):
        merge(parts, chunks, str(tmp_path / "merged"))
    assert not (tmp_path / "merged" / "manifest.json").exists()


def test_published_files_have_many_names_and_no_writer(make_dataset: MakeDataset, tmp_path: Path) -> None:
    chunks = plan(make_dataset(questions(4)), work=str(tmp_path / "work"), chunks=1)
    merge([run(chunk, Upper()) for chunk in chunks], chunks, str(tmp_path / "merged"))
    published = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ""]
    assert published
    assert not [path for path in published if path.stat().st_mode & 0o222]
