"""The steps of PPO by hand, against SciPy, NumPy and TRL, and against what must hold for any numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from trl.trainer.utils import entropy_from_logits

from kubealign_components.train_ppo import objectives as steps
from kubealign_components.training.schedule import learning_rate_factor

NAN = float("nan")


def double(*rows: Any) -> Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.float64))


def mask(*lengths: int, longest: int) -> Tensor:
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


def test_means_and_variances_leave_padding_out() -> None:
    values, real = double([1, 2, NAN], [6, NAN, NAN]), mask(2, 1, longest=3)
    assert steps.masked_mean(values, real).item() == 3
    assert steps.masked_variance(values, real).item() == pytest.approx(np.var([1, 2, 6], ddof=1))
    nothing = torch.zeros_like(real)
    assert steps.masked_mean(values, nothing).item() == steps.masked_variance(values, nothing).item() == 0


def test_whitening_by_hand() -> None:
    """Of 1, 2 and 6: mean 3, variance 7."""
    values, real = double([1, 2, NAN], [6, NAN, NAN]), mask(2, 1, longest=3)
    white = steps.whiten(values, real)
    expected = [-2 / math.sqrt(7), -1 / math.sqrt(7), 3 / math.sqrt(7)]
    assert white[real].tolist() == pytest.approx(expected, abs=1e-7)
    assert white[~real].tolist() == [0, 0, 0]
    kept = steps.whiten(values, real, shift=False)
    assert kept[real].tolist() == pytest.approx([e + 3 for e in expected], abs=1e-7)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [0.5, -0.2]),
        ("k1_clamped", [0.5, 0.0]),
        ("k3", [math.exp(-0.5) - 1 + 0.5, math.exp(0.2) - 1 - 0.2]),
    ],
)
def test_kl_of_a_token_by_hand(estimator: str, expected: list[float]) -> None:
    kl = steps.token_kl(double([-1.0, -2.0, NAN]), double([-1.5, -1.8, 0]), mask(2, longest=3), estimator)
    assert kl[0].tolist() == pytest.approx([*expected, 0.0], abs=1e-12)


def test_k1_and_k3_are_unbiased_and_the_clamped_one_is_not() -> None:
    """Expectations over the policy's own tokens against KL(policy ‖ reference) in closed form."""
    policy, reference = double([0.5, 0.3, 0.2])[0], double([0.2, 0.3, 0.5])[0]
    true = float((policy * (policy / reference).log()).sum())
    found = {
        name: float((policy * steps.token_kl(policy.log(), reference.log(), policy > 0, name)).sum())
        for name in ("k1", "k3", "k1_clamped")
    }
    assert found["k1"] == pytest.approx(true, abs=1e-12)
    assert found["k3"] == pytest.approx(true, abs=1e-12)
    assert found["k1_clamped"] > true + 0.1


def test_the_score_stands_at_the_last_real_token() -> None:
    kl = double([0.1, 0.2, 0.3], [0.4, 9.0, 9.0])
    rewards = steps.shaped_rewards(kl, double(5.0, -1.0), mask(3, 1, longest=3), 0.5)
    assert rewards.tolist() == [pytest.approx([-0.05, -0.1, 4.85]), pytest.approx([-1.2, 0, 0])]


def test_advantages_by_hand() -> None:
    """γ = 0.5 and λ = 0.5 on two tokens; the second rollout has one, and NaN where it has none."""
    reward, value = double([1.0, 2.0], [3.0, NAN]), double([0.5, 1.0], [1.0, NAN])
    advantage, returns = steps.advantages(reward, value, mask(2, 1, longest=2), gamma=0.5, lam=0.5)
    last = 2.0 - 1.0
    first = (1.0 + 0.5 * 1.0 - 0.5) + 0.25 * last
    assert advantage.tolist() == [[first, last], [2.0, 0.0]]
    assert returns.tolist() == [[first + 0.5, last + 1.0], [3.0, 0.0]]


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.9, 1.0]), st.sampled_from([0.0, 0.95, 1.0]))
def test_advantages_are_the_filtered_errors(seed: int, gamma: float, lam: float) -> None:
    """δ filtered backwards with γλ, which SciPy does; whatever stands in the padding."""
    draw = np.random.default_rng(seed)
    length, longest = int(draw.integers(1, 9)), 9
    reward, value = draw.normal(size=(2, longest))
    advantage, _ = steps.advantages(
        double(reward), double(value), mask(length, longest=longest), gamma=gamma, lam=lam
    )
    following = np.append(value[1:length], 0.0)
    errors = reward[:length] + gamma * following - value[:length]
    expected = scipy.signal.lfilter([1], [1, -gamma * lam], errors[::-1])[::-1]
    assert advantage[0, :length].numpy() == pytest.approx(expected, abs=1e-9)
    assert not advantage[0, length:].any()


