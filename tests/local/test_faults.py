"""Many chunks, many faults: nothing lost, nothing doubled; and a disk that is full."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kubealign_components.data.chunks import merge, plan
from kubealign_components.store import faulty, register
from support import chunk_worker
from support.chunk_worker import Upper, run
from support.datasets import MakeDataset
from support.tiny import prompt_row


@pytest.mark.timeout(300)
def test_soak(make_dataset: MakeDataset, tmp_path: Path) -> None:
    datasets = [make_dataset([prompt_row(f"{half} {i}") for i in range(200)]) for half in ("a", "b")]
    plans = [plan(dataset, work=f"faulty://{tmp_path}/work", chunks=100) for dataset in datasets]
    places = tmp_path / "chunks.json"
    places.write_text(json.dumps([chunk.to_json() for chunks in plans for chunk in chunks]))

    def start(number: int, seed: int) -> subprocess.Popen[str]:
        command = [sys.executable, chunk_worker.__file__, "soak", str(places), str(number), str(seed)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    running = {number: start(number, number) for number in range(3)}
    kills = refusals = 0
    while running:
        for number, process in list(running.items()):
            refusals += process.communicate()[0].count("refused")
            if process.returncode == -signal.SIGKILL:
                kills += 1
                running[number] = start(number, 3 + kills)
            else:
                assert process.returncode == 0
                del running[number]
    register(faulty.SCHEME, lambda: faulty.FaultyStore({}))
    lost = doubled = 0
    for number, (dataset, chunks) in enumerate(zip(datasets, plans)):
        parts = [run(chunk, Upper()) for chunk in chunks]
        merged = merge(parts, chunks, f"faulty://{tmp_path}/merged-{number}")
        ids = [row["prompt_id"] for row in merged.iter_rows()]
        lost += len({row["prompt_id"] for row in dataset.iter_rows()} - set(ids))
        doubled += len(ids) - len(set(ids))
    print(f"soak: 200 chunks, 3 workers, {kills} kills, {refusals} refusals, {lost} lost, {doubled} doubled")
    assert kills and refusals
    assert (lost, doubled) == (0, 0)


def test_a_full_disk_is_named_and_leaves_no_dataset(make_dataset: MakeDataset, tmp_path: Path) -> None:
    [chunk] = plan(
        make_dataset([prompt_row(f"question {i}") for i in range(120)]), work=str(tmp_path / "work"), chunks=1
    )
    (tmp_path / "chunk.json").write_text(json.dumps(chunk.to_json()))
    arguments = f"{chunk_worker.__file__} {tmp_path}/chunk.json 8 {tmp_path}/log -1 none 0 -"
    command = f"ulimit -f 4; exec {sys.executable} {arguments}"
    full = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert full.returncode == 1
    assert "StoreError: cannot write" in full.stderr
    assert "free space there" in full.stderr.splitlines()[-1]
    assert not list((tmp_path / "work").rglob("manifest.json"))
    again = Upper()
    assert run(chunk, again).rows == 120
    assert len(again.computed) < 120
