"""What is measured of both policies: rewards, lengths, KL, and people's preferences among held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kubealign_components.data.chunks import Row
from kubealign_components.data.labels import preferred_pairs, verdicts_of
from kubealign_components.data.models import ModelFiles
from kubealign_components.evaluate.comparison import (
    Side,
    compare,
    kl_estimate,
    mean_difference,
    preference_accuracy,
)
from kubealign_components.progress import progress_bar

REFERENCE, ALIGNED = "reference", "aligned"
"""The two sides of a comparison, as the columns of ``kubealign.evaluation/v1`` are called."""
_PROMPTS_AT_ONCE = 32


def measure(
    rows: Sequence[Row],
    policy: ModelFiles,
    aligned: ModelFiles,
    *,
    kl_prompts: int,
    dtype: str,
    seed: int,
) -> dict[str, float]:
    """The numbers of the comparison, and each row's ``reward_difference``.

    Args:
        rows: held-out prompts with both sides' completions; the reference log-probabilities of aligned
            completions are filled in.
        policy: the reference policy.
        aligned: the aligned policy.
        kl_prompts: prompts on which KL is estimated.
        dtype: that both are scored in.
        seed: of the bootstraps.
    """
    reference, ours = [_side(row, REFERENCE) for row in rows], [_side(row, ALIGNED) for row in rows]
    for row, before, after in zip(rows, reference, ours, strict=True):
        row["reward_difference"] = mean_difference(before, after)
    numbers = compare(reference, ours, seed=seed)
    scored = [(row, row[ALIGNED]) for row in rows[:kl_prompts]]
    if scored:
        for (_, completions), values in zip(scored, _logprobs(policy, scored, dtype, "KL"), strict=True):
            for completion, value in zip(completions, values, strict=True):
                completion["logprob"] = value
        numbers |= kl_estimate([completions for _, completions in scored])
    return numbers | preference_accuracy(_margins(rows, policy, aligned, dtype), seed=seed)


def _margins(
    rows: Sequence[Row], policy: ModelFiles, aligned: ModelFiles, dtype: str
) -> list[NDArray[np.float64]]:
    """By prompt with labelled pairs, each pair's chosen log-ratio minus its rejected one, in nats."""
    labelled = [(row, [c for pair in labelled_completions(row) for c in pair]) for row in rows]
    asked = [(row, completions) for row, completions in labelled if completions]
    if not asked:
        return []
    before = _logprobs(policy, asked, dtype, "labels, reference")
    after = _logprobs(aligned, asked, dtype, "labels, aligned")
    ratios = [np.array(new) - np.array(old) for old, new in zip(before, after, strict=True)]
    return [of_prompt[::2] - of_prompt[1::2] for of_prompt in ratios]


def labelled_completions(row: Row) -> list[tuple[Row, Row]]:
    """The chosen and the rejected completion of each labelled pair of a prompt."""
    there = [c for c in row["completions"] if c["token_ids"]]
    chosen, rejected = preferred_pairs(verdicts_of(there), np.zeros(len(there), dtype=np.int64))
    return [(there[i], there[j]) for i, j in zip(chosen, rejected)]


def _logprobs(
    model: ModelFiles, asked: Sequence[tuple[Row, Sequence[Row]]], dtype: str, what: str
) -> list[list[float]]:
    """For each prompt the log-probabilities of the completions beside it under ``model``, in nats."""
    from kubealign_components.engines.packing import Group
    from kubealign_components.engines.scoring import Scorer

    groups = [Group(row["prompt_token_ids"], [c["token_ids"] for c in own]) for row, own in asked]
    values: list[list[float]] = []
    with (
        Scorer(model.path, dtype=dtype) as scorer,
        progress_bar(len(groups), "prompts", f"evaluate {what}") as bar,
    ):
        for start in range(0, len(groups), _PROMPTS_AT_ONCE):
            scored = scorer.score(groups[start : start + _PROMPTS_AT_ONCE])
            values += scored
            bar.update(len(scored))
    return values


def _side(row: Row, side: str) -> Side:
    completions = row[side]
    rewards = [c["reward"] for c in completions]
    return Side(
        rewards=None if None in rewards else np.array(rewards, dtype=np.float64),
        lengths=np.array([c["num_tokens"] for c in completions], dtype=np.float64),
        truncated=row[f"{side}_truncated"],
        sampled=row[f"{side}_sampled"],
    )
