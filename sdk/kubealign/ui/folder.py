"""The runs below a folder by name, and the pages of a run: names are looked up, and never become paths."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kubealign.local.runs import RUNS, RunInfo, is_run, read_run
from kubealign_components.errors import NotFound

_PATTERNS = (f"{RUNS}/*", "*", f"*/{RUNS}/*")
"""Where runs lie below an output folder, a folder of runs, and a folder of output folders."""
_LARGEST = 16 * 2**20
"""Bytes of a page that is shown."""


def paths_in(folder: Path) -> dict[str, Path]:
    """The folders of the runs below ``folder``, by their paths there without ``runs``.

    Links that lead elsewhere are left out.
    """
    root = folder.resolve()
    return {_name(root, path): path for path in _folders(root)}


def run_in(folder: Path, path: Path) -> RunInfo:
    """The run at ``path`` below ``folder``, without outputs that lie elsewhere."""
    return _inside(folder.resolve(), read_run(path))


def runs_in(folder: Path) -> dict[str, RunInfo]:
    """The runs below ``folder``, newest first, by name."""
    runs = {name: run_in(folder, path) for name, path in paths_in(folder).items()}
    return dict(sorted(runs.items(), key=lambda pair: pair[1].began, reverse=True))


def page_of(run: RunInfo, root: Path, *names: str) -> bytes:
    """The bytes of a page in the run's folder.

    Args:
        run: the run.
        root: the folder that is shown.
        names: of the folders below the run's that lead to it, and its own.

    Raises:
        NotFound: there is no such regular file inside ``root``.
    """
    page = run.folder.path
    for name in names:
        page = next((path for path in _entries(page) if path.name == name), page / "\0")
    if page.suffix != ".html" or not _is_file(page) or not page.resolve().is_relative_to(root.resolve()):
        raise NotFound(f"{'/'.join(names)}: no such page of {run.name}")
    with page.open("rb") as file:
        return file.read(_LARGEST)


def _folders(root: Path) -> Iterator[Path]:
    for pattern in _PATTERNS:
        for path in root.glob(pattern):
            if is_run(path) and path.resolve().is_relative_to(root):
                yield path


def _name(root: Path, path: Path) -> str:
    return "/".join(part for part in path.relative_to(root).parts if part != RUNS) or path.name


def _inside(root: Path, run: RunInfo) -> RunInfo:
    """``run`` without outputs that lie outside ``root``."""
    kept = [o for o in run.outputs if (run.folder.path / o["path"]).resolve().is_relative_to(root)]
    return replace(run, results={**run.results, "outputs": kept}) if run.results else run


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (OSError, ValueError):
        return []


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False
