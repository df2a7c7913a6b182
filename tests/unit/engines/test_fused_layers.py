"""Kernels stay in a model where they give what its layers give, and nowhere else; on CPUs, so with stand-ins
for Liger's (with the real ones: test_on_gpu.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations import liger
from transformers.models.llama import modeling_llama

from kubealign_components.engines import fused_layers
from kubealign_components.engines.fused_layers import fuse_layers

IDS = torch.arange(5, 25)[None]
OWN_ROTATION = modeling_llama.apply_rotary_pos_emb
OWN_NORM = modeling_llama.LlamaRMSNorm


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(fused_layers, "is_liger_kernel_available", lambda: True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    yield LlamaForCausalLM(config).train()
    modeling_llama.apply_rotary_pos_emb, modeling_llama.LlamaRMSNorm = OWN_ROTATION, OWN_NORM


def norms_times(factor: float, model: Any, _: object) -> None:
    """Kernels for norms, rotation and the class of norms, as Liger puts them in."""
    modeling_llama.apply_rotary_pos_emb = lambda *_, **__: pytest.fail("the kernel of a card, on a CPU")
    modeling_llama.LlamaRMSNorm = type("NormOfKernels", (OWN_NORM,), {})
    for module in model.modules():
        if type(module) is OWN_NORM:
            module.row_mode = None
            module.forward = MethodType(lambda self, x: factor * OWN_NORM.forward(self, x), module)


def failing(model: Any, config: object) -> None:
    norms_times(1.0, model, config)
    raise RuntimeError("no such kernel")


def hidden(model: Any) -> torch.Tensor:
    return model.get_decoder()(input_ids=IDS).last_hidden_state[0]


def fused(model: Any, apply: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liger, "apply_liger_kernel", apply)
    fuse_layers(model, partial(hidden, model), torch.float32)


def test_kernels_that_agree_stay_in_this_model_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = hidden(model)
    fused(model, partial(norms_times, 1.001), monkeypatch)
    assert 0 < float((hidden(model) - own).norm() / own.norm()) < 0.01
    assert model.training
    assert all(m.row_mode for m in model.modules() if type(m) is OWN_NORM)
    assert modeling_llama.LlamaRMSNorm is OWN_NORM
    assert modeling_llama.apply_rotary_pos_emb.__wrapped__ is OWN_ROTATION
    other = LlamaForCausalLM(model.config)
    other.load_state_dict(model.state_dict())
    assert torch.equal(hidden(other), own)


@pytest.mark.parametrize(
    ("apply", "why"),
    [
        (partial(norms_times, 1.5), "differ from the model's own by"),
        (failing, "RuntimeError: no such kernel"),
    ],
)
def test_kernels_that_differ_or_fail_are_taken_out_again(
    model: Any,
    apply: Callable[..., None],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = hidden(model)
    fused(model, apply, monkeypatch)
    assert torch.equal(hidden(model), own)
    assert modeling_llama.apply_rotary_pos_emb is OWN_ROTATION
    assert modeling_llama.LlamaRMSNorm is OWN_NORM
    (record,) = caplog.records
    assert why in record.getMessage() and "llama" in record.getMessage()
    fused(model, lambda *_: pytest.fail("tried twice"), monkeypatch)


def test_models_with_code_of_their_own_keep_their_layers(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def untouched(*_: object) -> torch.Tensor:
        pytest.fail("its layers are not transformers'")

    monkeypatch.setattr(liger, "apply_liger_kernel", untouched)
    own = hidden(model)
    fuse_layers(torch.nn.Sequential(model), untouched, torch.float32)
    assert torch.equal(hidden(model), own)
