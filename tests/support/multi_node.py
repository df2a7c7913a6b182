"""Nodes of a TrainJob on this machine: a torchrun each, told by PET_* variables, with nothing in common.

What Kubeflow's torch-distributed runtime does for a pod is done here for a process: the same variables and
the same command. Every node has a scratch folder of its own.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kubealign_components.errors import EngineError


class Nodes:
    """Starts a job on ``count`` nodes of ``processes`` processes each; a node that fails ends the others.

    Args:
        folder: for the nodes' scratch folders.
        count: of nodes.
        processes: of each node.
        kill: asked again and again; once it says yes, the last process of the last node gets SIGKILL.
        environment: what the node of a number has beside what all have.
    """

    def __init__(
        self,
        folder: Path,
        count: int = 2,
        processes: int = 1,
        *,
        kill: Callable[[], bool] | None = None,
        environment: Callable[[int], dict[str, str]] = lambda _: {},
    ) -> None:
        self.folder, self.count, self.processes, self.kill = folder, count, processes, kill
        self.environment = environment

    def __call__(self, job: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        agents = [self._node(rank, port, job) for rank in range(self.count)]
        try:
            codes = self._wait(agents)
        finally:
            for agent in agents:
                if agent.poll() is None:
                    agent.terminate()  # torchrun passes it on to its processes
                agent.wait()
        if any(codes):
            raise EngineError(f"nodes ended with exit codes {codes}")

    def left(self) -> list[Path]:
        """What is in the nodes' scratch folders."""
        return list(self.folder.glob("node-*/kubealign-*"))

    def _node(self, rank: int, port: int, job: str) -> subprocess.Popen[bytes]:
        scratch = self.folder / f"node-{rank}"
        scratch.mkdir(parents=True, exist_ok=True)
        told = {
            "PET_NNODES": self.count,
            "PET_NPROC_PER_NODE": self.processes,
            "PET_NODE_RANK": rank,
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": port,
            "TMPDIR": scratch,
            "PYTHONSAFEPATH": 1,
        }
        environment = os.environ | {name: str(value) for name, value in told.items()} | self.environment(rank)
        command = [sys.executable, "-m", "torch.distributed.run", "-m", "kubealign_components.training", job]
        return subprocess.Popen(command, env=environment)

    def _wait(self, agents: list[subprocess.Popen[bytes]]) -> list[int | None]:
        kill = self.kill
        while True:
            codes = [agent.poll() for agent in agents]
            if any(codes) or None not in codes:
                return codes
            if kill is not None and kill():
                os.kill(_children(agents[-1].pid)[-1], signal.SIGKILL)
                kill = None
            time.sleep(0.02)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
