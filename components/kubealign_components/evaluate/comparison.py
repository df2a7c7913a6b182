"""Two policies on the same prompts: what changed, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kubealign_components.data.bootstrap import mean_numbers
from kubealign_components.evaluate.audit import findings

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """The completions of one policy for one prompt."""

    rewards: Floats | None
    """Shape (completions,); None without a reward."""
    lengths: Floats
    """Tokens, end-of-turn included, shape (completions,)."""
    truncated: int
    """How many were cut at max_new_tokens, those that were dropped for it included."""
    sampled: int
    """How many were sampled, those that were dropped as truncated included."""


def compare(reference: Sequence[Side], aligned: Sequence[Side], *, seed: int) -> dict[str, float]:
    """The numbers of an evaluation; a prompt counts once, however many completions it has.

    Args:
        reference: one side a prompt, at least two prompts.
        aligned: the same prompts, in the same order.
        seed: of the bootstrap.
    """
    lengths = [np.mean([side.lengths.mean() for side in sides]) for sides in (reference, aligned)]
    return {
        **_compare_rewards(reference, aligned, seed),
        "length_reference": float(lengths[0]),
        "length_aligned": float(lengths[1]),
        "length_ratio": float(lengths[1] / lengths[0]),
        "truncated_reference": _truncated(reference),
        "truncated_aligned": _truncated(aligned),
        "prompts": float(len(reference)),
    }


def _compare_rewards(reference: Sequence[Side], aligned: Sequence[Side], seed: int) -> dict[str, float]:
    """The numbers that go by rewards; none without them."""
    before, after = _rewards(reference), _rewards(aligned)
    if before is None or after is None:
        return {}
    means = [np.array([of_prompt.mean() for of_prompt in side]) for side in (before, after)]
    wins = np.array([win_rate(a, r) for r, a in zip(before, after, strict=True)])
    return {
        "reward_reference": float(means[0].mean()),
        "reward_aligned": float(means[1].mean()),
        **mean_numbers("reward_gain", means[1] - means[0], seed=seed),
        **mean_numbers("win_rate", wins, seed=seed),
    }


def _rewards(sides: Sequence[Side]) -> list[Floats] | None:
    """The rewards of each prompt's completions; None when they have none."""
    given = [side.rewards for side in sides if side.rewards is not None]
    return given if len(given) == len(sides) else None


def mean_difference(reference: Side, aligned: Side) -> float | None:
    """Mean aligned reward minus mean reference reward of a prompt; None without rewards."""
    if reference.rewards is None or aligned.rewards is None:
        return None
    return float(aligned.rewards.mean() - reference.rewards.mean())


def preference_accuracy(margins: Sequence[Floats], *, seed: int) -> dict[str, float]:
    """How often the aligned policy moved towards what people preferred; 0.5 is what no training gives.

    A labelled pair counts when the log-ratio log π(y|x) − log π_ref(y|x) of the chosen completion is above
    that of the rejected one, which is the implicit reward of DPO (Rafailov et al. 2023, section 5); ties
    count half. A prompt counts once, and the interval is bootstrapped over prompts;
    one prompt has none.

    Args:
        margins: of each prompt the differences of the log-ratios of its pairs, in nats.
        seed: of the bootstrap.
    """
    if not margins:
        return {}
    right = np.array([np.mean((of_prompt > 0) + 0.5 * (of_prompt == 0)) for of_prompt in margins])
    return {
        **mean_numbers("preference_accuracy", right, seed=seed),
        "preference_margin": float(np.mean([of_prompt.mean() for of_prompt in margins])),
        "preference_pairs": float(sum(len(of_prompt) for of_prompt in margins)),
    }


def win_rate(aligned: Floats, reference: Floats) -> float:
    """Share of (aligned, reference) pairs of one prompt in which the aligned reward is higher; ties half."""
    difference = aligned[:, None] - reference[None, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def kl_estimate(ratios: Sequence[Floats], tokens: int) -> dict[str, float]:
    """KL(aligned || reference) in nats from completions that the aligned policy sampled.

    The mean of log π(y|x) − log π_ref(y|x) over y from π: unbiased for the policy itself, that is for
    sampling at temperature 1 and top_p 1. A truncated completion counts with what it has. One prompt has no
    standard error.

    Args:
        ratios: of each prompt, the log-ratios of its completions in nats, shape (completions,).
        tokens: of all completions.
    """
    means = np.array([ratio.mean() for ratio in ratios])
    spread = {"kl_standard_error": float(means.std(ddof=1) / np.sqrt(len(means)))} if len(means) > 1 else {}
    return {
        "kl_per_completion": float(means.mean()),
        **spread,
        "kl_per_token": float(sum(ratio.sum() for ratio in ratios) / tokens),
        "kl_prompts": float(len(ratios)),
    }


def warnings(numbers: dict[str, float], *, dropped_truncated: bool = False) -> list[str]:
    """What in ``numbers`` looks like a collapse or a bias, in words.

    Args:
        numbers: of the evaluation, those of the audit among them.
        dropped_truncated: whether completions that were cut had been dropped.
    """
    texts = []
    if dropped_truncated and numbers["truncated_reference"] + numbers["truncated_aligned"] > 0:
        texts.append(
            f"{numbers['truncated_reference']:.0%} of the reference completions and "
            f"{numbers['truncated_aligned']:.0%} of the aligned ones were cut at max_new_tokens and dropped: "
            "rewards and lengths are those of the shorter ones that ended."
        )
    if numbers["length_ratio"] < 0.5:
        texts.append(
            f"The mean length fell from {numbers['length_reference']:.0f} to "
            f"{numbers['length_aligned']:.0f} tokens: read the texts for a collapse to short answers."
        )
    if numbers["length_ratio"] > 2:
        texts.append(
            f"The mean length rose from {numbers['length_reference']:.0f} to "
            f"{numbers['length_aligned']:.0f} tokens: read the texts for padding and repetition."
        )
    if numbers["truncated_aligned"] > numbers["truncated_reference"] + 0.2:
        texts.append(
            f"{numbers['truncated_aligned']:.0%} of the aligned completions were cut at max_new_tokens, "
            f"{numbers['truncated_reference']:.0%} of the reference's: the policy may not end its turns."
        )
    if numbers.get("kl_per_token", 0.0) > 1.0:
        texts.append(
            f"KL is {numbers['kl_per_token']:.2f} nats a token, "
            f"{numbers['kl_per_completion']:.0f} a completion: the policy has left the reference far "
            "behind; a higher beta or fewer steps keep it closer."
        )
    return [*texts, *findings(numbers)]


def _truncated(sides: Sequence[Side]) -> float:
    return sum(side.truncated for side in sides) / sum(side.sampled for side in sides)
