"""Following kfp.local: which task runs, what it prints, how it ended.

kfp.local reports through the root logger and prints the output of its tasks, one thread a task.
:class:`Watcher` listens to both: as a filter on the root logger, which sees each record together
with its thread, and as the standard output, whose lines it files under the task of their thread.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import logging
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from kubealign_components.printable import for_people
from kubealign_components.progress import BarState, ProcessBars, read_line

_COLOUR = re.compile(r"\x1b\[\d+m")
_STARTED = re.compile(r"^Executing task '(.+)'$")
_ENDED = re.compile(r"^Task '(.+)' finished with status (SUCCESS|FAILURE)$")
_FOREIGN_BAR = re.compile(r"^[^|]*\d+%\|[^|]*\|")
"""Bars of libraries, such as of loading weights: neither progress of the stage nor anything for its log."""
_CHUNK = re.compile(r'^"(index|of)": (\d+)')
_ITERATION = re.compile(r'^"outputFile": ".*-iteration-(\d+)/[^/]+/executor_output\.json"')
_REUSED = re.compile(r"(\d+ of \d+ rows were|chunk \d+ of \d+ was) finished before$")
_OURS = re.compile(r"^\s*kubealign_components\.errors\.\w+: (.*)$")
_ANY_ERROR = re.compile(r"^\s*((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)$")
# What kfp's executor says of itself, and after it the dump of a task's inputs: for the log file only.
_EXECUTOR = "[KFP Executor "


class NothingNew(Exception):
    """Keeps kfp.local, which would go through all iterations of a loop, from starting another task."""


@dataclass(kw_only=True, slots=True)
class TaskRun:
    """One execution of a task."""

    task: str
    """Name in the graph."""
    number: int
    """Which of the executions of this task, from 1: a fan-out's worker has many."""
    started: float
    log: Path
    ended: float | None = None
    ok: bool | None = None
    stopped: bool = False
    """Whether it did not end well after somebody had told the run to stop."""
    state: BarState | None = None
    """How far the stage has come, once it says so."""
    bars: ProcessBars = field(default_factory=ProcessBars)
    """What several processes of the stage say of themselves."""
    chunk: dict[str, int] = field(default_factory=dict)
    """Of a worker of a fan-out, ``index`` from 0 and ``of``: which of how many chunks."""
    iteration: int = 0
    """Which iteration of a loop it is, from 1, such as which variant; 0 outside of loops."""
    reused: bool = False
    """Whether rows of earlier runs were taken: it says nothing of how fast this machine is."""
    tail: list[str] = field(default_factory=list)
    """The last lines that its stage wrote."""
    _indent: int = 0
    """Spaces that kfp puts before the task's lines; more when two tasks run at once."""
    _dump: int | None = None
    """Depth of the dump of the task's inputs that kfp's executor is printing."""

    def of_stage(self, line: str) -> bool:
        """Whether ``line`` is the stage's own and not what kfp's executor says before it starts."""
        text = line.strip()
        if text.startswith(_EXECUTOR):
            self._indent = len(line) - len(line.lstrip())
            self._dump = 0 if text.endswith("Got executor_input:") else None
            return False
        if self._dump is None:
            return True
        if number := _CHUNK.match(text):
            self.chunk[number[1]] = int(number[2])
        elif iteration := _ITERATION.match(text):
            self.iteration = 1 + int(iteration[1])
        self._dump += text.endswith(("{", "[")) - text.startswith(("}", "]"))
        if self._dump == 0:
            self._dump = None
        return False

    def plain(self, line: str) -> str:
        """``line`` without kfp's indentation."""
        return line[self._indent :] if not line[: self._indent].strip() else line.lstrip()

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self.ended or time.monotonic()) - self.started


