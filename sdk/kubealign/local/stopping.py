"""What becomes of a local run that is told to stop: Ctrl-C and SIGTERM mean the same.

The first signal starts nothing new and hands SIGTERM on to the stage that runs, which commits the slice in
flight. What has not ended in :data:`STAGE_SECONDS` is killed, and after :data:`RUN_SECONDS` the process of
the run leaves, whatever it is at; a second signal does both at once. Nothing of the run outlives it, neither
its children nor what runs for it elsewhere, in containers.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from kubealign.local.watcher import Watcher

STAGE_SECONDS = 7.0
"""From the first signal to the end of a stage that does not end by itself."""
RUN_SECONDS = 9.5
"""From the first signal to the end of the run, with whatever it has written by then."""
_BETWEEN_KILLS = 0.2
_CHILD_SUBREAPER = 36
"""``PR_SET_CHILD_SUBREAPER`` of Linux's ``prctl``."""
_ANSWER = 2.0
"""Seconds for what runs elsewhere to be told."""


class Stopping:
    """The signals of a run.

    Args:
        watcher: of the run; starts no further task once a signal came.
        say: shows a line.
        elsewhere: hands a signal on to what runs for this run and is no process below this one.
    """

    def __init__(
        self,
        watcher: Watcher,
        say: Callable[[str], None],
        elsewhere: Callable[[signal.Signals], None] | None = None,
    ) -> None:
        self.signal = 0
        """The signal that came; 0 for none."""
        self._watcher, self._say, self._elsewhere = watcher, say, elsewhere
        self._over = threading.Event()

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle both signals in this block, where Python takes handlers: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        # The shell that kfp puts before a stage dies of the terminal's signal at once: what it had started
        # would be nobody's, and outlive the run.
        _adopt(orphans=True)
        try:
            yield
        finally:
            self._over.set()
            _adopt(orphans=False)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal:
            self._leave("Killed.")
        self.signal = number
        self._watcher.stop("the run was told to stop", interrupted=True)
        threading.Thread(target=self._end_in_time, name="stopping", daemon=True).start()
        self._say(
            "Stopping: what is in flight is finished and kept, nothing new is started. Once more to kill."
        )
        for child in descendants(os.getpid()):
            _send(child, signal.SIGTERM)

    def _end_in_time(self) -> None:
        """Kill what outlives its time, also what starts meanwhile, and at last this process."""
        began = time.monotonic()
        self._hand_on(signal.SIGTERM)
        if self._over.wait(STAGE_SECONDS):
            return
        while time.monotonic() < began + RUN_SECONDS:
            self._kill()
            if self._over.wait(_BETWEEN_KILLS):
                return
        self._leave(f"Killed: the run had not ended {RUN_SECONDS:g} s after it was told to stop.")

    def _leave(self, text: str) -> None:
        self._kill()
        # A terminal that takes no text must not keep the process.
        teller = threading.Thread(target=self._tell, args=(text,), daemon=True)
        teller.start()
        teller.join(_BETWEEN_KILLS)
        self._kill()  # also what has started meanwhile
        os._exit(128 + self.signal)

    def _tell(self, text: str) -> None:
        self._say(text)
        sys.stdout.flush()

    def _kill(self) -> None:
        for child in descendants(os.getpid()):
            _send(child, signal.SIGKILL)
        self._hand_on(signal.SIGKILL)

    def _hand_on(self, number: signal.Signals) -> None:
        """To what runs elsewhere; an engine that gives no answer does not keep the process."""
        if self._elsewhere is not None:
            telling = threading.Thread(target=self._elsewhere, args=(number,), daemon=True)
            telling.start()
            telling.join(_ANSWER)


def descendants(parent: int) -> list[int]:
    """All processes below ``parent``, where the system tells; children before their own."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):  # it ended meanwhile
            # The name stands in brackets and may hold anything; state and parent follow it.
            above = int(entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(above, []).append(int(entry.parent.name))
    processes: list[int] = []
    waiting = children.get(parent, [])
    while waiting:
        processes += waiting
        waiting = [below for process in waiting for below in children.get(process, [])]
    return processes


def _adopt(*, orphans: bool) -> None:
    """Whether processes below this one become its own when their parents end, where the system has that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, int(orphans), 0, 0, 0)


def _send(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)
