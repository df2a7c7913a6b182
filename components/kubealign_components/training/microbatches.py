"""Optimiser steps: which examples, in which order, cut into micro-batches of a bounded number of tokens.

A step's examples depend on the seed and on nothing else. How they are cut depends on the token budget
and on the number of processes, and never changes the loss: every example has the same share in it.
All processes work out the same plan from the same lengths, so they run the same number of forward
passes, which sharded models need, without asking one another.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from kubealign_components.engines.token_batches import token_batches


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What cutting into micro-batches needs to know of every example: int64 arrays, one entry each."""

    prompt_of: np.ndarray
    """Number of its prompt."""
    prompt_tokens: np.ndarray
    completion_tokens: np.ndarray
    """Of all its completions together."""

    def __len__(self) -> int:
        return len(self.prompt_of)


class StepBatch(Protocol):
    """One forward pass."""

    @property
    def step_examples(self) -> int:
        """Examples of the whole optimiser step, over all its forward passes and processes; 0 for a pass
        that must not count."""

    @property
    def tokens(self) -> int:
        """Tokens of the forward pass."""

    def to(self, device: torch.device | str) -> Self:
        """The batch on ``device``."""


class StepExamples(Protocol):
    """The examples of one split."""

    def __len__(self) -> int: ...

    def sizes(self) -> Sizes:
        """The number of tokens of every example."""

    def batch(self, numbers: Sequence[int], step_examples: int) -> StepBatch:
        """The examples with these numbers as one forward pass of a step of ``step_examples``."""


StepInputs = dict[str, list[Any]]


class Micro(NamedTuple):
    """One forward pass."""

    examples: tuple[int, ...]
    """Their numbers in the split."""
    step_examples: int
    """Examples of the whole optimiser step, over all processes; 0 for a pass that must not count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """How a split is cut."""

    batch_size: int
    """Examples of an optimiser step; the last one of an epoch has what is left."""
    budget: int
    """Tokens of a forward pass, each prompt counted once; a longer example is one by itself."""
    processes: int
    rank: int
    """The process whose share is wanted."""
    seed: int | None
    """Seed of the order, another one every epoch; None for the order of the split."""


class StepSampler(BatchSampler):
    """The micro-batches of one process, step by step."""

    def __init__(self, sizes: Sizes, plan: StepPlan) -> None:
        self._sizes = sizes
        self._plan = plan
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for ``epoch``, counted from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self._sizes) / self._plan.batch_size)

    def __iter__(self) -> Iterator[list[Micro]]:
        plan, order = self._plan, list(range(len(self._sizes)))
        if plan.seed is not None:
            source = torch.Generator().manual_seed(plan.seed + self._epoch)
            order = torch.randperm(len(order), generator=source).tolist()
        for start in range(0, len(order), plan.batch_size):
            step = order[start : start + plan.batch_size]
            yield cut(step, self._sizes, plan.budget, plan.processes)[plan.rank]


class StepLoader(DataLoader[StepBatch]):
    """Loads the micro-batches of one optimiser step at a time, as ``{"step": micro-batches}``."""

    def __init__(self, examples: StepExamples, plan: StepPlan) -> None:
        sampler = StepSampler(examples.sizes(), plan)
        super().__init__(_MicroBatches(examples), batch_sampler=sampler, collate_fn=_as_mapping)

    def set_epoch(self, epoch: int) -> None:
        """The Trainer calls this before every epoch."""
        self.batch_sampler.set_epoch(epoch)


class _MicroBatches(Dataset[StepBatch]):
    """Micro-batches by their plan."""

    def __init__(self, examples: StepExamples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, micro: Micro) -> StepBatch:
        return self._examples.batch(micro.examples, micro.step_examples)


def _as_mapping(batches: list[StepBatch]) -> StepInputs:
    """The Trainer looks keys up in its inputs."""
    return {"step": batches}


def cut(step: Sequence[int], sizes: Sizes, budget: int, processes: int) -> list[list[Micro]]:
    """Cut the examples ``step`` into equally many micro-batches for each of ``processes``.

    Examples of one prompt stay together while they fit. Bins are filled longest first into the least
    filled one, so that those that run side by side take about equally long.
    """
    units = list(_units(step, sizes, budget, processes))
    passes = math.ceil(min(sum(tokens for tokens, _ in units) / budget, len(units)) / processes)
    bins = _fill(units, passes * processes)
    while any(tokens > budget and len(examples) > 1 for tokens, examples in bins):
        passes += 1
        bins = _fill(units, passes * processes)
    micro = [Micro(tuple(examples), len(step)) for _, examples in bins if examples]
    # A process with nothing left to do runs along for nothing: sharded weights are gathered by all.
    idle = Micro((min(units)[1][0],), 0)
    micro += [idle] * (passes * processes - len(micro))
    rows = [micro[start : start + processes] for start in range(0, len(micro), processes)]
    # Every other row the other way round, or the first process would always have the most.
    return [list(share) for share in zip(*(row[:: -1 if i % 2 else 1] for i, row in enumerate(rows)))]


def _units(step: Sequence[int], sizes: Sizes, budget: int, processes: int) -> Iterator[tuple[int, list[int]]]:
    """``(tokens, examples)`` that are best kept together because they share a prompt."""
    chosen = np.asarray(step)
    prompts, completions = sizes.prompt_tokens[chosen], sizes.completion_tokens[chosen]
    limit = min(budget, math.ceil(int(prompts.sum() + completions.sum()) / processes))
    by_prompt: dict[int, list[int]] = {}
    for position, prompt in enumerate(sizes.prompt_of[chosen].tolist()):
        by_prompt.setdefault(prompt, []).append(position)
    for positions in by_prompt.values():
        prompt_tokens, lengths = int(prompts[positions[0]]), completions[positions].tolist()
        for unit in token_batches(lengths, limit, shared=prompt_tokens):
            tokens = prompt_tokens + sum(lengths[i] for i in unit)
            yield tokens, [step[positions[i]] for i in unit]


def _fill(units: Sequence[tuple[int, list[int]]], count: int) -> list[tuple[int, list[int]]]:
    """``count`` bins of ``(tokens, examples)``, fullest first."""
    bins: list[tuple[int, int, list[int]]] = [(0, number, []) for number in range(count)]
    for tokens, examples in sorted(units, key=lambda unit: -unit[0]):
        filled, number, members = heapq.heappop(bins)
        heapq.heappush(bins, (filled + tokens, number, members + examples))
    return [(filled, members) for filled, _, members in sorted(bins, key=lambda b: (-b[0], b[1]))]
