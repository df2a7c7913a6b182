"""KTO's reference point: how far the policy is from the reference, measured on mismatched completions.

z₀ is the mean log-ratio of completions that stand after another example's prompt, at least 0 (KTO, arXiv
2402.01306, section 4.1, and TRL's trainer). Every example has one fixed partner whose completion it is
given, so that what the reference says of it is computed once: before the first step, by the policy itself,
which is the reference then. z₀ is that of a whole optimiser step, however it is cut into forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kubealign_components.engines.packing import Group, PackedBatch, pack

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mismatched:
    """Mismatched completions of one forward pass, one an example that has a partner."""

    packed: PackedBatch
    reference_logprob_C: Tensor
    """Float32, nats, summed."""

    def to(self, device: torch.device | str) -> Mismatched:
        """The same on ``device``."""
        return Mismatched(
            packed=self.packed.to(device), reference_logprob_C=self.reference_logprob_C.to(device)
        )


class Mismatches:
    """The examples of a split with their partners' completions.

    Args:
        rows: gives examples by their numbers.
        prompt_of: shape (examples,), the prompt of each.
    """

    def __init__(self, rows: Callable[[Sequence[int]], list[dict[str, Any]]], prompt_of: Ints) -> None:
        self._rows = rows
        self._partner = partners(prompt_of)
        self._reference: NDArray[np.float64] = np.full(len(prompt_of), np.nan)

    def measure(self, logprobs: Callable[[PackedBatch], Tensor], budget: int) -> None:
        """Let the reference policy say what it gives every mismatched completion.

        Args:
            logprobs: summed log-probabilities of packed completions under the reference, nats.
            budget: most tokens of a forward pass; a longer example is one by itself.
        """
        waiting: list[int] = []
        tokens = 0
        for number in np.flatnonzero(self._partner >= 0).tolist():
            group = self._group(number)
            size = len(group.prompt) + len(group.completions[0])
            if waiting and tokens + size > budget:
                self._measure(waiting, logprobs)
                waiting, tokens = [], 0
            waiting.append(number)
            tokens += size
        if waiting:
            self._measure(waiting, logprobs)

    def of(self, numbers: Sequence[int]) -> Mismatched | None:
        """Those of the examples ``numbers``; None when none of them has a partner."""
        partnered = [number for number in numbers if self._partner[number] >= 0]
        if not partnered:
            return None
        return Mismatched(
            packed=pack([self._group(number) for number in partnered]),
            reference_logprob_C=torch.tensor(self._reference[partnered], dtype=torch.float32),
        )

    def _measure(self, numbers: Sequence[int], logprobs: Callable[[PackedBatch], Tensor]) -> None:
        values = logprobs(pack([self._group(number) for number in numbers]))
        self._reference[numbers] = values.double().cpu().numpy()

    def _group(self, number: int) -> Group:
        own, other = self._rows([number, int(self._partner[number])])
        completion = other["completions"][0]["token_ids"]
        return Group(prompt=tuple(own["prompt_token_ids"]), completions=(tuple(completion),))


def partners(prompt_of: Ints) -> Ints:
    """For each example the next one of another prompt, in a circle; −1 where all are of one prompt."""
    count = len(prompt_of)
    partner = np.full(count, -1, dtype=np.int64)
    open_ = np.arange(count) if len(np.unique(prompt_of)) > 1 else np.empty(0, dtype=np.int64)
    shift = 0
    while len(open_):
        shift += 1
        other = (open_ + shift) % count
        good = prompt_of[other] != prompt_of[open_]
        partner[open_[good]] = other[good]
        open_ = open_[~good]
    return partner


def reference_point(total: Tensor, count: Tensor) -> Tensor:
    """z₀ of a step from the sum and the number of its mismatched log-ratios: their mean, at least 0."""
    return (total / count.clamp(min=1)).clamp(min=0)
