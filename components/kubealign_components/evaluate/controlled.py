"""What is left of a gain at equal length, or whatever else can be seen of a text without understanding it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kubealign_components.data.bootstrap import bootstrap_intervals

Floats = NDArray[np.float64]
ENTANGLED = 0.02
"""Share of a feature's variation within prompts, beside what both policies differ by, below which rewards
cannot tell them apart."""
NORMAL = 1.959963984540054
"""Of a two-sided 95 % interval."""
STEPS = 50
"""Most Newton steps of the logistic regression."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OfPrompt:
    """A number of each completion to a prompt, by policy; arrays of shape (completions,)."""

    reference: Floats
    aligned: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number with its 95 % interval, bootstrapped over prompts."""

    value: float
    low: float
    high: float

    def numbers(self, name: str) -> dict[str, float]:
        """Flat numbers for the stats."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def interval_of(numbers: Mapping[str, float], name: str, form: str = "+.4f") -> str:
    """The 95 % interval of the number ``name``, in words."""
    return f"{numbers[f'{name}_low']:{form}} to {numbers[f'{name}_high']:{form}}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decomposition:
    """A gain, parted by a feature of the texts."""

    slope: Estimate
    """Of reward over the feature, within prompts and at equal policy."""
    by: Estimate
    """The part of the gain that goes with the feature's change."""
    beyond: Estimate
    """The gain at an equal feature."""


def decompose(rewards: Sequence[OfPrompt], feature: Sequence[OfPrompt], *, seed: int) -> Decomposition | None:
    """How much of the gain goes with a feature: analysis of covariance with a level of its own for every
    prompt and for either policy, in which prompts count alike, and either policy half in each.

    The slope is that of r = prompt + policy + slope · feature. Prompts that ask for long answers, and a
    policy that gives better ones, do not count as a reward of length. Then mean gain = slope · mean change +
    what the policy itself adds (Oaxaca 1973, Blinder 1973, with a pooled slope). It says what goes together,
    not what causes what.

    Args:
        rewards: of each prompt's completions.
        feature: of the same completions.
        seed: of the bootstrap.

    Returns:
        None where the feature varies with the policy alone, or not at all.
    """
    within = np.array([_within(r, x) for r, x in zip(rewards, feature, strict=True)])
    whole = _moments(within.mean(axis=0))
    if whole[2] <= 0 or whole[1] <= ENTANGLED * whole[2]:
        return None
    values = _parted(within.mean(axis=0))
    low, high = bootstrap_intervals(within, _parted, seed=seed)
    made = [Estimate(value=float(v), low=float(a), high=float(b)) for v, a, b in zip(values, low, high)]
    return Decomposition(slope=made[0], by=made[1], beyond=made[2])


def _within(reward: OfPrompt, feature: OfPrompt) -> list[float]:
    """Of a prompt: covariance and variance within policies, changes of feature and reward, and products."""
    sides = ((reward.reference, feature.reference), (reward.aligned, feature.aligned))
    both = sum(float(np.mean((r - r.mean()) * (x - x.mean()))) for r, x in sides)
    spread = sum(float(x.var()) for _, x in sides)
    gain = float(reward.aligned.mean() - reward.reference.mean())
    change = float(feature.aligned.mean() - feature.reference.mean())
    return [both, spread, change, gain, change * gain, change * change]


def _moments(means: Floats) -> tuple[Floats, Floats, Floats]:
    """Covariance and variance beside prompts and policies, and the variance beside prompts alone.

    Args:
        means: of what :func:`_within` gives, shape (…, 6).
    """
    both, spread, change, gain, product, square = np.moveaxis(means, -1, 0)
    covariance = both + (product - change * gain) / 2
    return covariance, spread + (square - change**2) / 2, spread + square / 2


