"""Processes side by side on this machine: waiting for all of them, and what is said of one that died."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence

from kubealign_components.memory import MemoryWatch
from kubealign_components.preemption import EXIT_CODE, Stop

OWN_END = 4.0
"""Seconds that the others have to end by themselves once one has failed: each may say why."""
_PAUSE = 0.1

Processes = Sequence[subprocess.Popen[bytes]]


def ends(processes: Processes, stop: Stop, *, commit: float | None = None) -> list[int | None]:
    """Wait for all to end, or for one to fail; their exit codes, None of one that still runs.

    Args:
        processes: that were started.
        stop: whether this one was told to stop: they are told, too.
        commit: seconds that the others have, once one has failed and they are told to stop, to commit what
            they have; None where what they have is worth nothing without it.
    """
    stopping, deadline = False, float("inf")
    while True:
        codes = [process.poll() for process in processes]
        if None not in codes or time.monotonic() > deadline:
            return codes
        failed = any(codes) and EXIT_CODE not in codes
        if failed:
            deadline = min(deadline, time.monotonic() + (OWN_END if commit is None else commit))
        if not stopping and (stop.requested or (failed and commit is not None)):
            stopping = True
            for process in processes:
                process.send_signal(signal.SIGTERM)
        time.sleep(_PAUSE)


def kill(processes: Processes) -> None:
    """End those that still run: one may wait for another that has failed, to the end of its patience."""
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def end_text(what: str, code: int | None, memory: MemoryWatch) -> str:
    """How the process ``what`` ended, in words."""
    if code == -signal.SIGKILL:
        return f"{what} was killed (SIGKILL). {memory.text()}"
    ended = f"ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    return f"{what} {ended}; its log above says why"
