"""A local store that fails where it is told to, for tests of what survives."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from kubealign_components.errors import StoreError
from kubealign_components.store.base import TEMPORARY, Leftover, ObjectInfo
from kubealign_components.store.local import LocalStore

SCHEME = "faulty"
MOMENTS = ("before", "amid", "after")
"""Before anything is written, with half of it under a temporary name, and when it is published."""


def kill(_: str) -> None:
    """End this process as the kernel or a lost node does."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(uri: str) -> None:
    """Raise what a store raises when it cannot be reached."""
    raise StoreError(f"cannot write {uri}: a fault that was asked for")


class FaultyStore:
    """``faulty:///path`` is the local ``/path``; register one with ``store.register``.

    Args:
        faults: the moment at which a write fails, by the number of the write, from 0.
        fail: :func:`kill` or :func:`refuse`.
    """

    def __init__(self, faults: Mapping[int, str], fail: Callable[[str], None] = refuse) -> None:
        self.writes = 0
        self._faults, self._fail = faults, fail
        self._inner = LocalStore()
        self._lock = threading.Lock()

    def read(self, uri: str) -> bytes:
        return self._inner.read(_path(uri))

    def publish(self, uri: str, data: bytes) -> bool:
        return self._write(uri, lambda: data, lambda: self._inner.publish(_path(uri), data))

    def publish_file(self, path: Path, uri: str) -> bool:
        return self._write(uri, path.read_bytes, lambda: self._inner.publish_file(path, _path(uri)))

    def copy(self, source: str, target: str) -> bool:
        return self._write(
            target, lambda: self.read(source), lambda: self._inner.copy(_path(source), _path(target))
        )

    def fetch(self, uri: str, directory: Path) -> Path:
        return self._inner.fetch(_path(uri), directory)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for entry in self._inner.list(_path(prefix)):
            yield replace(entry, uri=f"{SCHEME}://{entry.uri}")

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        for entry in self._inner.leftovers(_path(prefix)):
            yield replace(entry, uri=f"{SCHEME}://{entry.uri}")

    def discard(self, leftover: Leftover) -> None:
        self._inner.delete(_path(leftover.uri))

    def info(self, uri: str) -> ObjectInfo:
        return replace(self._inner.info(_path(uri)), uri=uri)

    def exists(self, uri: str) -> bool:
        return self._inner.exists(_path(uri))

    def delete(self, uri: str) -> None:
        self._inner.delete(_path(uri))

    def _write(self, uri: str, data: Callable[[], bytes], write: Callable[[], bool]) -> bool:
        with self._lock:
            moment = self._faults.get(self.writes)
            self.writes += 1
        if moment == "before":
            self._fail(uri)
        if moment == "amid":
            target, half = Path(_path(uri)), data()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.with_name(f"{TEMPORARY}{target.name}").write_bytes(half[: len(half) // 2])
            self._fail(uri)
        published = write()
        if moment == "after":
            self._fail(uri)
        return published


def _path(uri: str) -> str:
    return uri.removeprefix(f"{SCHEME}://")
