"""Files on a local or mounted file system."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import copyfile

from kubealign_components.errors import NotFound, StoreError
from kubealign_components.store.base import TEMPORARY, Leftover, ObjectInfo

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_UMASK = os.umask(0o077)
os.umask(_UMASK)  # there is no way to ask without setting it; before there are threads
READABLE = 0o444 & ~_UMASK
"""Mode of what is published: nobody may write to it, since one file may have many names."""


class LocalStore:
    """Objects are files; a name is published with ``link``, which fails when it is taken."""

    def read(self, uri: str) -> bytes:
        path = _path(uri)
        with _errors("read", path):
            return path.read_bytes()

    def publish(self, uri: str, data: bytes) -> bool:
        def write(temporary: Path) -> None:
            temporary.write_bytes(data)

        return _publish(_path(uri), write)

    def publish_file(self, path: Path, uri: str) -> bool:
        def write(temporary: Path) -> None:
            copyfile(path, temporary)

        target = _path(uri)
        if not path.is_file():
            raise StoreError(f"cannot publish {path} as {uri}: there is no such file")
        linked = _linked(path, target) if _may_be_linked(path) else None
        return _publish(target, write) if linked is None else linked

    def copy(self, source: str, target: str) -> bool:
        # link() would link a symbolic link itself, not the file behind it.
        return self.publish_file(_path(self.fetch(source, Path())).resolve(), target)

    def fetch(self, uri: str, directory: Path) -> Path:  # noqa: ARG002
        path = _path(uri)
        with _errors("read", path):
            if not path.is_file():
                raise NotFound(f"no file at {path}")
        return path

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return _walk(_path(prefix))

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        for folder, _, names in os.walk(_path(prefix)):
            for path in (Path(folder, name) for name in sorted(names) if name.startswith(TEMPORARY)):
                with suppress(FileNotFoundError):  # its writer has ended meanwhile
                    status = path.lstat()
                    yield Leftover(uri=str(path), size=status.st_size, since=status.st_mtime)

    def discard(self, leftover: Leftover) -> None:
        self.delete(leftover.uri)

    def info(self, uri: str) -> ObjectInfo:
        path = _path(uri)
        status = _file_status(path, "read")
        if status is None:
            raise NotFound(f"no file at {path}")
        return ObjectInfo(str(path), status.st_size, written=status.st_mtime)

    def exists(self, uri: str) -> bool:
        path = _path(uri)
        with _errors("read", path):
            return path.is_file()

    def delete(self, uri: str) -> None:
        path = _path(uri)
        with _errors("delete", path):
            if path.is_file() or path.is_symlink():
                path.unlink(missing_ok=True)


def _path(uri: str | Path) -> Path:
    return Path(str(uri).removeprefix("file://"))


def _publish(target: Path, write: Callable[[Path], None]) -> bool:
    """Give the bytes that ``write`` puts into a temporary file the name ``target``, if it is free."""
    with _errors("write", target), _temporary(target) as temporary:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(READABLE)
        return _link(temporary, target)


def _may_be_linked(path: Path) -> bool:
    """Whether ``path`` may have a second name as it is: no symbolic link, and readable as what is published
    is. It is made read-only, or a write to one name would change what stands under the others."""
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode) or mode & READABLE != READABLE:
        return False
    try:
        path.chmod(READABLE)
    except PermissionError:  # another user's
        return mode & 0o222 == 0
    return True


def _linked(origin: Path, target: Path) -> bool | None:
    """Give ``origin`` the name ``target`` as well if it is free; None where only a copy can have it."""
    with _errors("write", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with origin.open("rb") as file:
            os.fsync(file.fileno())
        try:
            return _link(origin, target)
        except OSError as error:
            if error.errno != errno.EXDEV and error.errno not in _NO_HARD_LINKS:
                raise
            return None


def _link(origin: Path, target: Path) -> bool:
    try:
        os.link(origin, target)
    except FileExistsError:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder of that name stands there") from None
        return False
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the name itself must survive a power cut
    finally:
        os.close(descriptor)
    return True


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A temporary name beside ``target`` that is gone when the block ends, however it ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=TEMPORARY, dir=target.parent)
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _walk(folder: Path) -> Iterator[ObjectInfo]:
    """Files below ``folder``; a folder sorts as its name and a slash, which gives the order of whole names.

    Folders behind symbolic links are not entered: they may lead in a circle.
    """
    try:
        with _errors("list", folder), os.scandir(folder) as entries:
            listed = [
                (os.fsencode(e.name) + (b"/" if folded else b""), e.name, folded)
                for e in entries
                for folded in [e.is_dir(follow_symlinks=False)]
                if not e.name.startswith(TEMPORARY)
            ]
    except NotFound:
        return
    for _, name, folded in sorted(listed):
        path = folder / name
        if folded:
            yield from _walk(path)
        elif (status := _file_status(path)) is not None:
            yield ObjectInfo(str(path), status.st_size, written=status.st_mtime)


def _file_status(path: Path, action: str = "list") -> os.stat_result | None:
    """What the system says of the file, or None when it is none or was removed since the walk."""
    try:
        with _errors(action, path):
            status = path.stat()
    except NotFound:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


@contextmanager
def _errors(action: str, path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one error that names the path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        absent = isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError))
        if action != "write" and absent:
            raise NotFound(f"no file at {path}") from error
        if action != "write":
            raise StoreError(f"cannot {action} {path}: {reason}") from error
        if error.errno in _NO_HARD_LINKS:
            reason += "; if this file system has no hard links, choose a place on one that has"
        advice = "; free space there or choose another place" if error.errno in _FULL else ""
        raise StoreError(f"cannot write {path}: {reason}; nothing was published{advice}") from error
