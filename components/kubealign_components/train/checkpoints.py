"""Training checkpoints in the work prefix: a killed pod loses at most ``save_every`` steps.

A checkpoint is a folder of its own, named by step and attempt; its last object is a marker that
lists the others with their digests. Without the marker it is nothing: a kill in the middle of a
save leaves rubbish that the next save removes, never a checkpoint that half loads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerState, TrainingArguments

from kubealign_components.errors import StoreError
from kubealign_components.store import join, store_for

log = logging.getLogger(__name__)

MARKER = "complete.json"
_FOLDER = re.compile(r"/(checkpoint-(\d{8})-[0-9a-f]{8})/(.+)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointStore:
    """The checkpoints of one run."""

    uri: str
    """Folder or prefix; it names everything that the checkpoints depend on."""
    keep: int
    """Complete checkpoints that :meth:`publish` leaves."""

    def publish(self, folder: Path, step: int) -> str:
        """Publish the files below ``folder`` as the checkpoint of ``step``, then remove older ones."""
        name = f"checkpoint-{step:08d}-{secrets.token_hex(4)}"
        files = {str(p.relative_to(folder)): _sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
        store = store_for(self.uri)
        for path in files:
            store.publish_file(folder / path, join(self.uri, name, path))
        marker = json.dumps({"step": step, "files": files})
        store.publish(join(self.uri, name, MARKER), marker.encode())
        self._prune()
        return join(self.uri, name)

    def newest(self, folder: Path) -> Path | None:
        """The newest whole checkpoint as a folder below ``folder``; None when there is none."""
        for name in reversed(self._complete()):
            target = folder / name
            try:
                self._fetch(name, target)
            except (StoreError, ValueError) as error:
                log.warning("%s cannot be used, trying an older checkpoint: %s", name, error)
                shutil.rmtree(target, ignore_errors=True)
            else:
                return target
        return None

    def _fetch(self, name: str, target: Path) -> None:
        store = store_for(self.uri)
        marker = json.loads(store.read(join(self.uri, name, MARKER)))
        for path, sha256 in marker["files"].items():
            place = target / path
            place.parent.mkdir(parents=True, exist_ok=True)
            fetched = store.fetch(join(self.uri, name, path), place.parent)
            if fetched != place:
                place.symlink_to(fetched.resolve())
            if _sha256(place) != sha256:
                raise ValueError(f"{path} is not what was saved")

    def _objects(self) -> Iterator[tuple[str, str, str]]:
        """``(checkpoint, path in it, URI)`` of everything stored, oldest checkpoint first."""
        for entry in store_for(self.uri).list(self.uri):
            match = _FOLDER.search(entry.uri)
            if match:
                yield match[1], match[3], entry.uri

    def _complete(self) -> list[str]:
        return sorted({name for name, path, _ in self._objects() if path == MARKER})

    def _prune(self) -> None:
        """Remove what is neither among the newest complete checkpoints nor newer than they are."""
        complete = self._complete()
        kept = set(complete[-self.keep :])
        objects = [
            (path, uri) for name, path, uri in self._objects() if name not in kept and name < max(kept)
        ]
        # The marker goes first, so that a checkpoint is never complete with files missing.
        for _, uri in sorted(objects, key=lambda item: item[0] != MARKER):
            store_for(uri).delete(uri)


class PublishCheckpoints(TrainerCallback):
    """Moves every checkpoint that the Trainer writes to its local folder to the store."""

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Called on every process once the Trainer has saved."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        everyone = PartialState()
        everyone.wait_for_everyone()
        if everyone.is_main_process:
            self.store.publish(folder, state.global_step)
            shutil.rmtree(folder)
        everyone.wait_for_everyone()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
