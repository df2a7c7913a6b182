"""Paths as people write them: whatever stands there is looked at without an error of Python's."""

from __future__ import annotations

import stat
from pathlib import Path

FILE, FOLDER, NOTHING = "file", "folder", ""


def named_path(text: str) -> Path:
    """The path that ``text`` names, with or without ``file://``; ``~`` is a home that there is."""
    path = Path(text.removeprefix("file://"))
    try:
        return path.expanduser()
    except RuntimeError:  # of a user whom nobody knows
        return path


def kind_at(path: Path) -> str:
    """What is at ``path``: :data:`FILE`, :data:`FOLDER`, or :data:`NOTHING` that can be looked at."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # too long, unreadable, or no path at all
        return NOTHING
    return FOLDER if stat.S_ISDIR(mode) else FILE


def nearest(path: Path) -> Path:
    """What there is at ``path``, else the nearest folder above it that there is: a new one goes in there."""
    path = path.absolute()
    return next(above for above in (path, *path.parents) if kind_at(above))
