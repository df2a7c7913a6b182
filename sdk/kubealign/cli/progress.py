"""What a person sees while a local run goes on: what will run, what runs, how fast, and when it will end."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from kubealign.cli.console import duration
from kubealign.local.forecast import Forecast
from kubealign.local.watcher import TaskRun, Watcher
from kubealign_components.progress import SECONDS
from kubealign_pipelines.graph import Graph

PIPE_SECONDS = 30.0
"""Between two lines on the same task where no terminal shows the last state."""


@dataclass(kw_only=True, slots=True)
class Progress:
    """Writes a line when a task starts and ends; in between, a terminal has a last line with what runs now,
    and a pipe a line of the same from time to time."""

    console: Console
    verbose: bool = False
    """Also write what the stages write."""
    _graph: Graph | None = None
    _forecast: Forecast = field(default_factory=lambda: Forecast({}))
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
        elif run.stopped:
            self._write("stopped", "yellow", run, duration(run.seconds))
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
    def showing(self, graph: Graph, watcher: Watcher, forecast: Forecast) -> Iterator[None]:
        """Show ``watcher``'s runs until the block ends."""
        self._graph, self._forecast, self._started = graph, forecast, time.monotonic()
        given = os.environ.get(SECONDS)
        with _environment(SECONDS, given or "2"):
            if self.console.is_terminal:
                with (
                    self.console.status("") as status,
                    every(0.5, lambda: status.update(self._now(watcher))),
                ):
                    yield
            else:
                with every(float(given or PIPE_SECONDS), lambda: self._tell(watcher)):
                    yield

    def _now(self, watcher: Watcher) -> Text:
        running = [f"{self._title(run)} {state_text(run)}" for run in watcher.running]
        # One line, whatever runs: a line that wraps could not be taken back.
        line = " · ".join([*running, self._left(watcher)])
        return Text(line[: self.console.width - 4], no_wrap=True)

    def _tell(self, watcher: Watcher) -> None:
        for run in watcher.running:
            self._write("runs", "dim", run, f"{state_text(run)}; {self._left(watcher)}")

    def _left(self, watcher: Watcher) -> str:
        return f"run: about {rough(self._forecast.left(list(watcher.runs)))} left"

    def _title(self, run: TaskRun) -> str:
        return title_of(run, self._graph)

    def _write(self, word: str, style: str, run: TaskRun, detail: str) -> None:
        elapsed, title = _clock(time.monotonic() - self._started), escape(self._title(run))
        line = f"[dim]{elapsed}[/]  [{style}]{word:<8}[/]{title:<28} {escape(detail)}"
        self.console.print(line.rstrip(), soft_wrap=True)


def title_of(run: TaskRun, graph: Graph | None) -> str:
    """The task as the UI shows it, with its chunk or how manieth execution it is."""
    task = graph.tasks[run.task] if graph else None
    title = task.title if task else run.task
    if task and task.each:
        return f"{title} {run.iteration or run.number}"
    if not task or "chunk" not in task.arguments:
        return f"{title} {run.number}" if run.number > 1 else title
    of = f" of {run.chunk['of']}" if "of" in run.chunk else ""
    return f"{title}, chunk {run.chunk.get('index', run.number - 1) + 1}{of}"


def state_text(run: TaskRun) -> str:
    """How far an execution has come, at what rate, and when it will end."""
    if run.state is None:
        return duration(run.seconds)
    state = run.state
    parts = [f"{state.done}/{state.total} {state.unit}"]
    if state.rate is not None:
        parts.append(f"{state.rate:.3g} {state.unit}/s")
    if state.left is not None and state.done < state.total:
        parts.append(f"{rough(state.left)} left")
    return ", ".join([*parts, *([state.notes] if state.notes else [])])


def rough(seconds: float) -> str:
    """A time that nobody knows to the second."""
    return duration(seconds) if seconds >= 60 else f"{round(seconds)} s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:3d}:{rest:02d}"


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Call ``action`` from a thread of its own until the block ends."""
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(seconds):
            action()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
