"""The head: exact sums over large vocabularies, its own backward pass, and bounded memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from kubealign_components.engines import head as module
from kubealign_components.engines.head import Head, chosen_logprobs

WORDS = 262_144


class Base(nn.Module):
    """What PEFT wraps: a layer, and the head, which is ``own`` where one is given."""

    def __init__(self, own: nn.Linear | None = None) -> None:
        super().__init__()
        self.inner, self.lm_head = nn.Linear(8, 8), own or nn.Linear(8, 101)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.lm_head(hidden)
        return result


def model(head: Any, **settings: Any) -> Any:
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


@pytest.mark.parametrize("held", [torch.bfloat16, torch.float32])
def test_what_tensor_cores_multiply_is_rounded_once(
    monkeypatch: pytest.MonkeyPatch, held: torch.dtype
) -> None:
    """As on CUDA under bfloat16: inputs are rounded, products, sums and logits are not; a stand-in for CUDA's
    product has exact ones, and autograd through fp64 the expected gradients."""
    multiply = torch.mm

    def mm(one: Any, other: Any, *, out_dtype: torch.dtype | None = None, **options: Any) -> Any:
        assert out_dtype is None or (one.dtype, other.dtype) == (torch.bfloat16, torch.bfloat16)
        exact = (one.float(), other.float()) if out_dtype else (one, other)
        return multiply(*exact, **options)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(module, "_multiplied_in", lambda *_: torch.bfloat16)
    monkeypatch.setattr(module, "HEAD_BYTES", 4 * 64 * 25)
    torch.manual_seed(0)
    own = nn.Linear(16, 101).to(held)
    hidden = (4 * torch.randn(70, 16)).to(held).requires_grad_()
    targets, weights = torch.randint(101, (70,)), torch.randn(70)
    logits = hidden.bfloat16().double() @ own.weight.bfloat16().double().t() + own.bias.double()
    expected = chosen_logprobs(logits, targets)
    logprobs = Head(model(own)).logprobs(hidden, targets)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected.float(), atol=1e-5, rtol=1e-5)
    inputs = [hidden, *own.parameters()]
    for one, other in zip(
        torch.autograd.grad((logprobs * weights).sum(), inputs),
        torch.autograd.grad((expected * weights.double()).sum(), inputs),
        strict=True,
    ):
        assert one.dtype == held
        torch.testing.assert_close(one, other, atol=0.02, rtol=0.02)


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


def adapted(own: nn.Linear, *, rank: int = 4, **settings: Any) -> Any:
    """The head ``own`` under PEFT, with an adapter that changes something."""
    peft = get_peft_model(Base(own), LoraConfig(target_modules=["lm_head"], r=rank, **settings))
    for name, weight in peft.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3)
    return peft


def head_of(peft: Any, **settings: Any) -> Head:
    return Head(model(peft.base_model.model.lm_head, **settings))


@pytest.mark.parametrize("scalings", [{}, {"logit_scale": 0.3, "final_logit_softcapping": 2.0}])
@pytest.mark.parametrize("kind", [{}, {"use_rslora": True}, {"lora_dropout": 0.5}])
@pytest.mark.parametrize("bias", [False, True])
def test_an_adapter_on_the_head_is_what_peft_computes_in_fp32(
    monkeypatch: pytest.MonkeyPatch, bias: bool, kind: dict[str, Any], scalings: dict[str, Any]
) -> None:
    """Values and gradients of both matrices and the hidden states, against autograd through PEFT's layer."""
    monkeypatch.setattr(module, "HEAD_BYTES", 4 * 64 * 25)
    torch.manual_seed(0)
    peft = adapted(nn.Linear(8, 101, bias=bias), lora_alpha=12, **kind).eval()
    head = head_of(peft, **scalings)
    hidden, targets = torch.randn(70, 8, requires_grad=True), torch.randint(101, (70,))
    wanted = [hidden, *(w for w in peft.parameters() if w.requires_grad)]
    assert len(wanted) == 3
    raw = peft(hidden) * scalings.get("logit_scale", 1.0)
    cap = scalings.get("final_logit_softcapping")
    expected = chosen_logprobs(torch.tanh(raw / cap) * cap if cap else raw, targets)
    weights = torch.randn(70)
    expected_grads = torch.autograd.grad((expected * weights).sum(), wanted)
    for found in (head.logprobs(hidden, targets), chosen_logprobs(head(hidden), targets)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        for one, other in zip(
            torch.autograd.grad((found * weights).sum(), wanted), expected_grads, strict=True
        ):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    few = [7, 100, 3]
    torch.testing.assert_close(head.only(few, hidden), head(hidden)[:, few], atol=1e-6, rtol=1e-6)


def test_an_adapted_half_head_is_multiplied_in_fp32() -> None:
    torch.manual_seed(0)
    own = nn.Linear(16, 101, bias=False).bfloat16()
    peft, targets = adapted(own, lora_alpha=12).eval(), torch.randint(101, (24,))
    hidden = 4 * torch.randn(24, 16).bfloat16()
    layer = peft.base_model.model.lm_head
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = head_of(peft).logprobs(hidden, targets)
    down, up = (each["default"].weight.double() for each in (layer.lora_A, layer.lora_B))
    whole = own.weight.double() + 3 * up @ down
    exact = (hidden.double() @ whole.t()).log_softmax(1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-5)


def test_which_adapters_of_a_head_count() -> None:
    """Those that act: none while they are off or merged, and a whole head that PEFT trains in its place."""
    torch.manual_seed(0)
    own = nn.Linear(8, 101, bias=False)
    peft = adapted(own, lora_alpha=12).eval()
    peft.add_adapter("other", LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False))
    hidden, targets = torch.randn(9, 8), torch.randint(101, (9,))

    def check() -> torch.Tensor:
        with torch.no_grad():
            found = head_of(peft).logprobs(hidden, targets)
            torch.testing.assert_close(found, chosen_logprobs(peft(hidden), targets), atol=1e-5, rtol=1e-5)
        return found

    seen = [check()]
    peft.set_adapter("other")
    seen.append(check())
    peft.base_model.set_adapter(["default", "other"])
    seen.append(check())
    with peft.disable_adapter():
        seen.append(check())
    assert torch.equal(seen[-1], Head(model(own)).logprobs(hidden, targets))
    assert len({float(one[0]) for one in seen}) == 4
    peft.merge_adapter()
    torch.testing.assert_close(check(), seen[2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_an_adapter_of_another_kind_computes_its_own_logits(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    peft = adapted(nn.Linear(8, 101), lora_alpha=12, **settings).eval()
    hidden, targets = torch.randn(9, 8, requires_grad=True), torch.randint(101, (9,))
    head = head_of(peft)
    assert not head.plain
    expected = chosen_logprobs(peft(hidden), targets)
    wanted = [hidden, *(w for w in peft.parameters() if w.requires_grad)]
    found = head.logprobs(hidden, targets)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(
        torch.autograd.grad(found.sum(), wanted), torch.autograd.grad(expected.sum(), wanted), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_head_that_peft_trains_whole_is_the_matrix_it_trains() -> None:
    torch.manual_seed(0)
    peft = get_peft_model(Base(), LoraConfig(target_modules=["inner"], modules_to_save=["lm_head"]))
    own = peft.base_model.model.lm_head
    nn.init.normal_(own.modules_to_save["default"].weight)
    head = head_of(peft)
    assert head.plain
    assert head.linear is own.modules_to_save["default"]
    with peft.disable_adapter():
        assert head_of(peft).linear is own.original_module
