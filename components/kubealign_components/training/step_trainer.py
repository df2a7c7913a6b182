"""What training in optimiser steps on stored examples needs beside ``transformers.Trainer``.

Everything that the library does well comes from it: FSDP2, DeepSpeed, schedules, checkpoints. Ours
are the exact share of every example in the loss, however a step is cut, and what is measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from accelerate import DistributedType
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from kubealign_components.errors import Diverged, EngineError
from kubealign_components.progress import note, progress_bar
from kubealign_components.training.config import TrainerConfig
from kubealign_components.training.metrics import NAMES, Meter, peak_memory_gib
from kubealign_components.training.microbatches import (
    StepBatch,
    StepExamples,
    StepInputs,
    StepLoader,
    StepPlan,
)
from kubealign_components.training.models import trained_weights
from kubealign_components.training.schedule import learning_rate_factor, planned_steps, steps_in
from kubealign_components.training.sharded import load_shards, save_shards

Log = list[tuple[int, dict[str, Any]]]


class StepTrainer(Trainer):
    """Trains a model on examples; what the loss is, a subclass says.

    Args:
        config: the settings.
        model: whatever :meth:`batch_loss` calls.
        args: from :func:`~kubealign_components.training.arguments.training_arguments`.
        train: examples to train on.
        validation: held-out examples, possibly none.
        callbacks: such as the one that publishes checkpoints.
    """

    measured: tuple[str, ...] = NAMES
    """Names of the meter's means; ``loss`` and ``tokens`` are among them."""
    not_validated: tuple[str, ...] = ("tokens",)
    """Those that say nothing of validation examples."""
    program: str = "train"
    """Name on the progress bar."""

    def __init__(
        self,
        config: TrainerConfig,
        model: nn.Module,
        args: TrainingArguments,
        train: StepExamples,
        validation: StepExamples,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
        )
        self.config: Any = config
        self.meter = Meter(args.device, self.measured)
        self._logged_at = time.perf_counter()
        self.remove_callback(PrinterCallback)
        for callback in (StepProgress(self.program), _NoStepMore(self), *callbacks):
            self.add_callback(callback)

    def begin_step(self, model: nn.Module, batches: Sequence[Any]) -> None:
        """Called with this process's share of an optimiser step before its first forward pass, also of a
        validation step; for what a loss needs to know of the whole step."""

    def batch_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Sum of the losses of the examples of ``batch``; measures it where ``batch.step_examples``."""
        raise NotImplementedError

    def get_train_dataloader(self) -> StepLoader:
        """Optimiser steps in a new order every epoch, this process's share of each."""
        return StepLoader(self.train_dataset, self._plan(self.config.seed))

    def create_scheduler(
        self,
        num_training_steps: int,  # noqa: ARG002
        optimizer: torch.optim.Optimizer | None = None,
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The learning rate by step, of all that are planned, though the run may end before. Unlike the
        library's, a warm-up does not begin at 0: a step whose rate is 0 trains nothing, and in a short run
        that is every one."""
        steps = planned_steps(self.config, len(self.train_dataset))
        factor = partial(
            learning_rate_factor,
            steps=steps,
            warmup=steps_in(self.config.warmup_ratio, steps),
            schedule=self.config.schedule,
        )
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def training_step(
        self, model: nn.Module, inputs: StepInputs, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward passes of one optimiser step; gives the sum of their losses."""
        sharded = self.accelerator.distributed_type == DistributedType.DEEPSPEED  # it keeps its own count
        self.begin_step(model, inputs["step"])
        losses = []
        for left, batch in zip(reversed(range(len(inputs["step"]))), inputs["step"]):
            self.accelerator.gradient_state._set_sync_gradients(not left)
            with nullcontext() if sharded or not left else self.accelerator.no_sync(model):
                try:
                    losses.append(super().training_step(model, {"batch": batch}, num_items_in_batch))
                except torch.OutOfMemoryError as error:
                    raise EngineError(
                        f"out of memory training on {batch.tokens} tokens at once; lower micro_batch_tokens="
                        f"{self.config.micro_batch_tokens}, set gradient_checkpointing, or shard the model "
                        "with another strategy"
                    ) from error
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, StepBatch],
        return_outputs: bool = False,  # noqa: ARG002
        num_items_in_batch: Tensor | int | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Sum of the examples' losses over the number of examples in the whole optimiser step."""
        batch = inputs["batch"].to(self.args.device)
        loss = self.batch_loss(model, batch)
        if not batch.step_examples:
            return loss * 0
        # Gradients are averaged over processes, the count is over all of them.
        return loss * (self.accelerator.num_processes / batch.step_examples)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Measure the validation split and log it as ``eval_…``; nothing without one."""
        if not len(self.eval_dataset):
            return {}
        training, self.meter = self.meter, Meter(self.args.device, self.measured)
        try:
            self.model_wrapped.eval()
            for step in StepLoader(self.eval_dataset, self._plan(None)):
                self.begin_step(self.model_wrapped, step["step"])
                for batch in step["step"]:
                    with torch.no_grad():
                        self.compute_loss(self.model_wrapped, {"batch": batch})
            measured = self.meter.drain(self._sum)
        finally:
            self.meter = training
        metrics = {f"eval_{name}": v for name, v in measured.items() if name not in self.not_validated}
        self.log(metrics)
        return metrics

    def evaluate_at_the_end(self) -> None:
        """Validate, unless the last step was validated already."""
        last = self.state.global_step
        if not any(e["step"] == last and "eval_loss" in e for e in self.state.log_history):
            self.evaluate()

    def gathered(self) -> Mapping[str, Tensor] | None:
        """The weights on the first process where they are sharded, the trained ones alone where there are
        adapters; None where they are whole. By their names in the model that ``self.model`` wraps."""
        if self.config.strategy in ("none", "zero1", "zero2"):
            return None
        wrapped = self.accelerator.get_state_dict(self.model_wrapped)
        prefix = "model."
        names = None if self.config.adapter == "none" else set(trained_weights(self.model))
        return {
            name.removeprefix(prefix): weight
            for name, weight in (wrapped or {}).items()
            if names is None or name in names
        }

    def training_log(self) -> Log:
        """``(step, metrics)`` from the Trainer's log; what it says of one step becomes one entry."""
        steps: dict[int, dict[str, Any]] = {}
        for entry in self.state.log_history:
            if "loss" in entry or any(name.startswith("eval_") for name in entry):
                row = {k: v for k, v in entry.items() if k not in ("step", "total_flos")}
                steps.setdefault(int(entry["step"]), {}).update(row)
        return sorted(steps.items())

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:  # noqa: ARG002
        """Add what was measured since the last step was logged."""
        if "loss" in logs:
            measured = self.meter.drain(self._sum)
            now = time.perf_counter()
            measured["tokens_per_second"] = measured.pop("tokens") / (now - self._logged_at)
            measured["memory_gib"] = peak_memory_gib()
            self._logged_at = now
            logs = measured | logs
            # A gradient that is no number has made the weights none, whose loss no step may follow to show.
            for name, value in (("loss", logs["loss"]), ("norm of the gradient", logs.get("grad_norm"))):
                if value is not None and not math.isfinite(value):
                    self._end(f"the {name} is {value} at step {self.state.global_step}")
        super().log(logs)

    def _end(self, said: str) -> NoReturn:
        if self.state.global_step <= 1:
            raise EngineError(f"{said}: the model or its data make it so; try dtype=float32")
        raise Diverged(f"{said}: lower learning_rate")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the trained weights for a checkpoint; sharded ones are saved with the optimiser."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        if self.args.should_save and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            weights = {k: v.detach().contiguous() for k, v in trained_weights(self.model).items()}
            safetensors.torch.save_file(weights, folder / SAFE_WEIGHTS_NAME)

    def _plan(self, seed: int | None) -> StepPlan:
        return StepPlan(
            batch_size=self.config.batch_size,
            budget=self.config.micro_batch_tokens,
            processes=self.args.world_size,
            rank=self.args.process_index,
            seed=seed,
        )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        if self.is_deepspeed_enabled:
            # DeepSpeed makes it on the first node alone.
            (folder / f"global_step{self.model_wrapped.global_steps}").mkdir(parents=True, exist_ok=True)
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_shards(folder, self.model_wrapped, self.optimizer.optimizer)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is not None and self.config.strategy == "zero3":
                self._repair_universal()
            return
        load_shards(Path(checkpoint), self.model_wrapped, self.optimizer.optimizer)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _repair_universal(self) -> None:
        """Undo what DeepSpeed 0.19 gets wrong when ZeRO-3 loads a universal checkpoint: all parameters share
        one count of steps, which then grows once for each of them, and the first group's weight decay."""
        optimizer = self.model_wrapped.optimizer.optimizer
        for state in optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].clone()
        # In the order in which the Trainer makes them: biases and norms do not decay.
        for group, decay in zip(optimizer.param_groups, (self.args.weight_decay, 0.0)):
            group["weight_decay"] = decay

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            return  # together with the optimiser's state
        saved = safetensors.torch.load_file(Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)
        with torch.no_grad():
            for name, parameter in trained_weights(model or self.model).items():
                parameter.copy_(saved[name])

    def _sum(self, values: Tensor) -> Tensor:
        reduced: Tensor = self.accelerator.reduce(values, "sum")
        return reduced


