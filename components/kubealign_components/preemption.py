"""SIGTERM, which a pod gets when its node is taken away, and Ctrl-C: stop in time, where little is lost, and
say so."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

log = logging.getLogger(__name__)

GRACE_SECONDS = 15.0
"""Longest time from SIGTERM to the end; Kubernetes kills after 30 s."""
GRACE_VARIABLE = "KUBEALIGN_GRACE_SECONDS"
"""Environment variable with a longer time, where the pod has one."""

EXIT_CODE = 128 + signal.SIGTERM
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def grace_seconds(default: float = GRACE_SECONDS) -> float:
    """Seconds from SIGTERM to the end, as the environment has them."""
    return float(os.environ.get(GRACE_VARIABLE) or default)


class Preempted(SystemExit):
    """The process was told to stop. No Exception: nothing that mends errors may swallow it."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Stop(Protocol):
    """Whether this process was told to stop."""

    @property
    def requested(self) -> bool:
        """Whether SIGTERM came."""
        ...

    def __call__(self) -> None:
        """Raise :class:`Preempted` when SIGTERM came."""
        ...


class NeverStop:
    """Of a process that nobody tells to stop."""

    requested = False

    def __call__(self) -> None:
        """Do nothing."""


@contextmanager
def preemptible(what: str, *, grace: float | None = None) -> Iterator[Stop]:
    """While the block runs, SIGTERM or SIGINT ends it at its next call of the function that it is given.

    The process leaves with exit code 143; when it has not after ``grace`` seconds (a long slice, an
    engine that hangs in foreign code), a thread ends it. Outside the main thread, where Python takes
    no signal handlers, the block runs as it would without.

    Args:
        what: what is worked on, for the log.
        grace: seconds from the signal to the end; those of the environment by default.

    Raises:
        Preempted: SIGTERM came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield NeverStop()
        return
    watch = _Watch(what, grace_seconds() if grace is None else grace)
    try:
        yield watch
    except Exception as error:
        # The engine's own processes got the signal as well: what they broke is no error of the rows.
        if watch.requested:
            raise Preempted from error
        raise
    finally:
        watch.restore()
    watch()


class _Watch:
    """The handler, and a thread that keeps time even while the main thread is in foreign code."""

    def __init__(self, what: str, grace: float) -> None:
        self.requested = False
        self._what, self._grace = what, grace
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._wait, name="preemption", daemon=True)
        self._thread.start()
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, self._handle) for number in _SIGNALS}

    def __call__(self) -> None:
        if self.requested:
            raise Preempted

    def restore(self) -> None:
        """What stood before; after SIGTERM the clock goes on."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        signal.set_wakeup_fd(self._wakeup)
        if not self.requested:
            os.close(self._writer)
            self._thread.join()
            os.close(self._reader)

    def _handle(self, *_: object) -> None:
        self.requested = True  # the thread speaks: writing from a handler can meet a half-done write

    def _wait(self) -> None:
        while received := os.read(self._reader, 64):
            if arrived := [number for number in _SIGNALS if number in received]:
                self.requested = True
                log.warning(
                    "%s: %s, so this process stops within %g s; what is committed is kept",
                    self._what,
                    arrived[0].name,
                    self._grace,
                )
                time.sleep(self._grace)
                log.warning("%s: what is in flight was abandoned; it is computed again", self._what)
                os._exit(EXIT_CODE)
