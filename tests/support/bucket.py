"""A bucket in a folder of this machine, which tells what was fetched of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from kubealign_components.store import ObjectInfo
from kubealign_components.store.local import LocalStore


class Bucket(LocalStore):
    """``bucket:///path``: the local ``/path`` with a generation for each object, as a cloud store has."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.extra: list[str] = []
        self.on_fetch: Callable[[str], None] = lambda _: None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects below the folder, and the names that a stranger gave to others."""
        for entry in super().list(prefix.removeprefix("bucket://")):
            version = str(Path(entry.uri).stat().st_ctime_ns)
            yield ObjectInfo(f"bucket://{entry.uri}", entry.size, version)
        for name in self.extra:
            yield ObjectInfo(f"{prefix.rstrip('/')}/{name}", 1, "1")

    def read(self, uri: str) -> bytes:
        return super().read(uri.removeprefix("bucket://"))

    def publish(self, uri: str, data: bytes) -> bool:
        return super().publish(uri.removeprefix("bucket://"), data)

    def delete(self, uri: str) -> None:
        super().delete(uri.removeprefix("bucket://"))

    def fetch(self, uri: str, directory: Path) -> Path:
        self.fetched.append(uri.rsplit("/", 1)[-1])
        self.on_fetch(uri)
        directory.mkdir(parents=True, exist_ok=True)
        name = uri.removeprefix("bucket://")
        return Path(shutil.copyfile(name, directory / f".part-{Path(name).name}"))