class _NoStepMore(TrainerCallback):
    """Where the last step was taken before this run, none is: the library would go beyond it in an epoch."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, _: TrainingArguments, state: TrainerState, *__: Any, **___: Any) -> None:
        if state.global_step >= state.max_steps:
            self._trainer._run_epoch = _nothing


def _nothing(**_: object) -> None:
    """An epoch of no steps."""


_PROGRESS = ("loss", "grad_norm", "learning_rate")
"""What the log says of every optimiser step."""


class StepProgress(TrainerCallback):
    """A progress bar over optimiser steps, with the loss, and a line of the log for each."""

    def __init__(self, program: str) -> None:
        self._program = program

    def on_train_begin(self, _: TrainingArguments, state: TrainerState, *__: Any, **___: Any) -> None:
        """Open the bar on the first process."""
        shown = state.is_world_process_zero
        self._bar = progress_bar(state.max_steps, "steps", self._program) if shown else None
        if self._bar is not None:
            self._bar.update(state.global_step)

    def on_log(self, _: TrainingArguments, state: TrainerState, *__: Any, **named: Any) -> None:
        """Advance to the step that was logged."""
        logs = named["logs"]
        if self._bar is not None and "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.4g}", refresh=False)
            self._bar.update(state.global_step - self._bar.n)
            numbers = [f"{name.replace('_', ' ')} {logs[name]:.4g}" for name in _PROGRESS if name in logs]
            note(self._bar, f"{self._program}: step {state.global_step}, {', '.join(numbers)}")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
