"""Several engine processes on one chunk: rows and bytes of one process, and no work lost or done twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubealign_components import gpus as machine
from kubealign_components.data.chunks import Chunk, plan, shares
from kubealign_components.data.dataset import Dataset
from kubealign_components.errors import ConfigError, DataError, EngineError
from kubealign_components.gpus import Gpus, visible_gpus
from kubealign_components.preemption import EXIT_CODE
from support import chunk_worker
from support.chunk_worker import SharedConfig, run_shared
from support.datasets import MakeDataset
from support.tiny import prompt_row

ROWS = 8


@pytest.fixture(autouse=True)
def the_processes_find_what_this_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.delenv(machine.VISIBLE, raising=False)


@pytest.fixture
def dataset(make_dataset: MakeDataset) -> Dataset:
    made: Dataset = make_dataset([prompt_row(f"question {i}") for i in range(ROWS)])
    return made


def chunk_in(folder: Path, dataset: Dataset) -> Chunk:
    [chunk] = plan(dataset, work=str(folder / "work"), chunks=1)
    return chunk


def config_in(folder: Path, processes: int, **settings: Any) -> SharedConfig:
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return SharedConfig(log=str(logs), processes=processes, **settings)


def computed(folder: Path) -> dict[str, list[str]]:
    """Ids of computed rows by process."""
    return {path.name: path.read_text().split() for path in (folder / "logs").iterdir()}


def shards(uri: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(Path(uri).glob("*.parquet"))]


def test_rows_and_bytes_are_those_of_one_process(dataset: Dataset, tmp_path: Path) -> None:
    parts = {}
    for processes in (1, 3):
        folder = tmp_path / str(processes)
        parts[processes] = run_shared(config_in(folder, processes), chunk=chunk_in(folder, dataset))
    assert shards(parts[1].uri) == shards(parts[3].uri) != []
    assert list(computed(tmp_path / "1")) == [str(os.getpid())]
    by_process = computed(tmp_path / "3")
    assert sorted(map(len, by_process.values())) == [2, 3, 3]
    assert str(os.getpid()) not in by_process
    ids = [row["prompt_id"] for row in dataset.iter_rows()]
    assert Counter(name for names in by_process.values() for name in names) == Counter(ids)


def test_what_is_finished_starts_no_process(dataset: Dataset, tmp_path: Path) -> None:
    chunk = chunk_in(tmp_path, dataset)
    first = run_shared(config_in(tmp_path, 2), chunk=chunk)
    assert first.reused_rows == 0
    shutil.rmtree(first.uri)
    before = computed(tmp_path)
    again = run_shared(config_in(tmp_path, 2), chunk=chunk)
    assert again.reused_rows == ROWS
    assert computed(tmp_path) == before
    assert shards(again.uri) != []


@pytest.mark.parametrize("kind", ["data", "engine", "killed"])
def test_what_one_process_raises_is_told_and_the_others_keep_what_they_have(
    dataset: Dataset, tmp_path: Path, kind: str
) -> None:
    ids = [row["prompt_id"] for row in dataset.iter_rows()]
    chunk, config = chunk_in(tmp_path, dataset), config_in(tmp_path, 2, fails=f"{ids[-1]}:{kind}")
    expected = DataError if kind == "data" else EngineError
    text = "engine process 2 was killed" if kind == "killed" else "the row is at fault"
    with pytest.raises(expected, match=text):
        run_shared(config, chunk=chunk)
    done = {name for names in computed(tmp_path).values() for name in names}
    shutil.rmtree(tmp_path / "logs")
    part = run_shared(config_in(tmp_path, 2), chunk=chunk)
    again = {name for names in computed(tmp_path).values() for name in names}
    assert part.reused_rows == ROWS - len(again)
    assert done | again == set(ids)
    assert ids[-1] in again


def test_told_to_stop_all_commit_and_end(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk, config = chunk_in(tmp_path, dataset), config_in(tmp_path, 2)
    (tmp_path / "chunk.json").write_text(json.dumps(chunk.to_json()))
    command = [sys.executable, chunk_worker.__file__, "share", tmp_path / "chunk.json", config.log, 2, 2.0]
    monkeypatch.setenv("KUBEALIGN_GRACE_SECONDS", "90")  # on a machine that has other things to do
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(computed(tmp_path)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == EXIT_CODE, told
    for name in computed(tmp_path):
        assert not Path(f"/proc/{name}").exists(), "a process outlived the one that started it"
    done = {name for names in computed(tmp_path).values() for name in names}
    part = run_shared(config_in(tmp_path / "later", 1), chunk=chunk)
    assert part.reused_rows == len(done) < ROWS, told


@given(rows=st.integers(1, 40), shard_rows=st.integers(1, 9), count=st.integers(1, 8), data=st.data())
def test_shares_are_the_chunk_cut(rows: int, shard_rows: int, count: int, data: st.DataObject) -> None:
    low = data.draw(st.integers(0, rows - 1))
    high = data.draw(st.integers(low + 1, rows))
    spans = []
    for number, first in enumerate(range(0, rows, shard_rows)):
        begin, end = max(low - first, 0), min(high - first, shard_rows)
        if begin < end:
            spans.append((number, begin, end))
    chunk = Chunk(
        dataset="d", fingerprint="f", index=0, of=1, spans=tuple(spans), rows=high - low, row_ids="", work="w"
    )

    def held(of: Chunk) -> list[tuple[int, int]]:
        return [(shard, row) for shard, begin, end in of.spans for row in range(begin, end)]

    cut = shares(chunk, min(count, chunk.rows))
    assert [row for one in cut for row in held(one)] == held(chunk)
    assert [len(held(one)) for one in cut] == [one.rows for one in cut]
    assert max(one.rows for one in cut) - min(one.rows for one in cut) <= 1


@given(count=st.integers(1, 16), each=st.integers(1, 16))
def test_every_process_has_gpus_of_its_own_and_as_many_as_its_engine_takes(count: int, each: int) -> None:
    names = tuple(map(str, range(count)))
    shown = Gpus(names=names, memory=1).shares(0, each)
    if shown == [""]:
        assert count < 2 * each
        return
    held = [one.split(",") for one in shown]
    assert all(len(one) >= each for one in held)
    assert len({name for one in held for name in one}) == sum(map(len, held))
    assert len(held) == count // each


def test_more_processes_than_gpus_are_refused() -> None:
    gpus = Gpus(names=("0", "1", "2", "3"), memory=1)
    assert gpus.shares(2, 1) == ["0,1", "2,3"]
    with pytest.raises(ConfigError, match="processes=3: expected at most 2: 4 GPUs, 2 for each"):
        gpus.shares(3, 2)
    assert gpus.shares(3, 0) == ["", "", ""], "an engine on processors"


@pytest.mark.parametrize(("gib", "wanted"), [(1, 1), (48, 1), (49, 2), (100, 4), (900, 8)])
def test_an_engine_takes_as_many_gpus_as_its_weights(gib: int, wanted: int) -> None:
    gpus = Gpus(names=tuple("01234567"), memory=80 * 2**30)
    assert gpus.for_weights(gib * 2**30) == wanted
    assert Gpus(names=gpus.names, memory=0).for_weights(1) == 8, "one engine where nothing is known"


def test_gpus_are_those_that_the_driver_and_the_environment_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '81559\\n40960\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == Gpus(names=("0", "1"), memory=40960 * 2**20)
    monkeypatch.setenv(machine.VISIBLE, "GPU-b, GPU-a")
    assert visible_gpus().names == ("GPU-b", "GPU-a")
    monkeypatch.setenv(machine.VISIBLE, "-1")
    assert visible_gpus().names == ()
    program.unlink()
    monkeypatch.delenv(machine.VISIBLE)
    assert visible_gpus() == Gpus(names=(), memory=0)


def test_a_driver_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "_PATIENCE", 0.1)
    with pytest.raises(EngineError, match=r"nvidia-smi has not answered in .* another node"):
        visible_gpus()
