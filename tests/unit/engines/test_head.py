"""The head: exact sums over large vocabularies, its own backward pass, and bounded memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kubealign_components.engines import head as module
from kubealign_components.engines.head import Head, chosen_logprobs

WORDS = 262_144


def model(head: nn.Linear, **settings: Any) -> Any:
    """What a :class:`Head` looks at of a model."""
    config = SimpleNamespace(vocab_size=head.out_features, **settings)
    return SimpleNamespace(
        config=SimpleNamespace(get_text_config=lambda: config), get_output_embeddings=lambda: head
    )


def test_a_large_vocabulary_is_summed_without_bias() -> None:
    """24 tokens over 262,144 words: fp32 ``log_softmax`` is off by 1e-3 nats on a CPU."""
    torch.manual_seed(0)
    logits, targets = torch.randn(24, WORDS), torch.randint(WORDS, (24,))
    exact = float(logits.double().log_softmax(1).gather(1, targets[:, None]).sum())
    assert float(chosen_logprobs(logits, targets).double().sum()) == pytest.approx(exact, abs=5e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_weights_are_multiplied_in_fp32(autocast: bool) -> None:
    """Logits rounded to bfloat16 would be off by tenths of a nat on 24 tokens."""
    torch.manual_seed(0)
    own = nn.Linear(16, 5000, bias=False).bfloat16()
    hidden, targets = 4 * torch.randn(24, 16).bfloat16(), torch.randint(5000, (24,))
    exact = (hidden.double() @ own.weight.double().t()).log_softmax(1).gather(1, targets[:, None]).sum()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        head = Head(model(own))
        assert float(head.logprobs(hidden, targets).sum()) == pytest.approx(float(exact), abs=1e-4)
        assert float(chosen_logprobs(head(hidden), targets).sum()) == pytest.approx(float(exact), abs=1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "scalings", [{}, {"logits_scaling": 3.0}, {"logit_scale": 0.3, "final_logit_softcapping": 2.0}]
)
def test_gradients_are_those_of_a_plain_head(
    monkeypatch: pytest.MonkeyPatch, bias: bool, scalings: dict[str, Any]
) -> None:
    """In blocks of 16 words and tiles of 64 rows, against autograd through all logits at once."""
    monkeypatch.setattr(module, "HEAD_BYTES", 4 * 64 * 25)
    torch.manual_seed(0)
    own = nn.Linear(8, 101, bias=bias)
    head = Head(model(own, **scalings))
    hidden, targets = torch.randn(70, 8, requires_grad=True), torch.randint(101, (70,))
    weights = torch.randn(70)
    wanted = [hidden, *own.parameters()]
    expected = chosen_logprobs(head(hidden), targets)
    found = head.logprobs(hidden, targets)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), wanted),
        torch.autograd.grad((expected * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_no_matrix_is_larger_than_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 rows over 60,000 words, 48 MB of logits, never more than 1 MB is made at a time."""
    monkeypatch.setattr(module, "HEAD_BYTES", 2**20)
    own = nn.Linear(8, 60_000, bias=False)
    hidden = torch.randn(200, 8, requires_grad=True)
    made: list[int] = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape != own.weight.shape:
                made.append(result.numel() * result.element_size())
            return result

    with Sizes():
        Head(model(own)).logprobs(hidden, torch.randint(60_000, (200,))).sum().backward()
    assert 2**19 < max(made) <= 2**20
