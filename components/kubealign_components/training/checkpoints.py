"""Training checkpoints in the work prefix: what a killed pod loses is what came after the last one.

A checkpoint is a folder of its own, named by step and attempt. Every node publishes the files that its
processes wrote; when all have, the first process publishes the checkpoint's marker in ``latest/``, which
lists the files of all nodes with their digests. The last marker by name is the latest checkpoint. A kill in
the middle of a save leaves files without a marker, which a save an hour later removes, never a checkpoint
that half loads.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments

from kubealign_components.data.fingerprint import file_digest
from kubealign_components.errors import NotFound, StoreError
from kubealign_components.store import ObjectInfo, inside, join, store_for
from kubealign_components.training.processes import Processes

log = logging.getLogger(__name__)

MARKERS = "latest"
_FOLDER = re.compile(r"/(checkpoint-\d{8}-[0-9a-f]{8})(?:/|\.json$)")
_THREADS = 4
_UPLOAD_SECONDS = 3600.0
"""How long after the last file of a checkpoint its marker may be on its way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A complete checkpoint, as its marker says."""

    name: str
    step: int
    processes: int
    """How many wrote it."""
    files: dict[str, str]
    """SHA-256 by path in the checkpoint."""


FileChoice = Callable[[Saved, Path], Collection[str]]
"""Which files of a checkpoint this node needs. Called with the folder that they go to, and once more when
those are there, until it names no others: what is needed may stand in a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointStore:
    """The checkpoints of one run."""

    uri: str
    """Folder or prefix; it names everything that the checkpoints depend on."""
    keep: int
    """Complete checkpoints that :meth:`publish` leaves, the new one among them."""
    last_step: int = 0
    """The step that the run ends with, before all that are planned: checkpoints of later ones are neither
    used nor removed. 0 for a run that goes through with them."""

    def publish(self, folder: Path, step: int, processes: Processes) -> None:
        """Publish what all nodes have below ``folder`` as the checkpoint of ``step``, then remove older ones.

        Every process calls it. A path that several nodes have is the first of them's.
        """
        name = processes.of_first(lambda: f"checkpoint-{step:08d}-{secrets.token_hex(4)}")
        own = _paths(folder) if processes.first_of_node else []
        before = processes.gather(own)[: processes.rank]
        files = self._upload(folder, name, set(own).difference(*before))
        parts = processes.gather(files)
        if processes.first:
            body = {
                "step": step,
                "processes": processes.count,
                "files": {k: v for p in parts for k, v in p.items()},
            }
            store_for(self.uri).publish(self._marker(name), json.dumps(body).encode())
            self._prune(name)

    def complete(self) -> list[Saved]:
        """The complete checkpoints, newest first."""
        store = store_for(self.uri)
        checkpoints = []
        for name in sorted(self._names(), reverse=True):
            try:
                checkpoints.append(Saved(name=name, **json.loads(store.read(self._marker(name)))))
            except (NotFound, ValueError, TypeError) as error:
                log.warning("%s cannot be used: its marker does not read (%s)", name, error)
        return checkpoints

    def newest(self, files_of: FileChoice, processes: Processes) -> tuple[Saved, Path] | None:
        """The newest checkpoint that all nodes can have, and the folder with what this node needs of it.

        Every process calls it. None when there is none.
        """
        unusable: set[str] = set()
        # Listed anew each time: an attempt that still lives may replace them meanwhile.
        while left := [s for s in processes.of_first(self.complete) if s.name not in unusable]:
            saved = left[0]
            folder = processes.folder / "resume" / saved.name
            problem = self._fetch(saved, files_of, folder) if processes.first_of_node else ""
            problems = [each for each in processes.gather(problem) if each]
            if not problems:
                return saved, folder
            log.warning("%s cannot be used, trying another checkpoint: %s", saved.name, problems[0])
            unusable.add(saved.name)
        return None

    def _upload(self, folder: Path, name: str, paths: Collection[str]) -> dict[str, str]:
        """Publish files as those of the checkpoint ``name``; SHA-256 by path."""
        store = store_for(self.uri)

        def upload(path: str) -> str:
            store.publish_file(folder / path, join(self.uri, name, path))
            return file_digest(folder / path)

        with ThreadPoolExecutor(_THREADS) as pool:
            return dict(zip(sorted(paths), pool.map(upload, sorted(paths))))

    def _fetch(self, saved: Saved, files_of: FileChoice, folder: Path) -> str:
        """Fetch what is wanted to ``folder``; what is wrong with it, if anything."""
        folder.mkdir(parents=True, exist_ok=True)
        have: set[str] = set()
        try:
            while missing := set(files_of(saved, folder)) - have:
                with ThreadPoolExecutor(_THREADS) as pool:
                    for _ in pool.map(lambda path: self._fetch_file(saved, path, folder), sorted(missing)):
                        pass
                have |= missing
        except (StoreError, ValueError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            return str(error)
        return ""

    def _fetch_file(self, saved: Saved, path: str, folder: Path) -> None:
        target = inside(folder, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        uri = join(self.uri, saved.name, path)
        fetched = store_for(uri).fetch(uri, target.parent)
        if fetched.parent == target.parent:
            fetched.replace(target)
        else:
            target.symlink_to(fetched.resolve())
        if file_digest(target) != saved.files[path]:
            raise ValueError(f"{path} is not what was saved")

    def _marker(self, name: str) -> str:
        return join(self.uri, MARKERS, f"{name}.json")

    def _objects(self, folder: str = "") -> Iterator[tuple[str, ObjectInfo]]:
        """The checkpoint, by name, and what is stored of everything below ``folder``."""
        for entry in store_for(self.uri).list(join(self.uri, folder) if folder else self.uri):
            match = _FOLDER.search(entry.uri)
            if match:
                yield match[1], entry

    def _names(self) -> set[str]:
        """Of the complete checkpoints that are this run's."""
        names = {name for name, _ in self._objects(MARKERS)}
        return {name for name in names if not self.last_step or _step_of(name) <= self.last_step}

    def _prune(self, last: str) -> None:
        """Remove all but ``last``, which was just published, and the newest complete ones before it.

        A complete one of a later step goes as well: had it been usable, the run that made ``last`` would
        have gone on from there. What has no marker and comes later, or was written a while ago at most, may
        still be on its way: another training of the same kind may be under way.
        """
        complete = self._names()
        kept = sorted(name for name in complete if name <= last)[-self.keep :]
        objects = list(self._objects())
        written: dict[str, float] = {}
        for name, each in objects:
            written[name] = max(written.get(name, 0.0), each.written)
        # By the store's clock alone; another training may have removed ``last`` by now.
        before = written.get(last, 0.0) - _UPLOAD_SECONDS
        old = [
            (name, each.uri)
            for name, each in objects
            if name not in kept and (name in complete or (name < last and written[name] <= before))
        ]
        # Markers go first, so that a checkpoint is never complete with files missing.
        for _, uri in sorted((uri != self._marker(name), uri) for name, uri in old):
            store_for(uri).delete(uri)


class PublishCheckpoints(TrainerCallback):
    """Moves every checkpoint that the Trainer writes to the node's folder to the store."""

    def __init__(self, store: CheckpointStore, processes: Processes) -> None:
        self.store, self.processes = store, processes

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Called on every process once the Trainer has saved."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.processes.wait()
        self.store.publish(folder, state.global_step, self.processes)
        if self.processes.first_of_node:
            shutil.rmtree(folder)


def everything(saved: Saved, _: Path) -> Collection[str]:
    """All files: what a node needs of a checkpoint that is not cut into shards."""
    return saved.files


def _step_of(name: str) -> int:
    return int(name.split("-")[1])


def _paths(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
