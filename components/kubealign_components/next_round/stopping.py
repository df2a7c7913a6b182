"""Whether rounds of alignment go on: only while the one before is shown to be better than the one before it.

Both are compared on the same held-out prompts, by the difference of their mean rewards of each, the first one
with the policy that it started at. There are as many looks as rounds; the intervals hold for all of them at
once (Bonferroni), and with that for the one at which rounds stop: Jennison and Turnbull, Group Sequential
Methods with Applications to Clinical Trials (2000), chapter 12.
"""

from __future__ import annotations

import numpy as np

from kubealign_components.data.bounds import Floats, simultaneous_intervals
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import EvaluationRow
from kubealign_components.errors import DataError

_LEAST = 2
"""Prompts of which something can be said."""


def why_stop(evaluation: Dataset, earlier: Dataset | None, *, number: int, rounds: int, seed: int) -> str:
    """Why no round comes after the one of ``evaluation``, in words; empty where one does.

    Args:
        evaluation: ``kubealign.evaluation/v1`` of the last round, with a reward.
        earlier: that of the round before it; None where it was the first.
        number: of the last round.
        rounds: how many there are at most, each of which is looked at.
        seed: of the bootstrap.

    Raises:
        DataError: fewer than two held-out prompts are in both.
    """
    gains = _gains(evaluation, earlier)
    low, high = simultaneous_intervals(gains[None, :], seed=seed, among=rounds)
    if low[0] > 0:
        return ""
    than = f"round {number - 1}" if earlier is not None else "the first policy"
    return (
        f"round {number} is not shown to be better than {than}: on {len(gains)} held-out prompts its mean "
        f"reward differs by {gains.mean():+.4f}, {low[0]:+.4f} to {high[0]:+.4f} by an interval that holds "
        f"for all {rounds} rounds at once"
    )


def _gains(evaluation: Dataset, earlier: Dataset | None) -> Floats:
    """By how much the mean reward of each prompt differs, shape (prompts,)."""
    after = _means(evaluation, "aligned")
    start = _means(evaluation, "reference") if earlier is None else _means(earlier, "aligned")
    shared = [prompt for prompt in after if prompt in start]
    if len(shared) < _LEAST:
        raise DataError(
            f"{evaluation.uri}: {len(shared)} held-out prompts have answers of both policies, expected "
            f"{_LEAST} or more: raise validation_fraction, or import more prompts"
        )
    return np.array([after[prompt] - start[prompt] for prompt in shared])


def _means(evaluation: Dataset, side: str) -> dict[str, float]:
    """The mean reward of the completions of ``side``, by prompt; of a reward that all have."""
    means: dict[str, float] = {}
    for row in evaluation.iter_rows(of=EvaluationRow):
        completions = row["aligned"] if side == "aligned" else row["reference"]
        rewards = [c["reward"] for c in completions]
        if any(reward is None for reward in rewards):
            raise DataError(
                f"{evaluation.uri} has completions without a reward: expected one, by which rounds go on"
            )
        means[row["prompt_id"]] = float(np.mean(np.array(rewards, dtype=np.float64)))
    return means
