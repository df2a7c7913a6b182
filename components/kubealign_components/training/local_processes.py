"""Training processes on this machine, which meet over a file and talk over the loopback interface alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kubealign_components.errors import FINAL_CODE, EngineError
from kubealign_components.memory import MemoryWatch
from kubealign_components.preemption import EXIT_CODE, Preempted, Stop, grace_seconds, preemptible

MEETING = "KUBEALIGN_MEETING_FILE"
"""Environment variable with the file over which the processes of one machine find each other."""
STEP_SECONDS = 25.0
"""Longest time from SIGTERM to the end of a step and its checkpoint; Kubernetes kills after 30 s."""
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
_PAUSE = 0.1
_OWN_END = 4.0
"""Seconds that the other processes have to end by themselves once one has failed: each may say why."""


class LocalProcesses:
    """Runs a job in ``count`` processes of this machine.

    Args:
        count: of processes.
        scratch: folder for their temporary files: those that are killed leave theirs.
    """

    def __init__(self, count: int, scratch: str) -> None:
        self._count, self._scratch = count, Path(scratch)

    def __call__(self, job: str) -> None:
        """Run the job at the URI ``job`` to its end.

        Raises:
            EngineError: a process failed.
            Preempted: this process, or one of them, was told to stop, and all have.
        """
        memory = MemoryWatch()
        # Their grace begins with ours, and they have to be gone before it ends.
        with preemptible("training", grace=grace_seconds(STEP_SECONDS) + _OWN_END) as stop:
            processes = [self._started(rank, job) for rank in range(self._count)]
            try:
                codes = _ends(processes, stop)
            finally:
                _kill(processes)
        if EXIT_CODE in codes:
            raise Preempted
        failed = [(rank, code) for rank, code in enumerate(codes) if code not in (0, FINAL_CODE)]
        if any(codes):
            raise EngineError(_told(failed[0] if failed else (0, FINAL_CODE), memory))

    def _started(self, rank: int, job: str) -> subprocess.Popen[bytes]:
        told = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "GROUP_RANK": 0,
            "WORLD_SIZE": self._count,
            "LOCAL_WORLD_SIZE": self._count,
            "MASTER_ADDR": "127.0.0.1",
            MEETING: self._scratch / "meeting",
            "TMPDIR": self._scratch,
            "PYTHONSAFEPATH": 1,  # a file in the current folder must not shadow a module
        }
        environment = _LOOPBACK | os.environ | {name: str(value) for name, value in told.items()}
        command = [sys.executable, "-m", "kubealign_components.training", job]
        return subprocess.Popen(command, env=environment)


def _ends(processes: Sequence[subprocess.Popen[bytes]], stop: Stop) -> list[int | None]:
    """Wait for all to end, or for one to fail; their exit codes, None of one that still runs."""
    told, deadline = False, float("inf")
    while True:
        codes = [process.poll() for process in processes]
        if None not in codes or time.monotonic() > deadline:
            return codes
        if any(codes) and EXIT_CODE not in codes:
            deadline = min(deadline, time.monotonic() + _OWN_END)
        if stop.requested and not told:
            told = True
            for process in processes:
                process.send_signal(signal.SIGTERM)
        time.sleep(_PAUSE)


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()  # it waits for one that has failed, and would to the end of its patience
        process.wait()


def _told(failed: tuple[int, int | None], memory: MemoryWatch) -> str:
    rank, code = failed
    if code == -signal.SIGKILL:
        return f"training process {rank} was killed (SIGKILL). {memory.told()}"
    ended = f"ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    return f"training process {rank} {ended}; its log above says why"