def _parted(means: Floats) -> Floats:
    """Slope, the gain that goes with the feature and the rest of it, shape (…, 3)."""
    covariance, variance, _ = _moments(means)
    change, gain = means[..., 2], means[..., 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(variance > 0, covariance / variance, 0.0)
    return np.stack([slope, slope * change, gain - slope * change], axis=-1)


def length_controlled_win_rate(rewards: Sequence[OfPrompt], lengths: Sequence[OfPrompt]) -> Estimate | None:
    """How often the aligned policy would win were both answers equally long.

    The regression of Dubois et al. 2024 (arXiv 2404.04475), of the logit of a win on which policy wrote and
    on tanh(length difference / its standard deviation), with the length term at 0. Two answers of one
    policy are compared as well: they tell what length alone is worth, where the original takes that from
    many models. A tie is half a win, a prompt counts once, the interval is that of the sandwich estimator by
    prompt (Liang and Zeger 1986), and one tied prompt more than there are keeps the logits finite.

    Args:
        rewards: of each prompt's completions.
        lengths: of the same completions, in tokens.

    Returns:
        None where all answers are equally long.
    """
    scale = float(np.concatenate([_differences(x.aligned, x.reference) for x in lengths]).std())
    if not scale:
        return None
    duels = [_duels(r, x, scale) for r, x in zip(rewards, lengths, strict=True)]
    prompt = np.repeat(np.arange(len(duels)), [len(of_prompt) for of_prompt in duels])
    who, longer, won, weight = np.concatenate(duels).T
    logit, error = _logistic(np.stack([who, longer], axis=1), won, weight, prompt)
    rate, low, high = (_sigmoid(logit + sign * NORMAL * error) for sign in (0, -1, 1))
    return Estimate(value=float(rate), low=float(low), high=float(high))


def _differences(one: Floats, other: Floats) -> Floats:
    return (one[:, None] - other[None, :]).ravel()


def _duels(reward: OfPrompt, length: OfPrompt, scale: float) -> Floats:
    """Pairs of a prompt's answers: 1 where the policies differ, the length term, the outcome, the weight."""
    made = []
    for (one, other), policy in (
        (("aligned", "reference"), 1.0),
        (("aligned", "aligned"), 0.0),
        (("reference", "reference"), 0.0),
    ):
        won, longer = (_differences(getattr(of, one), getattr(of, other)) for of in (reward, length))
        outcome = (won > 0) + 0.5 * (won == 0)
        same = np.full(len(won), policy)
        made.append(
            np.stack([same, np.tanh(longer / scale), outcome, np.full(len(won), 1 / len(won))], axis=1)
        )
    return np.concatenate(made)


def _logistic(x: Floats, y: Floats, weight: Floats, group: NDArray[np.int64]) -> tuple[float, float]:
    """The first coefficient of a logistic regression without intercept, and its standard error by groups.

    Args:
        x: shape (n, k).
        y: outcomes from 0 to 1, shape (n,).
        weight: shape (n,).
        group: what an observation belongs to, shape (n,); ascending from 0.
    """
    x = np.concatenate([x, np.eye(x.shape[1])])  # the tied prompt
    y, weight = np.append(y, [0.5, 0.5]), np.append(weight, [1.0, 1.0])
    beta = np.zeros(x.shape[1])
    for _ in range(STEPS):
        p = _sigmoid(x @ beta)
        information = (x * (weight * p * (1 - p))[:, None]).T @ x
        step = np.linalg.solve(information, x.T @ (weight * (y - p)))
        beta += np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-9:
            break
    score = x * (weight * (y - _sigmoid(x @ beta)))[:, None]
    groups = int(group[-1]) + 1
    sums = np.stack([np.bincount(group, of, groups) for of in score[: len(group)].T], axis=1)
    inverse = np.linalg.inv(information)
    variance = inverse @ (sums.T @ sums) @ inverse * groups / max(groups - 1, 1)
    return float(beta[0]), float(np.sqrt(variance[0, 0]))


def _sigmoid(x: Floats | float) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))))
