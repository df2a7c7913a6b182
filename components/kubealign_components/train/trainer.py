"""The trainer: ``transformers.Trainer`` with alignment objectives on stored log-probabilities.

Everything that the library does well comes from it: FSDP2, DeepSpeed, schedules, checkpoints. Ours
are the loss, the exact share of every example in it, what is measured, and the check before the
first step that the policy still gives the log-probabilities of the reference.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import DistributedType
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

from kubealign_components.errors import DriftError, EngineError
from kubealign_components.progress import progress_bar
from kubealign_components.train import objectives
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.data import Batch, Examples
from kubealign_components.train.metrics import Meter
from kubealign_components.train.policy import trained_weights
from kubealign_components.train.steps import StepInputs, StepLoader, StepPlan


class AlignmentTrainer(Trainer):
    """Trains a log-probability model on training examples.

    Args:
        config: the settings.
        model: gives the summed log-probability of every completion of a batch, see
            :class:`~kubealign_components.engines.packing.LogprobModel`.
        args: from :func:`~kubealign_components.train.arguments.training_arguments`.
        train: examples to train on.
        validation: held-out examples, possibly none.
        callbacks: such as the one that publishes checkpoints.
        drift_hint: what to say beside the numbers when step 0 disagrees with the reference.

    :meth:`train` raises DriftError when policy and reference disagree before the first step.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        args: TrainingArguments,
        train: Examples,
        validation: Examples,
        callbacks: Sequence[TrainerCallback] = (),
        drift_hint: str = "",
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=validation,
        )
        self.config = config
        self.meter = Meter(args.device)
        self._logged_at = time.perf_counter()
        self.remove_callback(PrinterCallback)
        for callback in (_InitialDrift(self, drift_hint), _Progress(), *callbacks):
            self.add_callback(callback)

    def get_train_dataloader(self) -> StepLoader:
        """Optimiser steps in a new order every epoch, this process's share of each."""
        return StepLoader(self.train_dataset, self._plan(self.config.seed))

    def training_step(
        self, model: nn.Module, inputs: StepInputs, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward passes of one optimiser step; gives the sum of their losses."""
        sharded = self.accelerator.distributed_type == DistributedType.DEEPSPEED  # it keeps its own count
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
        inputs: dict[str, Batch],
        return_outputs: bool = False,  # noqa: ARG002
        num_items_in_batch: Tensor | int | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Sum of the examples' losses over the number of examples in the whole optimiser step."""
        batch = inputs["batch"].to(self.args.device)
        loss, logprob_C, reward_C = _losses(self.config, batch, model(batch.packed))
        if not batch.step_examples:
            return loss * 0
        _measure(self.meter, self.config, batch, loss, logprob_C, reward_C)
        # Gradients are averaged over processes, the count is over all of them.
        return loss * (self.accelerator.num_processes / batch.step_examples)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Measure the validation split and log it as ``eval_…``; nothing without one."""
        if not len(self.eval_dataset):
            return {}
        training, self.meter = self.meter, Meter(self.args.device)
        try:
            self.model_wrapped.eval()
            for step in StepLoader(self.eval_dataset, self._plan(None)):
                for batch in step["step"]:
                    with torch.no_grad():
                        self.compute_loss(self.model_wrapped, {"batch": batch})
            measured = self.meter.drain(self._sum)
        finally:
            self.meter = training
        metrics = {
            f"eval_{name}": v
            for name, v in measured.items()
            if name not in ("tokens", "abs_log_ratio_per_token")
        }
        self.log(metrics)
        return metrics

    def _plan(self, seed: int | None) -> StepPlan:
        return StepPlan(
            batch_size=self.config.batch_size,
            budget=self.config.micro_batch_tokens,
            processes=self.args.world_size,
            rank=self.args.process_index,
            seed=seed,
        )

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:  # noqa: ARG002
        """Add what was measured since the last step was logged."""
        if "loss" in logs:
            measured = self.meter.drain(self._sum)
            now = time.perf_counter()
            measured["tokens_per_second"] = measured.pop("tokens") / (now - self._logged_at)
            self._logged_at = now
            logs = measured | logs
            if not math.isfinite(logs["loss"]):
                raise EngineError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}: lower learning_rate"
                )
        super().log(logs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the trained weights for a checkpoint; sharded ones are saved with the optimiser."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        if self.args.should_save and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            weights = {k: v.detach().contiguous() for k, v in trained_weights(self.model).items()}
            safetensors.torch.save_file(weights, folder / SAFE_WEIGHTS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = safetensors.torch.load_file(Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)
        with torch.no_grad():
            for name, parameter in trained_weights(model or self.model).items():
                parameter.copy_(saved[name])

    def _sum(self, values: Tensor) -> Tensor:
        reduced: Tensor = self.accelerator.reduce(values, "sum")
        return reduced


def _losses(config: TrainConfig, batch: Batch, logprob_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over examples of their losses, and per completion the log-ratio and the implicit reward."""
    log_ratio_C = logprob_C - batch.reference_logprob_C
    beta_C = _beta(config, batch)
    w, l = batch.pairs_P2.unbind(1)  # noqa: E741
    pair = (log_ratio_C[w], log_ratio_C[l])
    lengths = (batch.length_C[w], batch.length_C[l])
    smoothing = config.label_smoothing
    if config.objective == "qrpo":
        loss_C = objectives.qrpo_loss(
            log_ratio_C, batch.quantile_C, batch.references_C, beta_C, transform=config.transform
        )
        total = (loss_C * batch.weight_C).sum()
    elif config.objective == "dpo":
        total = objectives.dpo_loss(*pair, beta=config.beta, smoothing=smoothing).sum()
    elif config.objective == "dpo_norm":
        total = objectives.dpo_norm_loss(*pair, *lengths, beta=config.beta, smoothing=smoothing).sum()
    elif config.objective == "ipo":
        total = objectives.ipo_loss(*pair, *lengths, beta=config.beta).sum()
    elif config.objective == "simpo":
        total = objectives.simpo_loss(
            logprob_C[w], logprob_C[l], *lengths, beta=config.beta, gamma=config.gamma, smoothing=smoothing
        ).sum()
    else:
        rewards = (batch.reward_C[w].to(logprob_C.dtype), batch.reward_C[l].to(logprob_C.dtype))
        total = objectives.rebel_loss(*pair, *rewards, beta=config.beta).sum()
    scored_C = logprob_C if config.objective == "simpo" else log_ratio_C
    return total, log_ratio_C.detach(), (beta_C * scored_C.detach())


def _beta(config: TrainConfig, batch: Batch) -> Tensor:
    """β of each completion as the objective applies it, fp64."""
    per_token = config.length_normalise or config.objective in ("dpo_norm", "ipo", "simpo")
    return objectives.beta_per_completion(
        batch.length_C, beta=config.beta, length_normalise=per_token, beta_max=config.beta_max
    )


def _measure(
    meter: Meter, config: TrainConfig, batch: Batch, loss: Tensor, log_ratio_C: Tensor, reward_C: Tensor
) -> None:
    w, l = batch.pairs_P2.unbind(1)  # noqa: E741
    meter.add_total("loss", loss, batch.examples)
    margin_P = reward_C[w] - reward_C[l]
    meter.add("reward_margin", margin_P)
    meter.add("reward_accuracy", margin_P > 0)
    meter.add("chosen_log_ratio", log_ratio_C[w])
    meter.add("rejected_log_ratio", log_ratio_C[l])
    meter.add("kl_estimate", -log_ratio_C[batch.from_reference_C])
    meter.add("abs_log_ratio_per_token", log_ratio_C.abs() / batch.length_C)
    meter.add_total("tokens", torch.tensor(batch.tokens, device=loss.device), 1)
    if config.objective == "qrpo":
        implied_C = objectives.implied_quantile(log_ratio_C, _beta(config, batch), config.transform)
        meter.add_calibration(batch.quantile_C, implied_C)


class _InitialDrift(TrainerCallback):
    """Stops before the first optimiser step when policy and reference disagree."""

    def __init__(self, trainer: AlignmentTrainer, hint: str) -> None:
        self.trainer = trainer
        self.hint = hint

    def on_pre_optimizer_step(self, _: TrainingArguments, state: TrainerState, *__: Any, **___: Any) -> None:
        """Called with the gradients of the step complete and nothing updated."""
        if state.global_step:
            return
        drift = self.trainer.meter.mean("abs_log_ratio_per_token", self.trainer._sum)
        limit = self.trainer.config.max_initial_drift
        if not drift <= limit:
            raise DriftError(
                f"before the first step the policy differs from the stored reference log-probabilities by "
                f"{drift:.4g} nats per token on average, more than max_initial_drift={limit:g}: the "
                f"dataset's log-probabilities are not those of this policy as it is trained. {self.hint}"
            )


class _Progress(TrainerCallback):
    """A progress bar over optimiser steps, with the loss."""

    def on_train_begin(self, _: TrainingArguments, state: TrainerState, *__: Any, **___: Any) -> None:
        """Open the bar on the first process."""
        self._bar = progress_bar(state.max_steps, "steps", "train") if state.is_world_process_zero else None
        if self._bar is not None:
            self._bar.update(state.global_step)

    def on_log(self, _: TrainingArguments, state: TrainerState, *__: Any, **named: Any) -> None:
        """Advance to the step that was logged."""
        logs = named["logs"]
        if self._bar is not None and "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.4g}", refresh=False)
            self._bar.update(state.global_step - self._bar.n)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