def test_without_discount_advantages_are_rewards_to_go_less_values() -> None:
    reward, value = double([-0.1, -0.2, 4.0]), double([1.0, 2.0, 3.0])
    advantage, returns = steps.advantages(reward, value, mask(3, longest=3), gamma=1, lam=1)
    assert returns[0].tolist() == pytest.approx([3.7, 3.8, 4.0])
    assert advantage[0].tolist() == pytest.approx([2.7, 1.8, 1.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.5, 2.0, -2.4, True),
        (0.5, 2.0, -1.0, False),
        (1.5, -2.0, 3.0, False),
        (0.5, -2.0, 1.6, True),
    ],
)
def test_policy_loss_by_hand(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    new = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    found = steps.policy_loss(new, double(0.0), double(advantage), clip=0.2)
    assert found.loss_X.item() == pytest.approx(loss)
    assert found.clipped_X.item() is clipped
    (gradient,) = torch.autograd.grad(found.loss_X.sum(), new)
    assert gradient.item() == pytest.approx(0.0 if clipped else -ratio * advantage)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "clipped"),
    [
        (1.1, 1.0, 2.0, 0.5 * 0.9**2, False),
        (1.9, 1.0, 2.0, 0.5 * 0.8**2, True),
        (0.0, 1.0, 2.0, 0.5 * 2.0**2, False),
    ],
)
def test_value_loss_by_hand(value: float, old: float, target: float, loss: float, clipped: bool) -> None:
    found = steps.value_loss(double(value), double(old), double(target), clip=0.2)
    assert found.loss_X.item() == pytest.approx(loss)
    assert found.clipped_X.item() is clipped


def test_entropy_is_that_of_trl() -> None:
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(steps.entropy(logits), entropy_from_logits(logits))
    assert steps.entropy(torch.zeros(4)).item() == pytest.approx(math.log(4))


def test_explained_variance() -> None:
    returns, real = double([1, 2, 3, NAN]), mask(3, longest=4)
    assert steps.explained_variance(returns, returns, real).item() == 1
    assert steps.explained_variance(double([2, 2, 2, 9]), returns, real).item() == 0
    assert math.isnan(steps.explained_variance(returns, double([2, 2, 2, 9]), real).item())


def test_length_bonus_as_published() -> None:
    """General prompts gain up to +4 for long answers, reasoning prompts lose down to −2."""
    tokens, bonus = torch.tensor([0, 512, 1024, 1024]), torch.tensor([1.0, 1.0, 1.0, -0.4])
    found = steps.length_bonus(tokens, bonus, max_new_tokens=1024, scale=5.0, cap=0.8)
    assert found.tolist() == pytest.approx([0, 2.5, 4.0, -2.0])


def test_stop_penalty() -> None:
    assert steps.stop_penalty(torch.tensor([True, False]), penalty=6.0).tolist() == [0, -6]


def test_learning_rate() -> None:
    factors = [learning_rate_factor(step, steps=6, warmup=2, schedule="cosine") for step in range(6)]
    assert factors == pytest.approx([0.5, 1, 1, 0.5 * (1 + math.cos(math.pi / 4)), 0.5, 0.14644661])
    assert learning_rate_factor(3, steps=6, warmup=2, schedule="linear") == 0.75
    assert learning_rate_factor(5, steps=6, warmup=0, schedule="constant") == 1
    assert learning_rate_factor(0, steps=1, warmup=5, schedule="cosine") == 0.2


def test_the_kl_controller_follows_its_target() -> None:
    fixed = steps.KlController(0.1)
    fixed.update(100.0)
    assert fixed.coefficient == 0.1
    controller = steps.KlController(0.1, target=6.0, horizon=10.0)
    controller.update(6.6)  # a tenth over the target
    assert controller.coefficient == pytest.approx(0.1 * 1.01)
    controller.update(600.0)  # the error counts 0.2 at most
    assert controller.coefficient == pytest.approx(0.1 * 1.01 * 1.02)
    controller.update(0.0)
    assert controller.coefficient == pytest.approx(0.1 * 1.01 * 1.02 * 0.98)
