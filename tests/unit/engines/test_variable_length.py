"""Attention in one call, by a kernel as PyTorch documents it, against a call a segment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from kubealign_components.engines import variable_length
from kubealign_components.engines.packed_attention import SegmentPlan, segment_attention
from kubealign_components.engines.packing import Group, lay_out
from kubealign_components.engines.variable_length import Segment, difference, in_one_call, kernel_for
from support.plain_forward import GROUPS
from support.varlen import varlen_by_loops

CPU = torch.device("cpu")


def one_by_one(
    query: Tensor, key: Tensor, value: Tensor, segments: Sequence[Segment], window: int | None
) -> Tensor:
    plan = SegmentPlan(tuple(segments))
    return segment_attention(torch.nn.Identity(), query, key, value, None, plan=plan, sliding_window=window)[
        0
    ]


@settings(max_examples=30)
@given(groups=GROUPS)
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_one_call_is_a_call_for_each_segment(groups: list[Group], window: int | None, key_heads: int) -> None:
    tokens, _, segments = lay_out(groups)
    plan = SegmentPlan(tuple(segments))
    filled = len(tokens) + 3
    query, key, value = (torch.randn(1, heads, filled, 8) for heads in (4, key_heads, key_heads))
    output = in_one_call(query, key, value, plan.layout(CPU), varlen_by_loops, scaling=0.3, window=window)
    expected, _ = segment_attention(
        torch.nn.Identity(), query, key, value, None, plan=plan, scaling=0.3, sliding_window=window
    )
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    assert not output[:, len(tokens) :].any()


def test_gradients_of_shared_prompts_add_up() -> None:
    assert difference(varlen_by_loops, one_by_one, CPU, torch.float32, (4, 2, 8)) < 1e-5


def test_a_kernel_is_tried_while_nothing_else_has_gradients() -> None:
    """Scoring runs under inference mode, whose tensors autograd refuses."""
    with torch.inference_mode():
        assert difference(varlen_by_loops, one_by_one, CPU, torch.float32, (4, 2, 8)) < 1e-5


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (lambda *args, window_size, **named: varlen_by_loops(*args, window_size=(-1, 0), **named), "differs"),
        (lambda q, k, *args, **named: varlen_by_loops(q.flip(0), k, *args, **named), "differs"),
        (lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no kernel image")), "no kernel image"),
    ],
)
def test_a_kernel_that_is_wrong_on_a_device_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoilt: Callable[..., Tensor],
    reason: str,
) -> None:
    tried = partial(variable_length._tried.__wrapped__, CPU, torch.bfloat16, 4, 2, 8)
    monkeypatch.setattr(variable_length, "_flash_kernel", lambda: varlen_by_loops)
    assert tried(one_by_one) is varlen_by_loops
    monkeypatch.setattr(variable_length, "_flash_kernel", lambda: spoilt)
    with caplog.at_level(logging.WARNING):
        assert tried(one_by_one) is None
    assert reason in caplog.text


def test_want_of_memory_says_nothing_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(variable_length, "_flash_kernel", lambda: full)
    with pytest.raises(torch.OutOfMemoryError):
        variable_length._tried.__wrapped__(CPU, torch.bfloat16, 4, 2, 8, one_by_one)


def test_cpus_have_a_call_for_each_segment() -> None:
    query = torch.randn(1, 4, 5, 8, dtype=torch.bfloat16)
    assert kernel_for(query, query, one_by_one) is None


def test_the_kernel_of_pytorch_takes_what_it_is_given() -> None:
    """Its own refusal comes from where it runs, not from names or shapes of arguments."""
    plan = SegmentPlan(((0, 3, 3, 3), (0, 3, 3, 5)))
    query, key = torch.randn(1, 4, 5, 8).bfloat16(), torch.randn(1, 2, 5, 8).bfloat16()
    with pytest.raises(NotImplementedError, match=r"_flash_attention_forward.*CPU"):
        in_one_call(query, key, key, plan.layout(CPU), variable_length._flash_kernel(), window=2)
