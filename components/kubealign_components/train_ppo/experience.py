"""From the rollouts of a step to what policy and value are trained on, and what is logged of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kubealign_components.train_ppo.config import PpoConfig
from kubealign_components.train_ppo.objectives import (
    advantages,
    explained_variance,
    masked_mean,
    shaped_rewards,
    token_kl,
    whiten,
)
from kubealign_components.train_ppo.rollouts import PARTS, Rollout


@dataclass(frozen=True, slots=True)
class Experience:
    """The rollouts of all processes, completions padded on the right: (B, L) each, fp32 on the CPU."""

    rollouts: Sequence[Rollout]
    mask_BL: Tensor
    """bool: real tokens."""
    logprob_BL: Tensor
    """Under the policy that sampled."""
    value_BL: Tensor
    """Before the step."""
    advantage_BL: Tensor
    """Whitened over all rollouts."""
    return_BL: Tensor
    metrics: dict[str, float]
    """Means over rollouts, and over tokens where the name says so."""

    def picked(self, name: str, numbers: Sequence[int]) -> Tensor:
        """The real tokens of some rollouts, one after the other, (M,)."""
        values_BL: Tensor = getattr(self, name)
        index = torch.tensor(list(numbers))
        return values_BL[index][self.mask_BL[index]]


def experience(rollouts: Sequence[Rollout], config: PpoConfig, coefficient: float) -> Experience:
    """Shape the rewards, estimate advantages and whiten them.

    Args:
        rollouts: measured and scored, of all processes.
        config: the settings.
        coefficient: weight of the KL penalty.
    """
    mask_BL = padded([[True] * len(r.completion) for r in rollouts], torch.bool)
    logprob_BL, reference_BL, value_BL, entropy_BL = (
        padded([getattr(r, name) for r in rollouts])
        for name in ("logprobs", "reference", "values", "entropy")
    )
    kl_BL = token_kl(logprob_BL, reference_BL, mask_BL, config.kl_estimator)
    score_B = torch.tensor([r.score for r in rollouts])
    reward_BL = shaped_rewards(kl_BL, score_B, mask_BL, coefficient)
    advantage_BL, return_BL = advantages(
        reward_BL, value_BL, mask_BL, gamma=config.gamma, lam=config.gae_lambda
    )
    plain_BL = token_kl(logprob_BL, reference_BL, mask_BL, "k1")
    metrics = {name: _mean([r.parts[name] for r in rollouts]) for name in PARTS}
    metrics |= {
        "score": float(score_B.mean()),
        "score_std": float(score_B.std(unbiased=False)),
        "total_reward": float(reward_BL.sum(1).mean()),
        "kl": float(plain_BL.sum(1).mean()),
        "kl_per_token": float(masked_mean(plain_BL, mask_BL)),
        "kl_penalty": coefficient * float(kl_BL.sum(1).mean()),
        "kl_coef": coefficient,
        "entropy_per_token": float(masked_mean(entropy_BL, mask_BL)),
        "value_explained_variance": float(explained_variance(value_BL, return_BL, mask_BL)),
        "completion_tokens": float(mask_BL.sum(1).float().mean()),
        "ended": _mean([float(r.ended) for r in rollouts]),
        "rollouts": float(len(rollouts)),
    }
    return Experience(
        rollouts=rollouts,
        mask_BL=mask_BL,
        logprob_BL=logprob_BL,
        value_BL=value_BL,
        advantage_BL=whiten(advantage_BL, mask_BL),
        return_BL=return_BL,
        metrics={k: v for k, v in metrics.items() if v == v},
    )


def padded(rows: Sequence[Sequence[float]], dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of different lengths, padded with 0 on the right, (B, L)."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=dtype)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
