"""What a person sees: progress while a run goes on, tables when it is done."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kubealign.local.results import Results, StageRow
from kubealign.local.watcher import TaskRun, Watcher
from kubealign_pipelines.checking.describe import Setting
from kubealign_pipelines.graph import Graph, Parameter

PIPE_WIDTH = 120
"""Columns of a table that goes to a file."""
PROGRESS_SECONDS = "KUBEALIGN_PROGRESS_SECONDS"
"""Tells the stages' progress bars how often to write when nobody sees them directly."""


def standard_console(*, stderr: bool = False) -> Console:
    """A console on today's standard output, which stays the same while prints are redirected."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else int(os.environ.get("COLUMNS") or PIPE_WIDTH)
    return Console(file=stream, highlight=False, width=width)


@dataclass(kw_only=True, slots=True)
class Progress:
    """Writes a line when a task starts and ends, and on a terminal a last line with what runs now."""

    console: Console
    verbose: bool = False
    """Also write what the stages write."""
    _graph: Graph | None = None
    _started: float = field(default_factory=time.monotonic)

    @classmethod
    def silent(cls) -> Progress:
        """One that writes nothing."""
        return cls(console=Console(file=io.StringIO()))

    def event(self, run: TaskRun) -> None:
        """A task started or ended."""
        if run.ok is None:
            self._write("started", "dim", run, "")
        elif run.ok:
            self._write("done", "green", run, duration(run.seconds))
        else:
            self._write("FAILED", "red", run, duration(run.seconds))

    def say(self, text: str) -> None:
        """Something about the run as a whole."""
        self.console.print(text, soft_wrap=True, markup=False)

    def line(self, run: TaskRun, text: str) -> None:
        """A stage wrote ``text``."""
        if self.verbose:
            self.console.print(f"       [dim]{escape(self._title(run))} │[/] {escape(text)}", soft_wrap=True)

    @contextlib.contextmanager
    def showing(self, graph: Graph, watcher: Watcher) -> Iterator[None]:
        """Show ``watcher``'s runs until the block ends."""
        self._graph, self._started = graph, time.monotonic()
        with _environment(PROGRESS_SECONDS, "2"):
            if not self.console.is_terminal:
                yield
                return
            with self.console.status("") as status, _ticking(lambda: status.update(self._now(watcher))):
                yield

    def _now(self, watcher: Watcher) -> Text:
        running = [f"{self._title(run)} {run.progress or duration(run.seconds)}" for run in watcher.running]
        # One line, whatever runs: a line that wraps could not be taken back.
        return Text(" · ".join(running)[: self.console.width - 4], no_wrap=True)

    def _title(self, run: TaskRun) -> str:
        task = self._graph.tasks[run.task] if self._graph else None
        title = task.title if task else run.task
        return f"{title} {run.number}" if task and run.number > 1 else title

    def _write(self, word: str, style: str, run: TaskRun, detail: str) -> None:
        elapsed = _clock(time.monotonic() - self._started)
        self.console.print(
            f"[dim]{elapsed}[/]  [{style}]{word:<8}[/]{escape(self._title(run)):<28} {detail}".rstrip(),
            soft_wrap=True,
        )


def stage_table(results: Results) -> Table:
    """Rows in, out and dropped by stage."""
    table = Table(title=f"{results.pipeline}, {duration(results.seconds)}", title_justify="left")
    table.add_column("stage")
    for name in ("in", "out", "reused", "time"):
        table.add_column(name, justify="right")
    table.add_column("dropped")
    for row in results.stages:
        reused = "" if row.reused is None else str(row.reused)
        table.add_row(
            row.title, str(row.rows_in), str(row.rows_out), reused, duration(row.seconds), drop_text(row)
        )
    return table


def drop_text(row: StageRow) -> str:
    """What a stage dropped, and why, on one line."""
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in row.dropped.items())


def number_table(title: str, numbers: Mapping[str, float]) -> Table:
    """Names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column("name")
    table.add_column("value", justify="right")
    for name, value in numbers.items():
        table.add_row(name.replace("_", " "), format_number(value))
    return table


def parameter_table(parameters: Sequence[Parameter]) -> Table:
    """Names, defaults and meanings."""
    table = Table()
    table.add_column("parameter")
    table.add_column("default", overflow="fold", max_width=24)
    table.add_column("meaning", overflow="fold")
    for parameter in parameters:
        default = "[bold]required[/]" if parameter.required else escape(json.dumps(parameter.default))
        table.add_row(parameter.name, default, escape(parameter.description))
    return table


def setting_table(settings: Sequence[Setting]) -> Table:
    """Every setting as a run file has it: type, default, allowed values, meaning."""
    table = Table()
    table.add_column("setting", no_wrap=True)
    table.add_column("type")
    table.add_column("default", overflow="fold", max_width=24)
    table.add_column("meaning and allowed values", overflow="fold")
    for setting in settings:
        required = setting.default is dataclasses.MISSING
        default = "[bold]required[/]" if required else escape(json.dumps(setting.default, default=str))
        allowed = f" One of {', '.join(setting.choices)}." if setting.choices else ""
        table.add_row(escape(setting.name), setting.type, default, escape(setting.meaning + allowed))
    return table


def format_number(value: Any) -> str:
    """Four significant digits; whole numbers whole."""
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)


def reuse_text(results: Results) -> str:
    """How many chunks and rows were taken from earlier runs, or nothing when none were."""
    parts = [
        f"{row.title} {row.counts['chunks_reused']} of {row.counts['chunks']} chunks ({row.reused} of "
        f"{row.rows_out} rows)"
        for row in results.stages
        if row.reused
    ]
    return f"Reused from earlier runs: {'; '.join(parts)}." if parts else ""


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:3d}:{rest:02d}"


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = before or value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


@contextlib.contextmanager
def _ticking(action: Any) -> Iterator[None]:
    """Call ``action`` twice a second from a thread of its own until the block ends."""
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.5):
            action()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
