"""Checkpoints of several nodes, and what a node needs of one that is cut into shards."""

from __future__ import annotations

import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from kubealign_components.training.checkpoints import MARKERS, CheckpointStore, Saved, everything
from kubealign_components.training.processes import Processes, joined
from kubealign_components.training.sharded import shards_of


@dataclass(kw_only=True)
class Meeting:
    """Where processes that are threads meet."""

    count: int
    parts: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.count, timeout=20)


class Thread(Processes):
    """A process of a run as a thread; two are a node."""

    meeting: Meeting

    @classmethod
    def at(cls, meeting: Meeting, rank: int, folder: Path) -> Thread:
        node = rank // 2
        thread = cls(
            rank=rank,
            count=meeting.count,
            node=node,
            on_node=rank % 2,
            ranks_on_node=(2 * node, 2 * node + 1),
            folder=folder / f"node-{node}",
        )
        object.__setattr__(thread, "meeting", meeting)
        return thread

    def gather(self, own: Any) -> list[Any]:
        self.meeting.parts[self.rank] = own
        self.meeting.barrier.wait()
        parts = [self.meeting.parts[rank] for rank in range(self.count)]
        self.meeting.barrier.wait()
        return parts


def on_nodes(folder: Path, work: Any, count: int = 4) -> list[Any]:
    """What ``work`` gives in each of ``count`` processes, two on a node."""
    meeting = Meeting(count=count)
    threads = [Thread.at(meeting, rank, folder) for rank in range(count)]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, threads))


def save(store: CheckpointStore, step: int) -> Any:
    def work(process: Processes) -> None:
        folder = process.folder / f"step-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"part-{process.rank}").write_text(f"{step} of {process.rank}")
        (folder / "same-name").write_text(f"{step} of node {process.node}")
        process.gather(None)
        store.publish(folder, step, process)

    return work


def test_every_node_publishes_its_part_and_fetches_what_it_wants(tmp_path: Path) -> None:
    store = CheckpointStore(uri=str(tmp_path / "store"), keep=1)
    for step in (2, 4):
        on_nodes(tmp_path / "writing", save(store, step))
    (saved,) = store.complete()
    assert (saved.step, saved.processes) == (4, 4)
    assert sorted(saved.files) == ["part-0", "part-1", "part-2", "part-3", "same-name"]
    left = {
        p.relative_to(tmp_path / "store").parts[0] for p in (tmp_path / "store").rglob("*") if p.is_file()
    }
    assert left == {MARKERS, saved.name}

    def resume(process: Processes) -> list[str]:
        def wanted(found: Saved, folder: Path) -> set[str]:
            own = {f"part-{rank}" for rank in process.ranks_on_node}
            return {"same-name"} | (own if (folder / "same-name").exists() else set())

        found = store.newest(wanted, process)
        assert found is not None
        return sorted(path.read_text() for path in found[1].iterdir())

    texts = on_nodes(tmp_path / "reading", resume)
    assert texts[0] == texts[1] == ["4 of 0", "4 of 1", "4 of node 0"]
    assert texts[2] == texts[3] == ["4 of 2", "4 of 3", "4 of node 0"]


def test_damage_that_one_node_finds_sends_all_to_an_older_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(uri=str(tmp_path / "store"), keep=2)
    for step in (2, 4):
        on_nodes(tmp_path / "writing", save(store, step))
    newest = store.complete()[0]
    (tmp_path / "store" / newest.name / "part-3").write_text("something else")

    def resume(process: Processes) -> int:
        found = store.newest(lambda *_: [f"part-{rank}" for rank in process.ranks_on_node], process)
        assert found is not None
        return found[0].step

    assert on_nodes(tmp_path / "reading", resume) == [2, 2, 2, 2]


def test_what_a_killed_save_left_goes_with_the_next(tmp_path: Path) -> None:
    store = CheckpointStore(uri=str(tmp_path / "store"), keep=1)
    dead, ahead, beside = (f"checkpoint-0000000{step}-0badcafe" for step in (2, 9, 3))
    for name in (dead, ahead, beside):
        half = tmp_path / "store" / name / "part-0"
        half.parent.mkdir(parents=True)
        half.write_text("half")
        if name != beside:
            os.utime(half, (time.time() - 7200, time.time() - 7200))
    on_nodes(tmp_path / "writing", save(store, 4))
    with joined() as alone:
        found = store.newest(everything, alone)
        assert found is not None and found[0].step == 4
    assert not (tmp_path / "store" / dead / "part-0").exists()
    for name in (ahead, beside):
        assert (tmp_path / "store" / name / "part-0").exists(), "another training may be writing it"


def write_metadata(folder: Path, rows: dict[str, int], processes: int) -> None:
    """What torch writes when ``processes`` save tensors of so many rows, cut as FSDP2 cuts them."""
    tensors: dict[str, Any] = {}
    places = {}
    for name, count in rows.items():
        chunks = []
        for rank, part in enumerate(torch.arange(count).chunk(processes)):
            chunk = ChunkStorageMetadata(torch.Size([int(part[0]), 0]), torch.Size([len(part), 8]))
            chunks.append(chunk)
            places[MetadataIndex(name, chunk.offsets)] = _StorageInfo(f"__{rank}_0.distcp", 0, 1)
        tensors[name] = TensorStorageMetadata(TensorProperties(), torch.Size([count, 8]), chunks)
    tensors["step"] = TensorStorageMetadata(
        TensorProperties(), torch.Size([]), [ChunkStorageMetadata(torch.Size([]), torch.Size([]))]
    )
    tensors["groups"] = BytesStorageMetadata()
    places[MetadataIndex("step", torch.Size([]))] = _StorageInfo("__0_0.distcp", 0, 1)
    places[MetadataIndex("groups")] = _StorageInfo("__0_0.distcp", 0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(tensors, storage_data=places)))


@given(
    rows=st.dictionaries(st.sampled_from("abc"), st.integers(1, 40), min_size=1),
    before=st.integers(1, 9),
    after=st.integers(1, 9),
    data=st.data(),
)
def test_a_process_fetches_the_files_with_its_rows(
    tmp_path_factory: pytest.TempPathFactory,
    rows: dict[str, int],
    before: int,
    after: int,
    data: st.DataObject,
) -> None:
    rank = data.draw(st.integers(0, after - 1))
    folder = tmp_path_factory.mktemp("shards")
    write_metadata(folder, rows, before)
    needed = set(shards_of(folder, [rank], after))
    exactly = {"__0_0.distcp"}
    for count in rows.values():
        own = dict(enumerate(torch.arange(count).chunk(after))).get(rank, torch.tensor([]))
        for writer, part in enumerate(torch.arange(count).chunk(before)):
            if set(own.tolist()) & set(part.tolist()):
                exactly.add(f"__{writer}_0.distcp")
    assert needed == exactly
    assert set(shards_of(folder, range(after), after)) >= needed
