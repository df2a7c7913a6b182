"""Objectives against the published vectors, numeric integration, and TRL's own code."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kubealign_components.select.quantiles import quantile_rewards, rank_rewards
from kubealign_components.train.config import TRANSFORMS
from kubealign_components.training import objectives as obj
from kubealign_components.training.config import QUANTILE_RULES, least_references

# β·log Z of the identity transform, published in the reference (six decimals).
IDENTITY = {
    0.001: 0.993092,
    0.003: 0.982573,
    0.01: 0.953948,
    0.05: 0.850213,
    0.1: 0.769737,
    0.2: 0.676760,
    0.5: 0.580720,
    1: 0.541325,
    5: 0.508331,
}
# log(target) is what f approaches where it is largest: taken out so that the integrand stays in range.
TRANSFORM = {
    "identity": lambda t: t,
    "log": np.log,
    "sqrt": np.sqrt,
    "square": np.square,
}


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("beta", "expected"), IDENTITY.items())
def test_identity_matches_the_published_values(beta: float, expected: float) -> None:
    assert obj.beta_log_z(double(beta), "identity").item() == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize("transform", TRANSFORM)
@pytest.mark.parametrize("beta", [1e-3, 3e-3, 0.03, 0.1, 0.3, 0.999, 1.0, 1.001, 2.0, 10.0, 1e3])
def test_beta_log_z_is_the_integral(transform: str, beta: float) -> None:
    """∫₀¹ exp((f(t) − f(1))/β) dt by quadrature, with the mass near t = 1 resolved."""
    f = TRANSFORM[transform]
    edges = [0.0, *(1 - min(1.0, beta) * np.array([50, 5, 0.5]).clip(max=1 / min(1.0, beta))), 1.0]
    mass = sum(
        scipy.integrate.quad(lambda t: np.exp((f(t) - f(1.0)) / beta), a, b, epsabs=1e-15, epsrel=1e-13)[0]
        for a, b in pairwise(edges)
        if b > a
    )
    expected = f(1.0) + beta * math.log(mass)
    assert obj.beta_log_z(double(beta), transform).item() == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("beta", [0.2, 0.5, 1.0, 4.0])
def test_beta_log_z_of_the_normal_transform_is_the_integral(beta: float) -> None:
    """With u = Φ⁻¹(t) the integral is ∫ exp(u/β) φ(u) du."""
    mass, _ = scipy.integrate.quad(
        lambda u: np.exp(u / beta) * scipy.stats.norm.pdf(u), -40, 40, epsrel=1e-12
    )
    assert obj.beta_log_z(double(beta), "normal_icdf").item() == pytest.approx(
        beta * math.log(mass), rel=1e-9
    )


@given(beta=st.floats(1e-8, 1e8), transform=st.sampled_from(sorted(TRANSFORM)))
@settings(deadline=None)
def test_beta_log_z_lies_between_mean_and_maximum_of_f(beta: float, transform: str) -> None:
    """Jensen: E[f] ≤ β·log E[exp(f/β)] ≤ max f, which a cancellation or an overflow would break."""
    mean = {"identity": 1 / 2, "log": -1.0, "sqrt": 2 / 3, "square": 1 / 3}[transform]
    top = {"log": 0.0}.get(transform, 1.0)
    assert mean - 1e-9 <= obj.beta_log_z(double(beta), transform).item() <= top + 1e-12


@pytest.mark.parametrize(
    ("beta", "best", "worst"), [(0.1, 2.30, -7.70), (0.01, 4.61, -95.4), (0.003, 5.81, -327.5)]
)
def test_qrpo_loss_is_zero_at_the_published_log_ratios(beta: float, best: float, worst: float) -> None:
    exact = (double(1, 0) - obj.beta_log_z(double(beta), "identity")) / beta
    assert exact.tolist() == pytest.approx([best, worst], abs=0.06)
    loss = obj.qrpo_loss(exact, double(1, 0), double(6, 6), double(beta, beta), transform="identity")
    assert loss.tolist() == pytest.approx([0, 0], abs=1e-20)


def test_qrpo_loss_by_hand() -> None:
    loss = obj.qrpo_loss(double(2.0), double(0.3), double(10), double(0.1), transform="identity")
    assert loss.item() == pytest.approx((0.3 - 0.769737 - 0.2) ** 2, abs=1e-6)


def test_unbounded_transforms_clamp_the_quantile_to_what_n_references_resolve() -> None:
    assert obj.transform_quantile(double(0, 1), double(4, 4), "log").exp().tolist() == pytest.approx(
        [0.25, 1]
    )
    value = obj.transform_quantile(double(0, 1, 0.5), double(4, 4, 4), "normal_icdf")
    assert value.tolist() == pytest.approx(scipy.stats.norm.ppf([0.25, 0.75, 0.5]).tolist(), abs=1e-12)


@pytest.mark.parametrize("rule", QUANTILE_RULES)
@pytest.mark.parametrize("transform", ["log", "normal_icdf"])
def test_a_better_reference_has_a_larger_transform_under_every_rule(rule: str, transform: str) -> None:
    """Also with the fewest references allowed; mid-rank and leave-one-out quantiles all stay apart."""
    for n in range(least_references(transform, rule), 7):
        rewards, references = np.arange(n, dtype=float), np.ones(n, dtype=bool)
        ranks = rank_rewards(np.zeros(n, dtype=int), rewards, references)
        quantiles = torch.from_numpy(quantile_rewards(ranks, references, rule))
        value = obj.transform_quantile(quantiles, torch.full((n,), n), transform, rule)
        assert torch.isfinite(value).all()
        steps = value.diff()
        if rule == "inclusive" and transform == "normal_icdf":
            assert abs(float(steps[-1])) < 1e-12, "the published clamp"
            steps = steps[:-1]
        assert (steps > 0).all()


def test_mid_rank_references_are_transformed_as_they_are() -> None:
    """Ten of them lie at 0.05, …, 0.95: the published clamp to [0.1, 0.9] would move the outermost."""
    quantiles = (torch.arange(10, dtype=torch.float64) + 0.5) / 10
    value = obj.transform_quantile(quantiles, torch.full((10,), 10), "normal_icdf", "mid_rank")
    torch.testing.assert_close(torch.special.ndtr(value), quantiles)
    assert obj.transform_quantile(double(0.0), double(10), "normal_icdf", "mid_rank").isfinite().all()


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_implied_quantile_inverts_the_loss(transform: str) -> None:
    """Where the loss is zero, the policy implies the quantile it was trained on."""
    quantile, references, beta = double(0.2, 0.5, 0.9), double(10, 10, 10), double(0.05, 0.5, 2.0)
    f = obj.transform_quantile(quantile, references, transform)
    log_ratio = (f - obj.beta_log_z(beta, transform)) / beta
    assert obj.implied_quantile(log_ratio, beta, transform).tolist() == pytest.approx(
        quantile.tolist(), abs=1e-9
    )


def test_beta_per_token_is_clamped_only_on_request() -> None:
    length = torch.tensor([10, 500])
    free = obj.beta_per_completion(length, beta=5, length_normalise=True, beta_max=None)
    assert free.tolist() == pytest.approx([0.5, 0.01])
    held = obj.beta_per_completion(length, beta=5, length_normalise=True, beta_max=0.1)
    assert held.tolist() == pytest.approx([0.1, 0.01])


def test_rebel_regresses_reward_differences() -> None:
    """Zero where the log-ratio difference is the reward difference over β."""
    loss = obj.rebel_loss(double(3, 0), double(1, 0), double(1, 1), double(0.8, 0), beta=0.1)
    assert loss.tolist() == pytest.approx([0, 100], abs=1e-9)


def test_simpo_is_that_of_trl() -> None:
    cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    settings_of = SimpleNamespace(
        alpha=0.0,
        beta=2.5,
        simpo_gamma=0.7,
        loss_type="simpo",
        label_smoothing=0.1,
        accelerator=SimpleNamespace(device="cpu"),
    )
    chosen, rejected = torch.tensor([-40.0, -90.0, -3.0]), torch.tensor([-55.0, -20.0, -30.0])
    length_w, length_l = torch.tensor([30, 60, 5]), torch.tensor([25, 10, 20])
    # CPOTrainer hands averaged log-probabilities to this function when the loss is SimPO.
    expected, *_ = cpo.CPOTrainer.cpo_loss(settings_of, chosen / length_w, rejected / length_l)
    actual = obj.simpo_loss(chosen, rejected, length_w, length_l, beta=2.5, gamma=0.7, smoothing=0.1)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def trl_batch(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real ``DPOTrainer`` whose policy has moved away from its reference, and one of its batches."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy, reference = (AutoModelForCausalLM.from_pretrained(tiny_model) for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    rows = {
        "prompt": ["What is two and two?", "Say hi.", "Name a colour of the sky."],
        "chosen": ["Four.", "Hello there, friend!", "Blue"],
        "rejected": ["It is five, I believe.", "No", "I would rather not say anything about it."],
    }
    args = trl.DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), report_to=[], max_length=None, use_cpu=True, beta=0.1
    )
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        args=args,
        train_dataset=Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    return trainer, batch, _summed(policy, batch), _summed(reference, batch)


def _summed(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probability of every completion by a plain forward pass."""
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    token_logprob = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return (token_logprob * batch["completion_mask"][:, 1:]).sum(1)


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("loss_type", ["sigmoid", "sigmoid_norm", "ipo"])
def test_pairwise_losses_are_those_of_trl(trl_batch: Any, loss_type: str, beta: float) -> None:
    trainer, batch, policy, reference = trl_batch
    trainer.loss_types, trainer.beta = [loss_type], beta
    with torch.no_grad():
        expected = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    w, l = (policy - reference).chunk(2)  # noqa: E741
    lengths = batch["completion_mask"].sum(1).chunk(2)
    actual = {
        "sigmoid": lambda: obj.dpo_loss(w, l, beta=beta),
        "sigmoid_norm": lambda: obj.dpo_norm_loss(w, l, *lengths, beta=beta),
        "ipo": lambda: obj.ipo_loss(w, l, *lengths, beta=beta),
    }[loss_type]()
    assert len(actual) == 3
    torch.testing.assert_close(actual.mean(), expected, atol=1e-6, rtol=1e-6)


