"""Files on a local or mounted file system."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import copyfile

from kubealign_components.errors import NotFound, StoreError
from kubealign_components.store.base import ObjectInfo

# A reader lists only finished names; what starts with this is an unfinished or abandoned write.
TEMPORARY = ".kubealign-"


class LocalStore:
    """Objects are files; a name is published with ``link``, which fails when it is taken."""

    def read(self, uri: str) -> bytes:
        path = _path(uri)
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"no file at {path}") from error
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error

    def publish(self, uri: str, data: bytes) -> bool:
        target = _path(uri)
        with _write_errors(target), _temporary(target) as temporary:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return _link(temporary, target)

    def publish_file(self, path: Path, uri: str) -> bool:
        target = _path(uri)
        with _write_errors(target), _temporary(target) as temporary:
            copyfile(path, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            return _link(temporary, target)

    def copy(self, source: str, target: str) -> bool:
        origin, goal = _path(source), _path(target)
        if not origin.is_file():
            raise NotFound(f"no file at {origin}")
        with _write_errors(goal):
            goal.parent.mkdir(parents=True, exist_ok=True)
            try:
                return _link(origin, goal)
            except OSError:  # another file system, or one without hard links
                return self.publish_file(origin, target)

    def fetch(self, uri: str, directory: Path) -> Path:  # noqa: ARG002
        path = _path(uri)
        if not path.is_file():
            raise NotFound(f"no file at {path}")
        return path

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        root = _path(prefix)
        for path in sorted(p for p in root.rglob("*") if not p.name.startswith(TEMPORARY)):
            with suppress(FileNotFoundError):  # removed by another process since the walk
                if path.is_file():
                    yield ObjectInfo(str(path), path.stat().st_size)

    def exists(self, uri: str) -> bool:
        return _path(uri).is_file()

    def delete(self, uri: str) -> None:
        _path(uri).unlink(missing_ok=True)


def _path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def _link(temporary: Path, target: Path) -> bool:
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the name itself must survive a power cut
    finally:
        os.close(descriptor)
    return True


class _temporary:  # noqa: N801
    """A temporary name beside ``target`` that is gone when the block ends, however it ends."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=TEMPORARY, dir=self.target.parent)
        os.close(descriptor)
        self.path = Path(name)
        self.path.chmod(0o644)
        return self.path

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)


class _write_errors:  # noqa: N801
    """Turn the operating system's refusals into one error that names the target."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError):
            raise StoreError(
                f"cannot write {self.target}: {error.strerror}; nothing was published"
            ) from error
