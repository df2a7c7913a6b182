"""The PPO loop: sample, score, measure, train; the same numbers on every process.

Sampling and forward passes are shared out, what comes of them is exchanged: every process has all
rollouts of a step, so whitening and controllers see the whole batch. Losses are means over the tokens
of the whole step batch, gradients are summed: how many processes there are changes nothing but rounding.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kubealign_components.data.seeds import generator_for
from kubealign_components.engines.packing import PackedBatch
from kubealign_components.engines.rewards import OVER_LENGTH
from kubealign_components.engines.token_batches import longest_first
from kubealign_components.errors import EngineError
from kubealign_components.train_ppo.collectives import Collectives
from kubealign_components.train_ppo.config import PpoConfig
from kubealign_components.train_ppo.experience import Experience, experience
from kubealign_components.train_ppo.model import POLICY, REFERENCE, VALUE, PpoModel, pack_rollouts
from kubealign_components.train_ppo.objectives import (
    KlController,
    Losses,
    policy_loss,
    value_loss,
)
from kubealign_components.train_ppo.prompts import PpoPrompts, Turn, turns_of
from kubealign_components.train_ppo.rollouts import Rollout, RolloutScorer
from kubealign_components.train_ppo.sampling import Sampler
from kubealign_components.training.metrics import peak_memory_gib
from kubealign_components.training.schedule import learning_rate_factor

log = logging.getLogger(__name__)

_SUMS = ("policy_loss", "policy_clip_fraction", "approx_kl", "value_loss", "value_clip_fraction")


@dataclass(kw_only=True, slots=True)
class Parts:
    """What the trainer works with."""

    model: PpoModel
    sampler: Sampler
    scorer: RolloutScorer
    questions: PpoPrompts
    collectives: Collectives
    check: Callable[[], None] = field(default=lambda: None)
    """Called while nothing is half trained; raises when the process has to stop."""


class PpoTrainer:
    """Trains policy and value adapters.

    Args:
        config: the settings.
        parts: model, sampler, scorer, prompts and processes.
        steps: of the whole run, which the learning rate goes by.
    """

    def __init__(self, config: PpoConfig, parts: Parts, steps: int) -> None:
        self.config, self.parts, self.steps = config, parts, steps
        self.weights = {part: parts.model.trained(part) for part in (POLICY, VALUE)}
        self.optimizer = torch.optim.AdamW(
            [{"params": list(weights.values())} for weights in self.weights.values()],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        target = config.kl_target if config.kl_controller == "adaptive" else None
        self.kl = KlController(config.kl_coef, target, config.kl_horizon)

    def step(self, number: int) -> tuple[dict[str, float], list[Rollout]]:
        """Step ``number``, from 0: its metrics and its rollouts, the same on every process."""
        started = time.perf_counter()
        turns = turns_of(self.config, self.parts.questions.train, number)
        made = self._rollouts(turns, measure=True)
        rollouts, dropped = _scored(made), Counter(one for one in made if isinstance(one, str))
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items()))
        if not rollouts:
            raise EngineError(
                f"step {number}: none of {len(made)} rollouts has a score ({reasons}); for those over length "
                "lower max_new_tokens, for others see what the reward functions refuse"
            )
        refused = dropped.total() - dropped[OVER_LENGTH]
        if refused and self.parts.collectives.first:
            log.warning("step %d: left out rollouts without a score: %s", number, reasons)
        sampled = time.perf_counter()
        data = experience(rollouts, self.config, self.kl.coefficient)
        trained = self._train(data, number)
        self.kl.update(data.metrics["kl"])
        ended = time.perf_counter()
        tokens = sum(rollout.tokens for rollout in rollouts)
        return data.metrics | trained | {
            "dropped_over_length": float(dropped[OVER_LENGTH]),
            "dropped_refused": float(refused),
            "sampling_seconds": sampled - started,
            "training_seconds": ended - sampled,
            "tokens_per_second": tokens / (ended - started),
            "memory_gib": peak_memory_gib(),
        }, rollouts

    def evaluate(self) -> list[Rollout | None]:
        """The scored answers to the held-out prompts: with the same seeds and principles each time."""
        turns = [Turn(q, f"evaluation/{q.prompt_id}") for q in self.parts.questions.held_out]
        made = self._rollouts(turns, measure=False) if turns else []
        return [None if isinstance(one, str) else one for one in made]

    def _rollouts(self, turns: Sequence[Turn], *, measure: bool) -> list[Rollout | str]:
        parts = self.parts
        own = parts.collectives.share(turns)
        samples = parts.sampler.sample(own)
        parts.check()
        scored = parts.scorer.score(own, samples) if own else []
        if measure:
            self._measure(_scored(scored))
        parts.check()
        return parts.collectives.gather(scored)

    @torch.no_grad()
    def _measure(self, rollouts: Sequence[Rollout]) -> None:
        """Fill in log-probabilities, reference, entropy and values of each rollout's tokens."""
        model = self.parts.model
        model.eval()
        for numbers in longest_first([r.tokens for r in rollouts], self.config.micro_batch_tokens):
            chosen = [rollouts[i] for i in numbers]
            batch = self._packed(chosen)
            with model.acting(POLICY):
                logprob_M, entropy_M = model.logprobs_and_entropy(POLICY, batch)
            with model.acting(REFERENCE):
                reference_M = model.logprobs(REFERENCE, batch)
            with model.acting(VALUE):
                value_M = model.values(batch)
            columns = (logprob_M, entropy_M, reference_M, value_M)
            lengths = [len(r.completion) for r in chosen]
            split = [column.cpu().split(lengths) for column in columns]
            for rollout, *values in zip(chosen, *split, strict=True):
                rollout.logprobs, rollout.entropy, rollout.reference, rollout.values = (
                    value.tolist() for value in values
                )

    def _train(self, data: Experience, number: int) -> dict[str, float]:
        config, count = self.config, len(data.rollouts)
        rate = config.learning_rate * learning_rate_factor(
            number, steps=self.steps, warmup=config.warmup_steps, schedule=config.schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.parts.model.train()
        sums = torch.zeros(len(_SUMS), dtype=torch.float64)
        norms: dict[str, list[float]] = {POLICY: [], VALUE: []}
        for epoch in range(config.ppo_epochs):
            order = generator_for(config.seed, "step batches", number, epoch).permutation(count)
            for picked in np.array_split(order, -(-count // config.step_batch)):
                self._update(data, picked.tolist(), sums, norms)
        tokens = int(data.mask_BL.sum()) * config.ppo_epochs
        means = dict(zip(_SUMS, (self.parts.collectives.sum(sums) / tokens).tolist(), strict=True))
        grad_norms = {f"{part}_grad_norm": sum(seen) / len(seen) for part, seen in norms.items()}
        return means | grad_norms | {"learning_rate": rate}

    def _update(
        self, data: Experience, picked: Sequence[int], sums: Tensor, norms: dict[str, list[float]]
    ) -> None:
        """One optimiser step on the rollouts ``picked``, of which this process runs its share."""
        tokens = sum(len(data.rollouts[i].completion) for i in picked)
        by_length = sorted(picked, key=lambda i: -data.rollouts[i].tokens)
        own = self.parts.collectives.share(by_length)
        self.optimizer.zero_grad()
        for part, loss in ((POLICY, self._policy_loss), (VALUE, self._value_loss)):
            with self.parts.model.acting(part):
                for numbers in longest_first(
                    [data.rollouts[i].tokens for i in own], self.config.micro_batch_tokens
                ):
                    total = loss(data, [own[i] for i in numbers], sums)
                    self._backward(total / tokens)
            norms[part].append(self._clip(part))
        self.optimizer.step()

    def _policy_loss(self, data: Experience, numbers: Sequence[int], sums: Tensor) -> Tensor:
        batch = self._packed([data.rollouts[i] for i in numbers])
        logprob_M = self.parts.model.logprobs(POLICY, batch)
        old_M, advantage_M = (
            data.picked(name, numbers).to(logprob_M.device) for name in ("logprob_BL", "advantage_BL")
        )
        losses = policy_loss(logprob_M, old_M, advantage_M, clip=self.config.clip)
        change_M = (logprob_M - old_M).detach()
        # k3 of the policy that sampled against the trained one: 0 before the first optimiser step.
        _add(sums, 0, losses, torch.expm1(change_M) - change_M)
        return losses.loss_X.sum()

    def _value_loss(self, data: Experience, numbers: Sequence[int], sums: Tensor) -> Tensor:
        value_M = self.parts.model.values(self._packed([data.rollouts[i] for i in numbers]))
        old_M, return_M = (
            data.picked(name, numbers).to(value_M.device) for name in ("value_BL", "return_BL")
        )
        losses = value_loss(value_M, old_M, return_M, clip=self.config.value_clip)
        _add(sums, 3, losses)
        return self.config.value_coef * losses.loss_X.sum()

    def _backward(self, loss: Tensor) -> None:
        try:
            loss.backward()
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"out of memory in training; lower micro_batch_tokens={self.config.micro_batch_tokens}, "
                "or set gradient_checkpointing"
            ) from error

    def _clip(self, part: str) -> float:
        """Add the gradients of ``part`` up over processes and clip them; their norm before that."""
        weights: Iterable[nn.Parameter] = self.weights[part].values()
        self.parts.collectives.sum_gradients(weights)
        limit = self.config.max_grad_norm or float("inf")
        norm = float(nn.utils.clip_grad_norm_(weights, limit))
        if not np.isfinite(norm):
            raise EngineError(f"the gradient of the {part} is not finite: lower learning_rate")
        return norm

    def _packed(self, rollouts: Sequence[Rollout]) -> PackedBatch:
        return pack_rollouts([(r.prompt, r.completion) for r in rollouts]).to(self.parts.model.device)


def _scored(made: Sequence[Rollout | str]) -> list[Rollout]:
    return [one for one in made if not isinstance(one, str)]


def _add(sums: Tensor, first: int, losses: Losses, *more: Tensor) -> None:
    """Add the sums over tokens to the running ones, from place ``first`` on."""
    columns: list[Any] = [losses.loss_X, losses.clipped_X, *more]
    for index, column in enumerate(columns, start=first):
        sums[index] += column.detach().double().sum().cpu()
