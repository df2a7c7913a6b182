"""What every store promises, and the little that stores share."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from kubealign_components.config import require
from kubealign_components.errors import StoreError

TEMPORARY = ".kubealign-"
"""What a file's name starts with while it is being written, or when its writer was killed."""

WRITER = "kubealign-writer"
"""Metadata key of an object: which call published it."""

KUBEFLOW = "http://seaweedfs.kubeflow:9000"
"""The store of Kubeflow Pipelines itself, where its launcher looks for ``minio://`` without settings."""

DEADLINE = "KUBEALIGN_STORE_DEADLINE"
"""Environment variable: seconds over which a failing request is tried again, 120 if it is not set."""

PARALLEL = 64 * 2**20
"""Bytes above which an object is transferred in parts, several at a time."""

PART = 32 * 2**20
"""Bytes of a part, at least."""

PART_WORKERS = 8
"""Parts of one object under way at once; a connection to a cloud store carries 50 to 100 MB/s."""

Span = tuple[int, int]
"""First byte and end byte."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object: its URI and its size in bytes."""

    uri: str
    size: int
    version: str = ""
    """Changes whenever the object is written: its generation (gs://) or ETag (s3://); empty where the store
    has no such thing."""
    written: float = field(default=0.0, compare=False)
    """When it was written, seconds since 1970; 0 where a store does not say so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftover:
    """What is no object: half of one, of a writer that was killed or has not ended yet."""

    uri: str
    """Of the object that it was to become, or of what is there of it."""
    size: int
    """Bytes that it takes."""
    since: float
    """When it was last written or, where a store does not say so, begun; seconds since 1970."""
    upload: str = ""
    """What a store calls an upload that was begun; empty where the half is a file or object of its own."""


class Store(Protocol):
    """Objects by URI.

    A name is published at most once and never half-written: ``publish`` and ``publish_file`` make
    the whole object visible in one step, or leave nothing. A reader sees all of it or none of it.
    A bucket that is missing, unlike an object that is missing, is a failure of the storage.
    What a write sends is checked by the server and what a read gets is checked here, by checksums. A
    request that fails for a reason that passes is tried again until :data:`DEADLINE`.
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
        """Publish the file ``path`` under ``uri`` unless it exists; True when this call did.

        The file may be removed afterwards, but not changed: on one file system it gets a second name.
        """
        ...

    def copy(self, source: str, target: str) -> bool:
        """Publish ``source`` (of this store) under ``target`` without moving bytes through here.

        False when ``target`` exists. Where a server cannot copy on condition, two copies that race
        may both report True: targets of copies carry content hashes, so they write the same bytes.
        """
        ...

    def fetch(self, uri: str, directory: Path) -> Path:
        """A local file with the object's bytes: the object itself when local, else under ``directory``."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below the folder ``prefix``, in order of the bytes of the names.

        Lazy: a page at a time. ``a/b`` lists ``a/b/c`` but neither ``a/b`` nor ``a/bc``; a folder
        that does not exist lists nothing. What writers that were killed left under :data:`TEMPORARY` names
        is skipped.
        """
        ...

    def info(self, uri: str) -> ObjectInfo:
        """What a listing says of the object of exactly this name."""
        ...

    def exists(self, uri: str) -> bool:
        """Whether an object of exactly this name is published."""
        ...

    def delete(self, uri: str) -> None:
        """Remove the object; nothing happens when it is not there."""
        ...

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        """What is half written below the folder ``prefix``, also by writers that live: tell by its age."""
        ...

    def discard(self, leftover: Leftover) -> None:
        """Remove what :meth:`leftovers` gave; nothing happens when it is gone."""
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


def name_below(uri: str, prefix: str) -> str:
    """The name of the object ``uri`` relative to the folder ``prefix`` that it was listed under."""
    plain, folder = uri.removeprefix("file://"), prefix.removeprefix("file://").rstrip("/")
    return plain.removeprefix(f"{folder}/")


