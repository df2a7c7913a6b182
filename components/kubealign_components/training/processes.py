"""This process among those of its run, and the folder that it shares with those of its node.

Nodes share nothing but the store. What every process of a node needs, one of them fetches or makes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from kubealign_components.data.models import ModelFiles, find_adapter, find_model
from kubealign_components.errors import EngineError
from kubealign_components.training.local_processes import MEETING

TIMEOUT = timedelta(hours=2)
"""How long processes wait for one that fetches a model or publishes a checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """All processes of a run, from where one of them stands."""

    rank: int
    """Of this process, from 0."""
    count: int
    node: int
    """Number of this process's node, from 0."""
    on_node: int
    """Its rank among those of its node."""
    ranks_on_node: tuple[int, ...]
    """The ranks of all processes of its node."""
    folder: Path
    """Scratch space that the processes of the node share, gone when the run ends."""

    @property
    def first(self) -> bool:
        """Whether this is the process that logs and publishes."""
        return self.rank == 0

    @property
    def first_of_node(self) -> bool:
        """Whether this process does what is done once on every node."""
        return self.on_node == 0

    def gather(self, own: Any) -> list[Any]:
        """What every process gives, by rank, on every process."""
        return _gather(own, self.count)

    def of_first(self, make: Callable[[], Any]) -> Any:
        """What ``make`` gives on the first process, on every process."""
        return self.gather(make() if self.first else None)[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            torch.distributed.barrier()

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """The file or folder ``name`` of the node's folder, which ``make`` makes in one of its processes.

        The others wait until it is there.
        """
        target = self.folder / name
        with self._alone():
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f"{target.name}.part")
                shutil.rmtree(part, ignore_errors=True)  # of one that failed
                make(part)
                part.replace(target)
        return target

    def find_model(self, name: str, revision: str | None = None) -> ModelFiles:
        """See :func:`~kubealign_components.data.models.find_model`; fetched by one process of a node."""
        with self._alone():
            return find_model(name, revision)

    def find_adapter(self, uri: str, field: str) -> ModelFiles:
        """See :func:`~kubealign_components.data.models.find_adapter`; fetched by one process of a node."""
        with self._alone():
            return find_adapter(uri, field)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process of the node is in this block."""
        with (self.folder / ".lock").open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the run that this process was started for; alone where it was for none.

    Raises:
        EngineError: the process does not see all others.
    """
    # Told so, accelerate joins over gloo; else it takes a machine without accelerators for one process.
    state = PartialState(cpu=not torch.cuda.is_available(), **_group())
    rank, count = int(state.process_index), int(state.num_processes)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if count != started:
        raise EngineError(f"{started} processes were started, and this one knows of {count}")
    node, on_node = int(os.environ.get("GROUP_RANK", "0")), int(state.local_process_index)
    own = tempfile.mkdtemp(prefix="kubealign-train-") if on_node == 0 else ""
    here = [(r, path) for r, (number, path) in enumerate(_gather((node, own), count)) if number == node]
    try:
        yield Processes(
            rank=rank,
            count=count,
            node=node,
            on_node=on_node,
            ranks_on_node=tuple(r for r, _ in here),
            folder=Path("".join(path for _, path in here)),
        )
    finally:
        if own:
            shutil.rmtree(own, ignore_errors=True)


def _group() -> dict[str, object]:
    """How the process group is made: over a file on one machine, else as torchrun's variables say."""
    if "WORLD_SIZE" not in os.environ:
        return {}
    if MEETING not in os.environ:
        return {"timeout": TIMEOUT}
    return {
        "timeout": TIMEOUT,
        "init_method": f"file://{os.environ[MEETING]}",
        "rank": int(os.environ["RANK"]),
        "world_size": int(os.environ["WORLD_SIZE"]),
    }


def _gather(own: Any, count: int) -> list[Any]:
    if count == 1:
        return [own]
    parts: list[Any] = [None] * count
    torch.distributed.all_gather_object(parts, own)
    return parts
