"""Training processes on this machine, which meet over a file and talk over the loopback interface alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kubealign_components.child_processes import OWN_END, end_text, ends, kill
from kubealign_components.errors import FINAL_CODE, EngineError
from kubealign_components.memory import MemoryWatch
from kubealign_components.preemption import EXIT_CODE, Preempted, grace_seconds, preemptible

MEETING = "KUBEALIGN_MEETING_FILE"
"""Environment variable with the file over which the processes of one machine find each other."""
STEP_SECONDS = 25.0
"""Longest time from SIGTERM to the end of a step and its checkpoint; Kubernetes kills after 30 s."""
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


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
        with preemptible("training", grace=grace_seconds(STEP_SECONDS) + OWN_END) as stop:
            processes = [self._started(rank, job) for rank in range(self._count)]
            try:
                codes = ends(processes, stop)
            finally:
                kill(processes)
        if EXIT_CODE in codes:
            raise Preempted
        failed = [(rank, code) for rank, code in enumerate(codes) if code not in (0, FINAL_CODE)]
        if any(codes):
            rank, code = failed[0] if failed else (0, FINAL_CODE)
            raise EngineError(end_text(f"training process {rank}", code, memory))

    def _started(self, rank: int, job: str) -> subprocess.Popen[bytes]:
        own = {
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
        environment = _LOOPBACK | os.environ | {name: str(value) for name, value in own.items()}
        command = [sys.executable, "-m", "kubealign_components.training", job]
        return subprocess.Popen(command, env=environment)
