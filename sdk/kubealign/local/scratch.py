"""Temporary files of a local run: in one folder, which goes when the run ends or, if it was killed, when the
next one begins."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kubealign.local.runs import LOCK, is_locked
from kubealign_components.store.base import TEMPORARY

_PREFIX = "kubealign-run-"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for all temporary files of this process and of those that it starts in this block."""
    for dead in dead_scratch():
        shutil.rmtree(dead, ignore_errors=True)
    before, default = os.environ.get("TMPDIR"), tempfile.tempdir
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    with (folder / LOCK).open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = default
            if before is None:
                os.environ.pop("TMPDIR", None)
            else:
                os.environ["TMPDIR"] = before
            shutil.rmtree(folder, ignore_errors=True)


def dead_scratch() -> list[Path]:
    """The folders of runs that were killed, of this user."""
    folders = Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")
    return [
        path for path in folders if _is_mine(path) and (path / LOCK).exists() and not is_locked(path / LOCK)
    ]


def unfinished(work: Path) -> list[Path]:
    """What writers that were killed left below ``work``: files half written, and empty folders.

    To be asked when no run is under way that shares it.
    """
    paths: list[Path] = []
    for folder, below, files in os.walk(work, topdown=False):
        paths += [Path(folder, name) for name in files if name.startswith(TEMPORARY)]
        kept = [name for name in files if not name.startswith(TEMPORARY)]
        if not kept and all(Path(folder, name) in paths for name in below) and Path(folder) != work:
            paths.append(Path(folder))
    return paths


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_mine(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.lstat().st_uid == os.getuid() and path.is_dir() and not path.is_symlink()
    return False
