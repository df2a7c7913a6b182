"""What a training run measures beside its loss, summed on the device until the log asks for it."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

NAMES = (
    "loss",
    "reward_margin",
    "reward_accuracy",
    "chosen_log_ratio",
    "rejected_log_ratio",
    "kl_estimate",
    "abs_log_ratio_per_token",
    "tokens",
)
"""Means that a :class:`Meter` keeps of the training of a policy:

* ``loss``: over examples.
* ``reward_margin``, ``reward_accuracy``: over pairs, of the implicit reward β·l (per token where the
  objective is; SimPO: β·log π per token): chosen minus rejected, and how often that is positive.
* ``chosen_log_ratio``, ``rejected_log_ratio``: over pairs, l in nats.
* ``kl_estimate``: over completions sampled from the reference, −l in nats a completion. That is the
  plain Monte Carlo estimate of KL(π_ref ‖ π_θ), unbiased when the completions were selected without
  regard to their rewards and biased by the selection otherwise: read its growth, not its value.
* ``abs_log_ratio_per_token``: over completions, |l| per token.
* ``tokens``: over forward passes, tokens of prompts and completions.

Calibration compares by bins: with QRPO the quantile reward and the one that the policy implies, see
:func:`~kubealign_components.training.objectives.implied_quantile`; with objectives whose loss is logistic in
the margin (DPO, SimPO) the confidence σ(|margin|) in the order of a pair, and how often that order is right.
"""

BINS = 10
"""Bins of the calibration: [0, 0.1), … [0.9, 1]."""


def peak_memory_gib() -> float:
    """The most memory that this process has had so far, in GiB: on its GPU in tensors, without one in all."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # in KiB on Linux


class Meter:
    """Running sums of named means and of the calibration.

    The same numbers in the same order on every process, so that one reduction adds them up.

    Args:
        device: where values come from.
        names: of the means.
    """

    def __init__(self, device: torch.device | str = "cpu", names: tuple[str, ...] = NAMES) -> None:
        self._names = names
        self._sums = torch.zeros(len(names) + 2 * BINS, 2, dtype=torch.float64, device=device)

    def add(self, name: str, values: Tensor) -> None:
        """Add ``values`` (any shape) to the mean ``name``."""
        self._sums[self._names.index(name)] += _sum_and_count(values)

    def add_total(self, name: str, total: Tensor, count: int) -> None:
        """Add ``count`` values that sum to ``total`` (a scalar)."""
        self._sums[self._names.index(name), 0] += total.detach().double()
        self._sums[self._names.index(name), 1] += count

    def add_calibration(self, binned_N: Tensor, other_N: Tensor) -> None:
        """Add what is binned, in [0, 1], and what should equal it in the mean of each bin."""
        bin_N = (binned_N * BINS).long().clamp(0, BINS - 1)
        for offset, values_N in ((len(self._names), binned_N), (len(self._names) + BINS, other_N)):
            both = torch.stack([values_N.double(), torch.ones_like(values_N, dtype=torch.float64)], dim=1)
            self._sums.index_add_(0, offset + bin_N, both)

    def mean(self, name: str, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> float:
        """The mean ``name`` so far over all processes; NaN when nothing was added."""
        total, count = reduce(self._sums[self._names.index(name)].clone()).tolist()
        return total / count if count else float("nan")

    def drain(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, Any]:
        """Every mean that has values, the calibration, and the tokens in total; then start over.

        Args:
            reduce: adds a tensor up over processes.
        """
        sums = reduce(self._sums.clone()).tolist()
        self._sums.zero_()
        means: dict[str, Any] = {
            name: total / count for name, (total, count) in zip(self._names, sums, strict=False) if count
        }
        if means:
            means["tokens"] = sums[self._names.index("tokens")][0]
        binned, other = sums[len(self._names) : len(self._names) + BINS], sums[len(self._names) + BINS :]
        if any(count for _, count in binned):
            means["calibration"] = [[b, o, n] for (b, n), (o, _) in zip(binned, other) if n]
            total = sum(n for _, n in binned)
            means["calibration_error"] = sum(abs(b - o) for (b, _), (o, _) in zip(binned, other)) / total
        return means


def bin_means(calibrations: list[list[list[float]]]) -> list[tuple[float, float, int]]:
    """``(mean of what is binned, mean of the other, count)`` by bin over the ``calibration`` of several log
    rows."""
    totals: dict[int, list[float]] = {}
    for calibration in calibrations:
        for binned, other, count in calibration:
            cell = totals.setdefault(min(int(binned / count * BINS), BINS - 1), [0.0, 0.0, 0.0])
            for i, value in enumerate((binned, other, count)):
                cell[i] += value
    return [(b / n, o / n, int(n)) for b, o, n in (totals[i] for i in sorted(totals))]


def _sum_and_count(values: Tensor) -> Tensor:
    values = values.detach().double()
    return torch.stack(
        [values.sum(), torch.tensor(values.numel(), dtype=torch.float64, device=values.device)]
    )


def means_of_last(steps: Sequence[tuple[int, Mapping[str, Any]]], count: int = 10) -> dict[str, float]:
    """The means of the numbers in the last ``count`` entries of a log of ``(step, metrics)``; of the
    validation, the last numbers."""
    numbers: dict[str, list[float]] = {}
    for _, metrics in steps[-count:]:
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "epoch":
                numbers.setdefault(name, []).append(value)
    means = {name: sum(values) / len(values) for name, values in numbers.items()}
    last = {k: v for k, v in steps[-1][1].items() if k.startswith("eval_") and isinstance(v, float)}
    return means | last