class Watcher(logging.Filter):
    """Turns records and prints of kfp.local into task runs; ``stream`` takes the prints.

    Args:
        folder: where each task's log file goes.
        on_event: called with a run when it starts and when it ends.
        on_line: called with a run and a line that its stage wrote.
        fail_fast: whether no further task is started once one has failed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        on_event: Callable[[TaskRun], None],
        on_line: Callable[[TaskRun, str], None],
        fail_fast: bool = True,
    ) -> None:
        super().__init__()
        self._fail_fast = fail_fast
        self._stopped = ""
        self._interrupted = False
        self.stream: io.TextIOBase = _Stream(self._printed)
        self.runs: list[TaskRun] = []
        self.problems: list[str] = []
        """Warnings and errors of kfp.local itself."""
        self._folder = folder
        self._on_event = on_event
        self._on_line = on_line
        self._current: dict[int, TaskRun] = {}
        self._partial: dict[int, str] = {}
        self._files: dict[int, TextIO] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Follow what kfp.local does in this block; its warnings about cluster-only settings are hushed."""
        root = logging.getLogger()
        before = root.level, root.handlers[:], builtins.print
        root.addFilter(self)
        # kfp.local swaps level, handlers and print, and each of its threads restores what it found: with
        # two threads that is what the other had set. A level of INFO keeps one from hushing the other.
        root.setLevel(logging.INFO)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(self.stream):
                warnings.simplefilter("ignore")
                yield
        finally:
            root.removeFilter(self)
            root.level, root.handlers[:], builtins.print = before

    def filter(self, record: logging.LogRecord) -> bool:
        """See one record of the root logger; none is passed on."""
        message = _COLOUR.sub("", record.getMessage())
        if started := _STARTED.match(message):
            if self._stopped:
                raise NothingNew(self._stopped)
            self._start(started[1])
        elif ended := _ENDED.match(message):
            self._end(ended[2] == "SUCCESS")
        elif record.levelno >= logging.WARNING:
            self.problems.append(message)
        return False

    def stop(self, why: str, *, interrupted: bool = False) -> None:
        """Let kfp.local start no further task; ``interrupted`` where somebody says so, and no task failed."""
        self._stopped, self._interrupted = why, self._interrupted or interrupted

    @property
    def running(self) -> list[TaskRun]:
        """The runs that have not ended."""
        with self._lock:
            return list(self._current.values())

    @property
    def failed(self) -> TaskRun | None:
        """The last run that failed or never ended."""
        return next((run for run in reversed(self.runs) if not run.ok), None)

    def _start(self, task: str) -> None:
        with self._lock:
            number = 1 + sum(run.task == task for run in self.runs)
            log = self._folder / f"{len(self.runs) + 1:03d}-{task}.log"
            run = TaskRun(task=task, number=number, started=time.monotonic(), log=log)
            self.runs.append(run)
            self._current[threading.get_ident()] = run
            self._files[threading.get_ident()] = log.open("w", encoding="utf-8")
        self._on_event(run)

    def _end(self, ok: bool) -> None:
        with self._lock:
            run = self._current.pop(threading.get_ident())
            self._files.pop(threading.get_ident()).close()
        run.ended, run.ok, run.stopped = time.monotonic(), ok, not ok and self._interrupted
        if not ok and self._fail_fast:
            self.stop(f"{run.task} failed")
        self._on_event(run)

    def _printed(self, text: str) -> None:
        thread = threading.get_ident()
        *lines, rest = re.split(r"[\r\n]", self._partial.pop(thread, "") + text)
        if rest:
            self._partial[thread] = rest
        for line in lines:
            self._line(thread, line.rstrip())

    def _line(self, thread: int, line: str) -> None:
        run = self._current.get(thread)
        if run is None or not line.strip():
            return
        if state := read_line(line):
            run.state = run.bars.joined(state)
            return
        if _FOREIGN_BAR.match(line):
            return
        line = for_people(line)
        run.reused = run.reused or bool(_REUSED.search(line))
        self._files[thread].write(line + "\n")
        self._files[thread].flush()
        if run.of_stage(line):
            run.tail = [*run.tail[-199:], run.plain(line)]
            self._on_line(run, run.plain(line))


class _Stream(io.TextIOBase):
    """A text file whose writes go to a function."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._write(text)
        return len(text)


def own_lines(log: str) -> Iterator[str]:
    """The lines of a task's log that its stage wrote."""
    run = TaskRun(task="", number=1, started=0.0, log=Path())
    for line in log.splitlines():
        if run.of_stage(line):
            yield run.plain(line)


def reason_of(run: TaskRun) -> str:
    """Why a run failed: its own error's message, else the last line that looks like an error."""
    for pattern in (_OURS, _ANY_ERROR):
        for line in reversed(run.tail):
            if match := pattern.match(line):
                return match[1]
        if run.stopped:
            return "the run was told to stop before it had ended"
    return run.tail[-1].strip() if run.tail else "it ended without a word: killed, perhaps for lack of memory"
