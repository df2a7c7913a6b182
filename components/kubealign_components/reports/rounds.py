"""Rounds of alignment side by side, each by what its evaluation showed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

GAIN = ("reward_gain_low", "reward_gain_high")
NUMBERS = ("reward_aligned", "reward_gain", *GAIN, "kl_per_completion", "length_ratio")
"""Of an evaluation: what a line is made of."""
COLUMNS = ("round", "reward", "gain", "95 % interval", "KL, nats", "length ratio")


def lines_of(rounds: Sequence[Mapping[str, float]]) -> list[list[str]]:
    """A line of :data:`COLUMNS` for the numbers of each round, the first one's first; an empty cell where an
    evaluation has no such number."""
    return [[str(position), *_cells(numbers)] for position, numbers in enumerate(rounds, start=1)]


def _cells(numbers: Mapping[str, float]) -> list[str]:
    cells = {name: f"{numbers[name]:.4g}" if name in numbers else "" for name in NUMBERS}
    low, high = (cells.pop(name) for name in GAIN)
    reward, gain, kl, length = cells.values()
    return [reward, gain, f"{low} to {high}" if low else "", kl, length]
