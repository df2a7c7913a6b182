"""The steps of PPO that matter, as pure functions of tensors.

Shape suffixes: B rollouts, L tokens of the longest completion; ``_X`` is any shape. A ``mask`` is True
at the real tokens of a completion and False at padding, which never counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


def masked_mean(value_X: Tensor, mask_X: Tensor) -> Tensor:
    """Mean over the real tokens; 0 where there is none."""
    return value_X.where(mask_X, 0).sum() / mask_X.sum().clamp(min=1)


def masked_variance(value_X: Tensor, mask_X: Tensor) -> Tensor:
    """Unbiased variance over the real tokens; 0 where there are fewer than two."""
    centred_X = (value_X - masked_mean(value_X, mask_X)).where(mask_X, 0)
    return centred_X.square().sum() / (mask_X.sum() - 1).clamp(min=1)


def whiten(value_X: Tensor, mask_X: Tensor, *, shift: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Values with variance 1 over the real tokens, and mean 0 unless ``shift`` is False; 0 at padding.

    Over all processes when given the rollouts of all of them.
    """
    mean = masked_mean(value_X, mask_X)
    white_X = (value_X - mean) * (masked_variance(value_X, mask_X) + epsilon).rsqrt()
    return (white_X if shift else white_X + mean).where(mask_X, 0)


def token_kl(logprob_X: Tensor, reference_X: Tensor, mask_X: Tensor, estimator: str) -> Tensor:
    """Estimate of KL(policy ‖ reference) at each sampled token, in nats; 0 at padding.

    With r = log π − log π_ref: ``k1`` is r, unbiased; ``k1_clamped`` max(0, r), as published; ``k3``
    exp(−r) − 1 + r, unbiased and never negative (Schulman, Approximating KL Divergence, 2020).
    """
    ratio_X = logprob_X - reference_X
    if estimator == "k1_clamped":
        ratio_X = ratio_X.clamp(min=0)
    elif estimator == "k3":
        ratio_X = torch.expm1(-ratio_X) + ratio_X
    return ratio_X.where(mask_X, 0)


def shaped_rewards(kl_BL: Tensor, score_B: Tensor, mask_BL: Tensor, coefficient: float) -> Tensor:
    """Reward of each token: −coefficient · KL, and the rollout's score at its last real token, (B, L)."""
    rewards_BL = (-coefficient * kl_BL).where(mask_BL, 0)
    last_B1 = (mask_BL.sum(1, keepdim=True) - 1).clamp(min=0)
    scored_BL = torch.zeros_like(rewards_BL).scatter(1, last_B1, score_B[:, None].to(rewards_BL.dtype))
    return rewards_BL + scored_BL.where(mask_BL, 0)


def advantages(
    reward_BL: Tensor, value_BL: Tensor, mask_BL: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), and the returns.

    A completion ends at its last real token: nothing comes after it, and padding has no part in it.

    Args:
        reward_BL: of each token.
        value_BL: of the state before each token.
        mask_BL: real tokens; padding stands on the right.
        gamma: discount.
        lam: λ.

    Returns:
        advantages and returns (advantage + value), both (B, L), 0 at padding.
    """
    value_BL, reward_BL = value_BL.where(mask_BL, 0), reward_BL.where(mask_BL, 0)
    advantage_BL = torch.zeros_like(value_BL)
    following_B = torch.zeros_like(value_BL[:, 0])
    next_B = torch.zeros_like(following_B)
    for t in reversed(range(value_BL.shape[1])):
        delta_B = reward_BL[:, t] + gamma * next_B - value_BL[:, t]
        following_B = (delta_B + gamma * lam * following_B).where(mask_BL[:, t], 0)
        advantage_BL[:, t] = following_B
        next_B = value_BL[:, t]
    return advantage_BL, advantage_BL + value_BL


class Losses(NamedTuple):
    """Loss of each token, and whether clipping decided it."""

    loss_X: Tensor
    clipped_X: Tensor


def policy_loss(logprob_X: Tensor, old_X: Tensor, advantage_X: Tensor, *, clip: float) -> Losses:
    """−min(ratio · A, clip(ratio, 1 ± clip) · A) of each token (Schulman et al. 2017, eq. 7)."""
    ratio_X = (logprob_X - old_X).exp()
    plain_X = -ratio_X * advantage_X
    limited_X = -ratio_X.clamp(1 - clip, 1 + clip) * advantage_X
    return Losses(torch.maximum(plain_X, limited_X), limited_X > plain_X)


def value_loss(value_X: Tensor, old_X: Tensor, return_X: Tensor, *, clip: float) -> Losses:
    """½ max((V − R)², (V clipped to old ± clip − R)²) of each token."""
    plain_X = (value_X - return_X).square()
    kept_X = torch.maximum(torch.minimum(value_X, old_X + clip), old_X - clip)
    limited_X = (kept_X - return_X).square()
    return Losses(0.5 * torch.maximum(plain_X, limited_X), limited_X > plain_X)


def entropy(logits_XV: Tensor) -> Tensor:
    """Entropy of the softmax of the last dimension, in nats."""
    # Not by log_softmax, whose fp32 sum over a large vocabulary is biased on CPUs.
    logprobs_XV = logits_XV - logits_XV.logsumexp(-1, keepdim=True)
    return -(logprobs_XV.exp() * logprobs_XV).sum(-1)


def explained_variance(value_X: Tensor, return_X: Tensor, mask_X: Tensor) -> Tensor:
    """1 − Var(R − V) / Var(R): 1 for perfect values, 0 for a constant; NaN where returns do not vary."""
    total = masked_variance(return_X, mask_X)
    return 1 - masked_variance(return_X - value_X, mask_X) / total.where(total > 0, math.nan)


def length_bonus(
    tokens_B: Tensor, bonus_B: Tensor, *, max_new_tokens: int, scale: float, cap: float
) -> Tensor:
    """scale · min(cap, tokens / max_new_tokens · bonus), (B,): with a bonus below 0, long answers lose."""
    return scale * (tokens_B / max_new_tokens * bonus_B).clamp(max=cap)


def stop_penalty(ended_B: Tensor, *, penalty: float) -> Tensor:
    """−penalty for completions that did not end by themselves, else 0, (B,)."""
    return torch.where(ended_B, 0.0, -penalty)


@dataclass(slots=True)
class KlController:
    """The weight of the KL penalty: fixed, or following a target (Ziegler et al. 2019, section 2.2)."""

    coefficient: float
    target: float | None = None
    """Wanted KL of a completion in nats; None for a fixed coefficient."""
    horizon: float = 10.0
    """1 / K_β."""

    def update(self, kl: float) -> None:
        """Adapt to the ``kl`` of a step: β ← β (1 + K_β · clip(kl / target − 1, ±0.2))."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error / self.horizon
