"""The GPUs of this machine, without a library that would take memory on one of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from kubealign_components.config import require
from kubealign_components.errors import EngineError

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable with the GPUs that a process sees, by number or name."""
_NONE = ("", "-1")
_PATIENCE = 60
"""Seconds that the driver has to answer in."""
_WEIGHTS_SHARE = 0.6
"""Of a GPU's memory that weights may take: the rest is for activations, caches and the context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpus:
    """What this process sees."""

    names: tuple[str, ...]
    """As :data:`VISIBLE` has them."""
    memory: int
    """Bytes of the smallest one; 0 where that is not known."""

    def for_weights(self, size: int) -> int:
        """GPUs that an engine with ``size`` bytes of weights takes: all where that is not known."""
        room = self.memory * _WEIGHTS_SHARE
        needed = -(-size // int(room)) if room else len(self.names)
        return next(
            (n for n in range(max(needed, 1), len(self.names)) if not len(self.names) % n), len(self.names)
        )

    def shares(self, processes: int, each: int) -> list[str]:
        """What each engine process sees, as the value of :data:`VISIBLE`; empty for all there is.

        Args:
            processes: how many there are to be; 0 for as many as there are GPUs for.
            each: GPUs of an engine; 0 for one that runs on processors.

        Raises:
            ConfigError: more processes than there are GPUs for.
        """
        if not self.names or not each:
            return [""] * max(processes, 1)
        room = max(len(self.names) // each, 1)
        most = f"at most {room}: {len(self.names)} GPUs, {each} for each"
        require(processes <= room, "processes", processes, most)
        count = processes or room
        size = len(self.names) // count
        if count == 1:
            return [""]
        return [",".join(self.names[i * size : (i + 1) * size]) for i in range(count)]


def visible_gpus() -> Gpus:
    """The GPUs that this process may use; none where the driver's ``nvidia-smi`` is not there.

    Raises:
        EngineError: it does not answer.
    """
    sizes = _sizes()
    listed = os.environ.get(VISIBLE)
    names = tuple(map(str, range(len(sizes)))) if listed is None else _names(listed)
    return Gpus(names=names if sizes else (), memory=min(sizes, default=0))


def _names(listed: str) -> tuple[str, ...]:
    return () if listed.strip() in _NONE else tuple(name.strip() for name in listed.split(","))


def _sizes() -> Sequence[int]:
    """Bytes of memory of each GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=_PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"{program} has not answered in {_PATIENCE} s: the driver of this node's GPUs hangs; "
            "run the pod on another node, and have this one started again"
        ) from error
    lines = done.stdout.split() if done.returncode == 0 else []
    return [int(line) * 2**20 if line.isdigit() else 0 for line in lines]
