"""A run under way on one page: how far each task has come, the losses so far, the last lines of its log."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from kubealign.cli.console import duration
from kubealign.cli.progress import rough
from kubealign.local.live import TaskState, read_state
from kubealign.local.runs import FAILED, RUNNING, RunInfo, log_files, task_of
from kubealign.local.watcher import own_lines
from kubealign_components.reports.charts import curves
from kubealign_components.reports.html import render

LINES = 20
"""Last lines of the log that are shown."""
_TAIL = 2**20
"""Bytes of the end of a log that are read."""
_STEP = re.compile(r"^(?P<program>[\w ]+): step (?P<step>\d+), (?P<numbers>.+)$")
_NUMBER = re.compile(r"([a-z][a-z ]*) (-?[\d.]+(?:e[+-]?\d+)?)(?:, |$)")


def live_page(name: str, run: RunInfo) -> str:
    """The run as it stands; where it is still running, the page renews itself."""
    state = read_state(run.folder.progress)
    logs = log_files(run) if run.folder.logs.is_dir() else []
    last = logs[-1] if logs else None
    lines = list(own_lines(_end_of(last))) if last else []
    return render(
        "kubealign/ui/live.html",
        name=name,
        state=run.state,
        running=run.state == RUNNING,
        failure=str(run.results.get("failed", "")) if run.state == FAILED else "",
        left=rough(state["left"]) if run.state == RUNNING else "",
        tasks=[_row(task) for task in state["tasks"]],
        charts=[
            chart
            for log in logs
            if task_of(log).startswith("train")
            for chart in step_charts(list(own_lines(_end_of(log))))
        ],
        log=last.name if last else "",
        lines="\n".join(lines[-LINES:]),
    )


def step_charts(lines: Sequence[str]) -> Iterator[Markup]:
    """A curve of every number that a training stage has told by step."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for line in lines:
        if match := _STEP.match(line.strip()):
            for name, value in _NUMBER.findall(match["numbers"]):
                points.setdefault((match["program"], name), []).append((float(match["step"]), float(value)))
    for (program, name), steps in points.items():
        yield curves(f"{program}: {name}", {name: steps}, y=name)


def _row(task: TaskState) -> list[str]:
    return [task["title"], task["state"], duration(task["seconds"]), task["detail"]]


def _end_of(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        return file.read().decode(errors="replace")
