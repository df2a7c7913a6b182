"""How far a run has come, in a file of its folder, for whoever looks at it from another process."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

from kubealign.cli.progress import every, state_text, title_of
from kubealign.local.forecast import Forecast
from kubealign.local.watcher import TaskRun, Watcher
from kubealign_components.whole_file import write_whole
from kubealign_pipelines.graph import Graph

SECONDS = 2.0
"""Between two states."""


class TaskState(TypedDict):
    """One execution of a task."""

    title: str
    state: str
    """``running``, ``done`` or ``failed``."""
    seconds: float
    detail: str
    """Such as how many of how many prompts, at what rate."""
    log: str
    """Name of its log file."""


class RunState(TypedDict):
    """A run under way."""

    tasks: list[TaskState]
    left: float
    """Seconds, by the forecast."""


@contextlib.contextmanager
def state_written(path: Path, graph: Graph, watcher: Watcher, forecast: Forecast) -> Iterator[None]:
    """Write the state of ``watcher``'s runs to ``path`` until the block ends, and once more then."""
    lock = threading.Lock()

    def tell() -> None:
        with lock, contextlib.suppress(OSError):  # a full disk is no reason for the run to fail here
            write_whole(path, json.dumps(_state(graph, watcher, forecast), ensure_ascii=False))

    tell()
    try:
        with every(SECONDS, tell):
            yield
    finally:
        tell()


def read_state(path: Path) -> RunState:
    """What :func:`state_written` wrote last; nothing where there is no such file, or not a whole one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"tasks": [_read(one) for one in content["tasks"]], "left": float(content["left"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"tasks": [], "left": 0.0}


def _state(graph: Graph, watcher: Watcher, forecast: Forecast) -> RunState:
    runs = list(watcher.runs)
    return {"tasks": [_task(graph, run) for run in runs], "left": forecast.left(runs)}


def _read(one: Mapping[str, object]) -> TaskState:
    return {
        "title": str(one["title"]),
        "state": str(one["state"]),
        "seconds": float(str(one["seconds"])),
        "detail": str(one["detail"]),
        "log": str(one["log"]),
    }


def _task(graph: Graph, run: TaskRun) -> TaskState:
    return {
        "title": title_of(run, graph),
        "state": "running" if run.ok is None else "done" if run.ok else "failed",
        "seconds": round(run.seconds, 1),
        "detail": state_text(run) if run.state else "",
        "log": run.log.name,
    }
