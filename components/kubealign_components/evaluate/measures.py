"""What is measured of both policies: rewards, lengths, KL, and people's preferences among held-out pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kubealign_components.data.labels import preferred_pairs, verdicts_of
from kubealign_components.data.models import ModelFiles, with_weights
from kubealign_components.data.schemas import Completion
from kubealign_components.evaluate.answers import ALIGNED, REFERENCE, ComparedPrompt
from kubealign_components.evaluate.audit import audit
from kubealign_components.evaluate.comparison import (
    Side,
    compare,
    kl_estimate,
    mean_difference,
    preference_accuracy,
)
from kubealign_components.progress import progress_bar

_PROMPTS_AT_ONCE = 32


def measure(
    prompts: Sequence[ComparedPrompt],
    policy: ModelFiles,
    aligned: ModelFiles,
    *,
    kl_prompts: int,
    dtype: str,
    seed: int,
    phrases: Sequence[str],
) -> dict[str, float]:
    """The numbers of the comparison, and each prompt's ``reward_difference``.

    Args:
        prompts: held out, with both sides' completions; the reference log-probabilities of aligned
            completions are filled in.
        policy: the reference policy.
        aligned: the aligned policy.
        kl_prompts: prompts on which KL is estimated.
        dtype: that both are scored in.
        seed: of the bootstraps.
        phrases: the stock phrases of the aligned policy.
    """
    reference, ours = ([_side(prompt, side) for prompt in prompts] for side in (REFERENCE, ALIGNED))
    for prompt, before, after in zip(prompts, reference, ours, strict=True):
        prompt.reward_difference = mean_difference(before, after)
    numbers = compare(reference, ours, seed=seed)
    numbers |= audit([prompt.evaluation_row() for prompt in prompts], phrases, seed=seed)
    if prompts[:kl_prompts]:
        numbers |= _kl(prompts[:kl_prompts], policy, dtype)
    return numbers | preference_accuracy(_margins(prompts, policy, aligned, dtype), seed=seed)


def _kl(prompts: Sequence[ComparedPrompt], policy: ModelFiles, dtype: str) -> dict[str, float]:
    """The KL of what the aligned policy sampled; fills in the reference log-probabilities."""
    answers = [prompt.completions(ALIGNED) for prompt in prompts]
    asked = [(prompt.row["prompt_token_ids"], own) for prompt, own in zip(prompts, answers)]
    for own, values in zip(answers, _logprobs(policy, asked, dtype, "KL"), strict=True):
        for completion, value in zip(own, values, strict=True):
            completion["logprob"] = value
    return kl_estimate(list(map(_log_ratios, answers)), sum(c["num_tokens"] for own in answers for c in own))


def _margins(
    prompts: Sequence[ComparedPrompt], policy: ModelFiles, aligned: ModelFiles, dtype: str
) -> list[NDArray[np.float64]]:
    """By prompt with labelled pairs, each pair's chosen log-ratio minus its rejected one, in nats."""
    labelled = [
        (row["prompt_token_ids"], [c for pair in labelled_completions(row["completions"]) for c in pair])
        for row in (prompt.row for prompt in prompts)
    ]
    asked = [(tokens, completions) for tokens, completions in labelled if completions]
    if not asked:
        return []
    before = _logprobs(policy, asked, dtype, "labels, reference")
    after = _logprobs(aligned, asked, dtype, "labels, aligned")
    ratios = [np.array(new) - np.array(old) for old, new in zip(before, after, strict=True)]
    return [of_prompt[::2] - of_prompt[1::2] for of_prompt in ratios]


def _log_ratios(completions: Sequence[Completion]) -> NDArray[np.float64]:
    """log π(y|x) − log π_ref(y|x) of what the aligned policy sampled, in nats, shape (completions,)."""
    sampled, reference = (
        np.array([c[name] for c in completions], dtype=np.float64) for name in ("sampler_logprob", "logprob")
    )
    return sampled - reference


def labelled_completions(completions: Sequence[Completion]) -> list[tuple[Completion, Completion]]:
    """The chosen and the rejected completion of each labelled pair of a prompt."""
    there = [c for c in completions if c["token_ids"]]
    chosen, rejected = preferred_pairs(verdicts_of(there), np.zeros(len(there), dtype=np.int64))
    return [(there[i], there[j]) for i, j in zip(chosen, rejected)]


def _logprobs(
    model: ModelFiles, asked: Sequence[tuple[list[int], Sequence[Completion]]], dtype: str, what: str
) -> list[list[float]]:
    """For the tokens of each prompt the log-probabilities of the completions beside them, in nats."""
    from kubealign_components.engines.packing import Group
    from kubealign_components.engines.scoring import Scorer

    groups = [Group(tokens, [c["token_ids"] for c in own]) for tokens, own in asked]
    values: list[list[float]] = []
    with (
        Scorer(with_weights(model).path, dtype=dtype) as scorer,
        progress_bar(len(groups), "prompts", f"evaluate {what}") as bar,
    ):
        for start in range(0, len(groups), _PROMPTS_AT_ONCE):
            scored = scorer.score(groups[start : start + _PROMPTS_AT_ONCE])
            values += scored
            bar.update(len(scored))
    return values


def _side(prompt: ComparedPrompt, side: str) -> Side:
    answers = prompt.sides[side]
    rewards = [c["reward"] for c in answers.completions]
    return Side(
        rewards=None if None in rewards else np.array(rewards, dtype=np.float64),
        lengths=np.array([c["num_tokens"] for c in answers.completions], dtype=np.float64),
        truncated=answers.truncated,
        sampled=answers.sampled,
    )
