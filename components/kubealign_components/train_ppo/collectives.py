"""What the processes of a run exchange: rollouts as they are, gradients as sums."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, nn

from kubealign_components.training.processes import Processes

T = TypeVar("T")


class Collectives:
    """This process among those of the run.

    Args:
        processes: of the run.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.rank, self.count = processes.rank, processes.count
        self.device: torch.device = PartialState().device

    @property
    def first(self) -> bool:
        """Whether this is the process that logs and saves."""
        return self._processes.first

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of ``items``; :meth:`gather` puts the results in order again."""
        return list(items[self.rank :: self.count])

    def gather(self, own: Sequence[T]) -> list[T]:
        """The results for all items of :meth:`share`, in their order, on every process."""
        parts: list[Any] = self._processes.gather(list(own))
        total = sum(map(len, parts))
        return [parts[number % self.count][number // self.count] for number in range(total)]

    def sum(self, values: Tensor) -> Tensor:
        """``values`` added up over the processes."""
        if self.count == 1:
            return values
        summed = values.to(self.device)
        torch.distributed.all_reduce(summed)
        return summed.to(values.device)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add every parameter's gradient up over the processes; one without a gradient counts 0."""
        trained = list(parameters)
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.count == 1:
            return
        flat = torch.cat([p.grad.reshape(-1) for p in trained if p.grad is not None])
        torch.distributed.all_reduce(flat)
        start = 0
        for parameter in trained:
            part = flat[start : start + parameter.numel()]
            parameter.grad = part.view_as(parameter).clone()
            start += parameter.numel()
