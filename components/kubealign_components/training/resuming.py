"""Checkpoints of the Trainer: which one a run goes on from, and what of it a node needs.

A checkpoint fits any number of nodes and processes. FSDP2's is read in parts by torch's distributed
checkpointing; a node fetches the files that hold its processes' parts. DeepSpeed reads what as many
processes wrote; for another number of them, every node fetches the whole checkpoint and converts it to
DeepSpeed's universal one.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path

from transformers import TrainerCallback

from kubealign_components.errors import EngineError
from kubealign_components.preemption import Stop
from kubealign_components.supervisor import RESTART_VARIABLE
from kubealign_components.training.checkpoints import CheckpointStore, PublishCheckpoints, Saved, everything
from kubealign_components.training.config import TrainerConfig
from kubealign_components.training.pausing import Pauses, PauseTrainer
from kubealign_components.training.processes import Processes
from kubealign_components.training.sharded import SHARDS, shards_of

log = logging.getLogger(__name__)

_OF_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_\d+_\w+\.pt$")
_UNIVERSAL = "universal"


class Checkpoints:
    """What a training process does with its run's checkpoints; every process of the run makes one.

    Args:
        uri: of this run's checkpoints; empty for none.
        config: the settings.
        processes: of the run.
        stop: whether this process was told to stop.
        last_step: the step after which the run ends, before all that are planned: it is saved, and what later
            ones left is for others. 0 for a run that goes through with them.

    Raises:
        EngineError: DeepSpeed cannot convert its checkpoint to another number of processes.
    """

    def __init__(
        self, uri: str, config: TrainerConfig, processes: Processes, stop: Stop, *, last_step: int = 0
    ) -> None:
        self.pauses = Pauses(
            processes, stop, every=config.save_every, minutes=config.save_minutes, last_step=last_step
        )
        """When the run saves and stops."""
        self.callbacks: list[TrainerCallback] = [PauseTrainer(self.pauses)]
        self.resume: str | None = None
        """Folder of the checkpoint to go on from; None to start at step 0."""
        self.universal = False
        """Whether it is one of DeepSpeed's universal ones."""
        if not uri:
            return
        store = CheckpointStore(uri=uri, keep=config.keep_checkpoints, last_step=last_step)
        self.callbacks.append(PublishCheckpoints(store, processes))
        newest = store.newest(partial(_files_of, config.strategy, processes), processes)
        if processes.first:
            log.warning("%s", going_on(newest[0] if newest else None))
        if newest is None:
            return
        saved, folder = newest
        if config.strategy.startswith("zero") and saved.processes != processes.count:
            processes.once(f"resume/{_UNIVERSAL}", partial(_convert, folder))
            self.universal = True
        self.resume = str(folder)


def going_on(saved: Saved | None) -> str:
    """From where a run goes on, and which restart of it this is, in words."""
    number = int(os.environ.get(RESTART_VARIABLE) or 0)
    restart = f"restart {number}: " if number else ""
    if saved is None:
        return f"{restart}no checkpoint is there, so training begins at step 0"
    return f"{restart}going on from step {saved.step} ({saved.name}, which {saved.processes} processes wrote)"


def _files_of(strategy: str, processes: Processes, saved: Saved, folder: Path) -> Collection[str]:
    if strategy == "fsdp2":
        return _of_fsdp(processes, saved, folder)
    if strategy.startswith("zero") and saved.processes == processes.count:
        return [path for path in saved.files if _rank_of(path) in (None, *processes.ranks_on_node)]
    return everything(saved, folder)


def _of_fsdp(processes: Processes, saved: Saved, folder: Path) -> Collection[str]:
    prefix = f"{SHARDS}/"
    small = [path for path in saved.files if not path.endswith(".distcp")]
    if not (folder / small[0]).exists():
        return small
    needed = shards_of(folder / SHARDS, processes.ranks_on_node, processes.count)
    return [*small, *(prefix + name for name in needed)]


def _rank_of(path: str) -> int | None:
    """Whose part of the state a file of DeepSpeed's is; None for one that all need."""
    match = _OF_RANK.search(path)
    return int(match[1]) if match else None


def _convert(folder: Path, done: Path) -> None:
    """Make DeepSpeed's universal checkpoint beside its own in ``folder``, and the file ``done``.

    In a process of its own: the conversion forks, and this process may hold a GPU and threads.
    """
    tag = (folder / "latest").read_text(encoding="utf-8").strip()
    target = folder / f"{tag}_universal"
    command = [
        *(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"),
        *("--input_folder", str(folder / tag), "--output_folder", str(target)),
    ]
    child = subprocess.run(command, check=False, capture_output=True, text=True)
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EngineError(
            f"the checkpoint {folder.name} was written by another number of processes, and DeepSpeed cannot "
            f"convert it ({reason}); go on with as many processes as before"
        )
    done.write_text(target.name, encoding="utf-8")
