"""The engine processes of one pod: each works on a share of the chunk, on GPUs of its own.

They commit slices and nothing else. The process that started them then finds every result finished, and
writes the part: rows and bytes are those of one process.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kubealign_components.child_processes import OWN_END, end_text, ends, kill
from kubealign_components.data.chunks import Chunk, Part, Share, shares
from kubealign_components.error_reports import error_from
from kubealign_components.errors import FINAL, EngineError, KubeAlignError
from kubealign_components.gpus import VISIBLE, Gpus, visible_gpus
from kubealign_components.memory import MemoryWatch
from kubealign_components.preemption import EXIT_CODE, Preempted, Stop, grace_seconds

JOB, REPORT = "job", "report.json"
"""Files of a process: what it is to do, and what it leaves."""
_STOPPED = (EXIT_CODE, -signal.SIGTERM)
"""How one ends that was told to stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineProcesses:
    """What a chunk is worked on by.

    A chunk of one row, and a machine with room for one engine, are worked on in the process itself.
    """

    run: Callable[..., Part]
    """The stage, a function of a module, which takes ``config`` and a chunk."""
    config: object
    devices: Sequence[str]
    """What each process sees of the GPUs, as ``CUDA_VISIBLE_DEVICES`` has it; empty for all there is."""
    fetch: Callable[[], object] = field(default=lambda: None, kw_only=True)
    """Brings what all of them load onto this machine, so that it comes once and not once for each."""

    def of(self, chunk: Chunk) -> list[Share]:
        """The shares of ``chunk``; none where it is worked on in this process."""
        count = min(len(self.devices), chunk.rows)
        return shares(chunk, count) if count > 1 else []

    def compute(self, shares: Sequence[Share], stop: Stop) -> int:
        """Let a process finish all results of each share; the number of rows that missed none before.

        Raises:
            KubeAlignError: what the first process that failed raised.
            Preempted: this process, or one of them, was told to stop, and all have.
        """
        self.fetch()
        stop()
        memory = MemoryWatch()
        with tempfile.TemporaryDirectory(prefix="kubealign-engines-") as scratch:
            folders = [Path(scratch) / str(share.number) for share in shares]
            processes = [self._started(folder, share) for folder, share in zip(folders, shares)]
            try:
                codes = ends(processes, stop, commit=grace_seconds() + OWN_END)
            finally:
                kill(processes)
            # One that is told to stop before it has begun ends by the signal itself.
            failed = [number for number, code in enumerate(codes) if code not in (0, *_STOPPED)]
            if failed:
                raise _error_of([folders[number] for number in failed], codes[failed[0]], failed[0], memory)
            if any(codes):
                raise Preempted
            return sum(
                json.loads((folder / REPORT).read_text(encoding="utf-8"))["reused_rows"] for folder in folders
            )

    def _started(self, folder: Path, share: Share) -> subprocess.Popen[bytes]:
        folder.mkdir()
        # From this process to one that it starts, through a folder that is its own.
        (folder / JOB).write_bytes(pickle.dumps((self.run, self.config, share)))
        devices = self.devices[share.number]
        # A file in the current folder must not shadow a module.
        own = {"PYTHONSAFEPATH": "1", **({VISIBLE: devices} if devices else {})}
        command = [sys.executable, "-m", f"{__package__}.engine_process", str(folder), str(os.getpid())]
        return subprocess.Popen(command, env=os.environ | own)


def engines(
    run: Callable[..., Part],
    config: object,
    chunk: Chunk,
    *,
    processes: int,
    fetch: Callable[[], object] = lambda: None,
    weights: int = 0,
    each: int = 0,
) -> EngineProcesses | None:
    """As many engine processes as this machine has GPUs for; None in one of them.

    Args:
        run: the stage.
        config: of it.
        chunk: to work on.
        processes: how many, as the stage's settings have it; 0 for as many as there is room for.
        fetch: called once before several are started, to bring the model's weights onto this machine.
        weights: bytes of an engine's weights, where these say how many GPUs it takes.
        each: GPUs of an engine, where that is known; 0 and no weights for one that runs on processors.

    Raises:
        ConfigError: more processes than there are GPUs for.
    """
    if isinstance(chunk, Share):
        return None
    gpus = visible_gpus() if weights or each else Gpus(names=(), memory=0)
    needed = gpus.for_weights(weights) if weights and gpus.names else each
    return EngineProcesses(run=run, config=config, devices=gpus.shares(processes, needed), fetch=fetch)


def _error_of(folders: Sequence[Path], code: int | None, number: int, memory: MemoryWatch) -> KubeAlignError:
    """What went wrong in the processes of ``folders``: what another attempt would meet again comes first."""
    errors = [error for folder in folders if (error := _left_in(folder)) is not None]
    final = [error for error in errors if isinstance(error, FINAL)]
    if final or errors:
        return (final or errors)[0]
    return EngineError(end_text(f"engine process {number + 1}", code, memory))


def _left_in(folder: Path) -> KubeAlignError | None:
    path = folder / REPORT
    return error_from(json.loads(path.read_text(encoding="utf-8"))["error"]) if path.is_file() else None
