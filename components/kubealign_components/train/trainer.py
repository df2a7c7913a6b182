"""The trainer of the policy: alignment objectives on stored log-probabilities.

Ours are the losses, what is measured, and the check before the first step that the policy still gives
the log-probabilities of the reference.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from kubealign_components.engines.packing import PackedBatch
from kubealign_components.errors import DataError, Diverged, DriftError, KubeAlignError, NotFinite
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.data import Batch, Examples
from kubealign_components.train.kto import Mismatches, reference_point
from kubealign_components.training import objectives
from kubealign_components.training.config import INCLUSIVE, LOGISTIC
from kubealign_components.training.metrics import Meter
from kubealign_components.training.step_trainer import StepTrainer

log = logging.getLogger(__name__)


_ORDINARY = 1e6
"""Numbers below it make no loss infinite by themselves."""


class AlignmentTrainer(StepTrainer):
    """Trains a log-probability model on training examples.

    Args:
        config: the settings.
        model: gives the summed log-probability of every completion of a batch, see
            :class:`~kubealign_components.engines.packing.LogprobModel`.
        args: from :func:`~kubealign_components.training.arguments.training_arguments`.
        train: examples to train on.
        validation: held-out examples, possibly none.
        callbacks: such as the one that publishes checkpoints.
        rule: how the examples' quantile rewards were counted.
        max_drift: largest mean |log-ratio| per token before the first step, in nats; None where policy and
            reference are different models, which is then not looked at.
        drift_hint: what to say beside the numbers when step 0 disagrees with the reference.

    :meth:`train` raises DriftError when policy and reference disagree before the first step.
    """

    not_validated = ("tokens", "abs_log_ratio_per_token")

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        args: TrainingArguments,
        train: Examples,
        validation: Examples,
        callbacks: Sequence[TrainerCallback] = (),
        *,
        rule: str = INCLUSIVE,
        max_drift: float | None = None,
        drift_hint: str = "",
    ) -> None:
        check = [] if max_drift is None else [_InitialDrift(self, max_drift, drift_hint)]
        super().__init__(config, model, args, train, validation, [*check, *callbacks])
        self.rule = rule
        if max_drift is None:
            log.info("the policy is not the reference, so their first log-probabilities are not compared")
        self.reference_point = torch.zeros((), device=args.device)

    def measure_mismatches(self) -> None:
        """Before the first step, and before anything is loaded to go on from: what the reference gives the
        completions that kto's reference point is measured on."""
        for examples in (self.train_dataset, self.eval_dataset):
            mismatches = Mismatches(examples.rows, examples.sizes().prompt_of)
            mismatches.measure(self._plain_logprobs, self.config.micro_batch_tokens)
            examples.mismatches = mismatches

    def begin_step(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        """Measure kto's reference point on the examples of a whole optimiser step."""
        if self.config.objective != "kto":
            return
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for batch in batches:
            if batch.step_examples and batch.mismatched is not None:
                own = batch.mismatched.to(self.args.device)
                with torch.no_grad():
                    ratio_C = (self._logprobs(model, own.packed) - own.reference_logprob_C).double()
                total += torch.stack(
                    [ratio_C.sum(), torch.tensor(float(len(ratio_C)), device=ratio_C.device)]
                )
        total = self._sum(total)
        self.reference_point = reference_point(total[0], total[1])

    def _plain_logprobs(self, packed: PackedBatch) -> Tensor:
        with torch.no_grad(), self.accelerator.autocast():
            values: Tensor = self.model(packed.to(self.args.device))
        return values

    def batch_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sum of the objective over the examples of ``batch``."""
        logprob_C = self._logprobs(model, batch.packed, batch.completion_ids)
        loss, log_ratio_C, reward_C = _losses(self.config, batch, logprob_C, self.reference_point, self.rule)
        if not torch.isfinite(loss):
            first = not self.state.global_step
            raise _not_finite(self.config, batch, logprob_C.detach(), loss.item(), first=first)
        if batch.step_examples:
            _measure(self.meter, self.config, batch, loss, log_ratio_C, reward_C)
        return loss

    def _logprobs(self, model: nn.Module, packed: PackedBatch, names: Sequence[str] = ()) -> Tensor:
        try:
            logprob_C: Tensor = model(packed, names)
        except NotFinite as error:
            if not self.state.global_step:  # nothing has been trained that could have done it
                raise
            raise Diverged(
                f"after step {self.state.global_step}: {error}. The training has diverged: lower "
                "learning_rate, or set max_grad_norm"
            ) from error
        return logprob_C


def _not_finite(
    config: TrainConfig, batch: Batch, logprob_C: Tensor, loss: float, *, first: bool
) -> KubeAlignError:
    """Which number of which completion makes the loss of ``batch`` infinite: one of the data, or the policy's
    by a training that has diverged, unless this is the ``first`` step."""
    values = {
        "the reward": batch.reward_C if config.objective == "rebel" else None,
        "the reference log-probability": batch.reference_logprob_C,
        "the policy's log-probability": logprob_C,
    }
    values_C = {name: v.double().nan_to_num(0.0) for name, v in values.items() if v is not None}
    name = max(values_C, key=lambda each: float(values_C[each].abs().max()))
    index = int(values_C[name].abs().argmax())
    value, owner = float(values_C[name][index]), batch.completion_ids[index]
    said = f"the loss of {batch.examples} examples is {loss}"
    if abs(value) < _ORDINARY:
        return Diverged(
            f"{said}, with no number beyond {_ORDINARY:g} in them: beta={config.beta} makes it so; raise it"
        )
    cause = f"{said}: {name} of completion {owner} is {value:g}"
    if name.startswith("the policy") and not first:
        return Diverged(f"{cause}; the training has diverged, lower learning_rate")
    return (NotFinite if name.startswith("the policy") else DataError)(f"{cause}; leave it out or mend it")


def _losses(
    config: TrainConfig, batch: Batch, logprob_C: Tensor, reference_point: Tensor, rule: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over examples of their losses, and per completion the log-ratio and the implicit reward."""
    log_ratio_C = logprob_C - batch.reference_logprob_C
    beta_C = _beta(config, batch)
    w, l = batch.pairs_P2.unbind(1)  # noqa: E741
    pair = (log_ratio_C[w], log_ratio_C[l])
    lengths = (batch.length_C[w], batch.length_C[l])
    smoothing = config.label_smoothing
    if config.objective == "qrpo":
        loss_C = objectives.qrpo_loss(
            log_ratio_C,
            batch.quantile_C,
            batch.references_C,
            beta_C,
            transform=config.transform,
            rule=rule,
        )
        total = (loss_C * batch.weight_C).sum()
    elif config.objective == "kto":
        loss_C = objectives.kto_loss(
            log_ratio_C,
            batch.desirable_C,
            reference_point.to(log_ratio_C.dtype),
            beta=config.beta,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
        )
        total = (loss_C * batch.weight_C).sum()
    elif config.objective == "dpo":
        # Summed in fp64, or three times ln 2 would be another number.
        total = objectives.dpo_loss(*pair, beta=config.beta, smoothing=smoothing).double().sum()
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
    elif config.objective in LOGISTIC:
        meter.add_calibration(margin_P.abs().sigmoid(), (margin_P > 0).double())


class _InitialDrift(TrainerCallback):
    """Stops before the first optimiser step when policy and reference disagree."""

    def __init__(self, trainer: AlignmentTrainer, limit: float, hint: str) -> None:
        self.trainer = trainer
        self.limit = limit
        self.hint = hint

    def on_pre_optimizer_step(
        self, _: TrainingArguments, state: TrainerState, *__: object, **___: object
    ) -> None:
        """Called with the gradients of the step complete and nothing updated."""
        if state.global_step:
            return
        drift = self.trainer.meter.mean("abs_log_ratio_per_token", self.trainer._sum)
        if not drift <= self.limit:
            raise DriftError(
                f"before the first step the policy differs from the stored reference log-probabilities by "
                f"{drift:.4g} nats per token on average, more than max_initial_drift={self.limit:g}: the "
                f"dataset's log-probabilities are not those of this policy as it is trained. {self.hint}"
            )
