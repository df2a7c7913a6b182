"""What becomes of a local run that is told to stop: Ctrl-C and SIGTERM mean the same.

The first signal starts nothing new and hands SIGTERM on to the stage that runs, which commits the slice in
flight; the second one, or too long a wait, kills. No child outlives the run.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from kubealign.local.watcher import Watcher

WAIT_SECONDS = 9.0
"""From the first signal to the end of what does not end by itself."""


class Stopping:
    """The signals of a run.

    Args:
        watcher: of the run; starts no further task once a signal came.
        say: shows a line.
    """

    def __init__(self, watcher: Watcher, say: Callable[[str], None]) -> None:
        self.signal = 0
        """The signal that came; 0 for none."""
        self._watcher, self._say = watcher, say
        self._timer = threading.Timer(WAIT_SECONDS, self._kill)
        self._timer.daemon = True

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle both signals in this block, where Python takes handlers: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            self._timer.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal:
            self._kill()
            self._say("Killed.")
            sys.stdout.flush()
            os._exit(128 + number)
        self.signal = number
        self._watcher.stop("the run was told to stop")
        self._say(
            "Stopping: what is in flight is finished and kept, nothing new is started. Once more to kill."
        )
        for child in descendants(os.getpid()):
            _send(child, signal.SIGTERM)
        self._timer.start()

    def _kill(self) -> None:
        for child in descendants(os.getpid()):
            _send(child, signal.SIGKILL)


def descendants(parent: int) -> list[int]:
    """All processes below ``parent``, where the system tells; children before their own."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):  # it ended meanwhile
            # The name stands in brackets and may hold anything; state and parent follow it.
            above = int(entry.read_text().rpartition(")")[2].split()[1])
            children.setdefault(above, []).append(int(entry.parent.name))
    processes: list[int] = []
    waiting = children.get(parent, [])
    while waiting:
        processes += waiting
        waiting = [below for process in waiting for below in children.get(process, [])]
    return processes


def _send(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)
