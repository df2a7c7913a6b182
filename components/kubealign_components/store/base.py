"""What every store promises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object: its URI and its size in bytes."""

    uri: str
    size: int


class Store(Protocol):
    """Objects by URI.

    A name is published at most once and never half-written: ``publish`` and ``publish_file`` make
    the whole object visible in one step, or leave nothing. A reader sees all of it or none of it.
    Every method raises :class:`~kubealign_components.errors.NotFound` for an object that is not
    there and :class:`~kubealign_components.errors.StoreError` for storage that fails, naming the URI.
    """

    def read(self, uri: str) -> bytes:
        """The whole object."""
        ...

    def publish(self, uri: str, data: bytes) -> bool:
        """Publish ``data`` under ``uri`` unless it exists; True when this call published it."""
        ...

    def publish_file(self, path: Path, uri: str) -> bool:
        """Publish the file ``path`` under ``uri`` unless it exists; True when this call did."""
        ...

    def copy(self, source: str, target: str) -> bool:
        """Publish ``source`` (of this store) under ``target`` without moving bytes through here."""
        ...

    def fetch(self, uri: str, directory: Path) -> Path:
        """A local file with the object's bytes: the object itself when local, else under ``directory``."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below the folder ``prefix``, in name order; nothing when there is none."""
        ...

    def exists(self, uri: str) -> bool:
        """Whether an object of exactly this name is published."""
        ...

    def delete(self, uri: str) -> None:
        """Remove the object; nothing happens when it is not there."""
        ...


def scheme_of(uri: str) -> str:
    """``file`` for plain paths and ``file://``, otherwise what stands before ``://``."""
    scheme, separator, _ = uri.partition("://")
    return scheme if separator else "file"


def join(prefix: str, *parts: str) -> str:
    """``prefix/part/part`` for paths and URIs alike; an absolute part or URI replaces the prefix."""
    uri = prefix
    for part in parts:
        absolute = part.startswith("/") or "://" in part
        uri = part if absolute else f"{uri.rstrip('/')}/{part}"
    return uri