def inside(folder: Path, name: str) -> Path:
    """``folder / name``, which lies in ``folder`` whoever chose the name.

    Every name that comes from outside (of a stored object, out of a manifest) goes through here before it
    becomes a path of this machine.

    Raises:
        StoreError: a name that is absolute, climbs with ``..``, or is no name.
    """
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise StoreError(
            f"the object name {name!r} is refused: as a file below {folder} it could lie outside of it; "
            "expected names without '..', and no empty part between slashes"
        )
    return folder / name


def beside(uri: str, name: str) -> str:
    """The place called ``name`` in the folder that holds ``uri``."""
    folder, slash, _ = uri.rstrip("/").rpartition("/")
    return f"{folder}{slash}{name}"


def last_part(uri: str) -> str:
    """What ``uri`` is called in the folder that holds it."""
    return uri.rstrip("/").rpartition("/")[2]


def split(uri: str) -> tuple[str, str]:
    """``(bucket, object name)`` of ``scheme://bucket/name``.

    Raises:
        StoreError: one of the two is empty.
    """
    bucket, _, name = uri.partition("://")[2].partition("/")
    if not bucket or not name:
        raise StoreError(f"{uri!r} names no object: expected {scheme_of(uri)}://bucket/name")
    return bucket, name


def split_folder(uri: str) -> tuple[str, str]:
    """``(bucket, "name/")`` of a folder, ``(bucket, "")`` of a whole bucket."""
    bucket, _, name = uri.partition("://")[2].partition("/")
    if not bucket:
        raise StoreError(f"{uri!r} names no bucket: expected {scheme_of(uri)}://bucket/folder")
    name = name.rstrip("/")
    return bucket, f"{name}/" if name else ""


def land(uri: str, directory: Path, write: Callable[[Path], None]) -> Path:
    """The file under ``directory`` that ``write`` fills with the bytes of ``uri``, whole or not at all.

    Its name starts with a hash of the URI: objects of one name from two folders do not collide.
    """
    directory.mkdir(parents=True, exist_ok=True)
    name = last_part(uri).encode()[-120:].decode(errors="ignore")
    target = directory / f"{hashlib.sha256(uri.encode()).hexdigest()[:16]}-{name}"
    descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=directory)
    os.close(descriptor)
    try:
        write(Path(temporary))
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def deadline() -> float:
    """Seconds over which a failing request is tried again.

    Raises:
        ConfigError: the environment says something else than a positive number.
    """
    text = os.environ.get(DEADLINE) or "120"
    seconds = float(text) if text.replace(".", "", 1).isdigit() else 0.0
    require(seconds > 0, DEADLINE, text, "a positive number of seconds")
    return seconds


def spans(size: int, part: int) -> list[Span]:
    """``size`` bytes cut into parts."""
    return [(start, min(start + part, size)) for start in range(0, size, part)]


def fetch_parts(path: Path, size: int, part: int, read: Callable[[Span, IO[bytes]], None]) -> None:
    """Fill ``path`` with ``size`` bytes; ``read`` writes those of a span to the file that it is given."""

    def fill(span: Span) -> None:
        with path.open("rb+") as file:
            file.seek(span[0])
            read(span, file)

    os.truncate(path, size)
    with ThreadPoolExecutor(PART_WORKERS, "fetch-part") as pool:
        list(pool.map(fill, spans(size, part)))


class Window(io.RawIOBase):
    """The bytes of a span of a file, as a file of its own."""

    def __init__(self, path: Path, span: Span) -> None:
        self._file = path.open("rb", buffering=0)
        self._start, self._stop = span
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._stop - self._start}[whence]
        self._file.seek(self._start + base + offset)
        return self.tell()

    def tell(self) -> int:
        return self._file.tell() - self._start

    def read(self, size: int | None = -1) -> bytes:
        left = self._stop - self._file.tell()
        return self._file.read(left if size is None or size < 0 else min(size, left)) or b""

    def close(self) -> None:
        self._file.close()
        super().close()
