"""Training objectives: pure functions from log-probabilities, or scores, to losses.

Names end in the shape of the tensor: ``C`` one entry a completion, ``P`` one a pair (``_w`` its
chosen, ``_l`` its rejected completion). A *log-ratio* is log π_θ(y|x) − log π_ref(y|x), summed over
the tokens of y, in nats. Every loss comes back unreduced.

Departures from the published code:

* QRPO's β·log Z is exact for every β and transform (the code uses 1 + β·log β, which is 0.07 too
  high at β = 0.5 and 8.5 at β = 5), and β is clamped only when ``beta_max`` says so (the code clamps
  to 0.1 always).
* IPO averages log-ratios over tokens, as TRL does after talking to its authors; the paper sums.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.special
import torch
import torch.nn.functional as F
from torch import Tensor

from kubealign_components.training.config import INCLUSIVE

_POWERS = {"identity": 1.0, "sqrt": 0.5, "square": 2.0}
# Terms of a series in 1/β ≤ 1; the 25th is below 1e-25 of the first.
_SERIES_TERMS = 25


def dpo_loss(log_ratio_w_P: Tensor, log_ratio_l_P: Tensor, *, beta: float, smoothing: float = 0.0) -> Tensor:
    """DPO (Rafailov et al. 2023, eq. 7); with ``smoothing`` its conservative form.

    Args:
        log_ratio_w_P: log-ratio of the chosen completion.
        log_ratio_l_P: log-ratio of the rejected completion.
        beta: strength of the pull to the reference, per nat.
        smoothing: probability that a preference is the wrong way round, in [0, 0.5).
    """
    return _logistic(beta * (log_ratio_w_P - log_ratio_l_P), smoothing)


def dpo_norm_loss(
    log_ratio_w_P: Tensor,
    log_ratio_l_P: Tensor,
    length_w_P: Tensor,
    length_l_P: Tensor,
    *,
    beta: float,
    smoothing: float = 0.0,
) -> Tensor:
    """DPO on log-ratios per token (Tulu 3, arXiv 2411.15124, section 5.1.2; TRL's ``sigmoid_norm``)."""
    return _logistic(beta * (log_ratio_w_P / length_w_P - log_ratio_l_P / length_l_P), smoothing)


def ipo_loss(
    log_ratio_w_P: Tensor, log_ratio_l_P: Tensor, length_w_P: Tensor, length_l_P: Tensor, *, beta: float
) -> Tensor:
    """IPO (Azar et al. 2023, eq. 17) on log-ratios per token; ``beta`` is the paper's τ."""
    return (log_ratio_w_P / length_w_P - log_ratio_l_P / length_l_P - 1 / (2 * beta)) ** 2


def simpo_loss(
    logprob_w_P: Tensor,
    logprob_l_P: Tensor,
    length_w_P: Tensor,
    length_l_P: Tensor,
    *,
    beta: float,
    gamma: float,
    smoothing: float = 0.0,
) -> Tensor:
    """SimPO (Meng et al. 2024, eq. 6): reference-free, on log-probabilities per token.

    Args:
        logprob_w_P: summed log-probability of the chosen completion under the policy, nats.
        logprob_l_P: the same of the rejected completion.
        length_w_P: tokens of the chosen completion.
        length_l_P: tokens of the rejected completion.
        beta: scale of the reward, per nat and token; the paper uses 2 to 10.
        gamma: target reward margin γ.
        smoothing: as in :func:`dpo_loss`.
    """
    return _logistic(beta * (logprob_w_P / length_w_P - logprob_l_P / length_l_P) - gamma, smoothing)


def rebel_loss(
    log_ratio_w_P: Tensor, log_ratio_l_P: Tensor, reward_w_P: Tensor, reward_l_P: Tensor, *, beta: float
) -> Tensor:
    """REBEL (Gao et al. 2024, eq. 9): regress the log-ratio difference on the raw reward difference."""
    return ((reward_w_P - reward_l_P) / beta - (log_ratio_w_P - log_ratio_l_P)) ** 2


def kto_loss(
    log_ratio_C: Tensor,
    desirable_C: Tensor,
    reference_point: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """KTO (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8): pointwise, on what people called good or bad.

    Args:
        log_ratio_C: log-ratio of each completion.
        desirable_C: bool; whether it was called good.
        reference_point: z₀ ≥ 0, nats: the KL divergence from the reference, see
            :class:`kubealign_components.train.kto.Mismatches`. No gradient goes through it.
        beta: per nat.
        desirable_weight: λ_D, factor of the good ones' losses.
        undesirable_weight: λ_U, factor of the bad ones'.
    """
    sign_C = torch.where(desirable_C, 1.0, -1.0).to(log_ratio_C.dtype)
    weight_C = torch.where(desirable_C, desirable_weight, undesirable_weight).to(log_ratio_C.dtype)
    return weight_C * (1 - torch.sigmoid(beta * sign_C * (log_ratio_C - reference_point.detach())))


def qrpo_loss(
    log_ratio_C: Tensor,
    quantile_C: Tensor,
    references_C: Tensor,
    beta_C: Tensor,
    *,
    transform: str,
    rule: str = INCLUSIVE,
) -> Tensor:
    """QRPO (Matrenok et al. 2025, arXiv 2507.08068, eq. 11): (f(q) − β·log Z − β·l)², pointwise.

    Args:
        log_ratio_C: l, the log-ratio of each completion.
        quantile_C: q, its quantile reward in [0, 1].
        references_C: n, the number of reference rewards behind q.
        beta_C: β of each completion, from :func:`beta_per_completion`.
        transform: one of :data:`kubealign_components.training.config.TRANSFORMS`.
        rule: how q was counted, one of :data:`kubealign_components.training.config.QUANTILE_RULES`.
    """
    value_C = transform_quantile(quantile_C, references_C, transform, rule)
    target_C = value_C - beta_log_z(beta_C, transform)
    return (target_C.to(log_ratio_C.dtype) - beta_C.to(log_ratio_C.dtype) * log_ratio_C) ** 2


def beta_per_completion(
    length_C: Tensor, *, beta: float, length_normalise: bool, beta_max: float | None
) -> Tensor:
    """β of each completion, fp64: ``beta``, or ``beta`` per token, at most ``beta_max`` when given."""
    beta_C = torch.full_like(length_C, beta, dtype=torch.float64)
    if length_normalise:
        beta_C = beta_C / length_C
    return beta_C if beta_max is None else beta_C.clamp(max=beta_max)


def transform_quantile(
    quantile_C: Tensor, references_C: Tensor, transform: str, rule: str = INCLUSIVE
) -> Tensor:
    """f(q) in fp64.

    Where f is unbounded, q is held off the edges by what n references can resolve under the ``rule``. The
    inclusive one gives them 1/n, …, 1, so the published code holds q in [1/n, (n−1)/n]. The others count
    ties half: mid-rank references lie in [1/2n, 1 − 1/2n], where nothing is changed, and what beats or
    loses to all, 0 or 1, is held there. All of it grows with q, given :func:`.config.least_references`.
    """
    q_C, n_C = quantile_C.double(), references_C.double()
    edge_C = 1 / n_C if rule == INCLUSIVE else 0.5 / n_C
    if transform == "log":
        return torch.maximum(q_C, edge_C).log()
    if transform == "normal_icdf":
        return torch.special.ndtri(torch.clamp(q_C, edge_C, 1 - edge_C))
    return q_C ** _POWERS[transform]


def implied_quantile(log_ratio_C: Tensor, beta_C: Tensor, transform: str) -> Tensor:
    """The quantile at which the policy is where QRPO wants it: f⁻¹(β·l + β·log Z), within [0, 1], fp64."""
    value_C = beta_C.double() * log_ratio_C.double() + beta_log_z(beta_C, transform)
    if transform == "log":
        return value_C.exp().clamp(0, 1)
    if transform == "normal_icdf":
        return torch.special.ndtr(value_C)
    return value_C.clamp(0, 1) ** (1 / _POWERS[transform])


def beta_log_z(beta_C: Tensor, transform: str) -> Tensor:
    """β·log Z with Z = ∫₀¹ exp(f(t)/β) dt, exact to fp64 rounding for every β > 0.

    Z needs no samples because the quantile reward of a reference completion is uniform on (0, 1)
    (paper, table 1). Above β = 1 the closed forms of the powers cancel, and their series converges
    fast: Z = 1 + Σₖ (1/β)ᵏ / (k!·(pk + 1)) for f(t) = tᵖ.

    Returns:
        fp64, of the shape and on the device of ``beta_C``.
    """
    beta = beta_C.double()
    if transform == "log":
        return -beta * torch.log1p(1 / beta)
    if transform == "normal_icdf":
        return 1 / (2 * beta)
    # The branch that is not taken must not overflow, so it is computed at β = 1.
    small, large = beta.clamp(max=1.0), beta.clamp(min=1.0)
    return torch.where(beta < 1, _closed_form(small, transform), _series(large, _POWERS[transform]))


def _closed_form(beta: Tensor, transform: str) -> Tensor:
    """β·log Z for β ≤ 1, with exp(1/β) taken out so that nothing overflows."""
    decay = torch.exp(-1 / beta)
    if transform == "identity":
        return 1 + beta * beta.log() + beta * torch.log1p(-decay)
    if transform == "sqrt":
        return 1 + beta * (2 * beta).log() + beta * ((1 - beta) + beta * decay).log()
    dawson = torch.from_numpy(np.asarray(scipy.special.dawsn(beta.rsqrt().cpu().numpy()))).to(beta.device)
    return 1 + beta * (0.5 * beta.log() + dawson.log())


def _series(beta: Tensor, power: float) -> Tensor:
    """β·log Z for β ≥ 1."""
    terms = (beta.pow(-k) / (math.factorial(k) * (power * k + 1)) for k in range(_SERIES_TERMS, 0, -1))
    return beta * torch.log1p(sum(terms, torch.zeros_like(beta)))


def bradley_terry_loss(
    reward_w_P: Tensor, reward_l_P: Tensor, margin_P: Tensor, *, centring: float = 0.0
) -> Tensor:
    """−log σ(r_w − r_l − m), the negative log-likelihood of a Bradley-Terry model.

    The margin m is that of Llama 2 (arXiv 2307.09288, eq. 2). Pairs say nothing of where 0 lies, so a
    reward model's scores may drift; ``centring`` adds c·(r_w + r_l)² (Eisenstein et al. 2023, arXiv
    2312.09244, eq. 2).

    Args:
        reward_w_P: score of the preferred completion.
        reward_l_P: score of the other one.
        margin_P: m, by how much the first score should be above the second; 0 for none.
        centring: c, 0 for none; published experiments use 0.01.
    """
    loss_P = -F.logsigmoid(reward_w_P - reward_l_P - margin_P)
    return loss_P + centring * (reward_w_P + reward_l_P) ** 2 if centring else loss_P


def _logistic(margin_P: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * F.logsigmoid(margin_P) - smoothing * F.logsigmoid(-margin_P)