def test_smoothed_dpo_is_the_mixture_of_both_directions() -> None:
    w, l = double(3.0), double(-1.0)  # noqa: E741
    forward, backward = obj.dpo_loss(w, l, beta=0.5), obj.dpo_loss(l, w, beta=0.5)
    smoothed = obj.dpo_loss(w, l, beta=0.5, smoothing=0.2)
    assert smoothed.item() == pytest.approx((0.8 * forward + 0.2 * backward).item())
    assert obj.dpo_loss(double(0), double(0), beta=0.1).item() == pytest.approx(math.log(2))


def test_bradley_terry_by_hand() -> None:
    """−log σ(2 − 0.5 − 1) + 0.1·(2 + 0.5)², and ln 2 for equal scores."""
    chosen, rejected, margin = (double(v).reshape(1) for v in (2.0, 0.5, 1.0))
    loss = obj.bradley_terry_loss(chosen, rejected, margin, centring=0.1)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.5)) + 0.625)
    even = obj.bradley_terry_loss(chosen, chosen, 0 * margin)
    assert even.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("centring", [0.0, 0.3])
def test_scores_and_loss_of_packed_pairs_are_those_of_trl(
    tiny_model: Path, tmp_path: Path, centring: float
) -> None:
    """A real ``RewardTrainer``, which pads, on pairs with a common prefix, without one, and with margins."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from kubealign_components.train_reward_model.model import PairScores
    from kubealign_components.train_reward_model.pairs import pack_pairs

    def load() -> Any:
        torch.manual_seed(3)
        return AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)

    rows = [
        {"prefix": [*range(30, 50)], "chosen": [7, 8, 9], "rejected": [5], "margin": 0.0},
        {"prefix": [], "chosen": [7], "rejected": [*range(60, 90)], "margin": 1.5},
        {"prefix": [4], "chosen": [100, 101], "rejected": [102, 103], "margin": 0.2},
    ]
    examples = {
        **{f"{name}_ids": [row["prefix"] + row[name] for row in rows] for name in ("chosen", "rejected")},
        "margin": [row["margin"] for row in rows],
    }
    args = trl.RewardConfig(
        output_dir=str(tmp_path), report_to=[], max_length=None, use_cpu=True, bf16=False,
        center_rewards_coefficient=centring or None,
    )  # fmt: skip
    trainer = trl.RewardTrainer(
        model=load(),
        args=args,
        train_dataset=Dataset.from_dict(examples),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    with torch.no_grad():
        expected = trainer.compute_loss(trainer.model, batch)
        packed = pack_pairs(rows, 3)
        scores = PairScores(load())(packed)
    assert scores.shape == (3, 2) and scores.std() > 0.1
    loss = obj.bradley_terry_loss(*scores.unbind(1), packed.margin_P, centring=centring)
    torch.testing.assert_close(loss.mean(), expected, atol=1e-5, rtol=1e-5)
