"""When a run saves, and when it stops: agreed on by all its processes at the end of a step."""

from __future__ import annotations

import time

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kubealign_components.preemption import Preempted, Stop
from kubealign_components.training.processes import Processes


class Pauses:
    """Says after each step whether a checkpoint is due, and whether the run has to stop.

    SIGTERM may reach one process of many, and their clocks differ: each step ends with one small exchange,
    so that all save and stop at the same step.

    Args:
        processes: of the run.
        stop: whether this process was told to stop.
        every: steps between checkpoints; 0 to go by minutes.
        minutes: between checkpoints; 0 for none.
        last_step: the step that another run goes on from, and is saved for it; 0 for none.
    """

    def __init__(
        self, processes: Processes, stop: Stop, *, every: int, minutes: float, last_step: int = 0
    ) -> None:
        self._processes, self._stop = processes, stop
        self._every, self._seconds, self._last_step = every, 60 * minutes, last_step
        self._saved_at = time.monotonic()
        self.stopped = False
        """Whether the run has to stop."""

    def after(self, step: int) -> bool:
        """Whether a checkpoint of ``step``, which is done, is to be saved. Every process calls it."""
        due = bool(self._seconds) and time.monotonic() - self._saved_at >= self._seconds
        self.stopped, due = self._any(self._stop.requested, due and self._processes.first)
        save = self.stopped or step == self._last_step or (step % self._every == 0 if self._every else due)
        if save:
            self._saved_at = time.monotonic()
        return save

    def check(self) -> None:
        """Raise :class:`Preempted` where the run has to stop."""
        if self.stopped:
            raise Preempted

    def _any(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag whether a process has it set."""
        if self._processes.count == 1:
            return flags
        counts = torch.tensor(flags, dtype=torch.int32, device=PartialState().device)
        torch.distributed.all_reduce(counts)
        return tuple(count > 0 for count in counts.tolist())


class PauseTrainer(TrainerCallback):
    """Makes the Trainer save and stop when it is time to."""

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses

    def on_step_end(
        self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: object
    ) -> None:
        """Called on every process after each optimiser step."""
        control.should_save = self._pauses.after(state.global_step)
        control.should_training_stop = control.should_training_stop or self._pauses.stopped
