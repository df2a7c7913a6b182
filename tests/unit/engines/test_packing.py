"""Packed log-probabilities against plain transformers forwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from transformers import AutoConfig, AutoModelForCausalLM

from kubealign_components.engines.packing import Group, LogprobModel, pack, prepare, summed_logprobs
from kubealign_components.errors import DataError, EngineError
from support.plain_forward import GROUPS, plain_sums


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def packed(tiny_model: Path) -> torch.nn.Module:
    return prepare(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=GROUPS)
def test_any_pack_equals_the_plain_forward(
    plain: torch.nn.Module, packed: torch.nn.Module, groups: list[Group]
) -> None:
    with torch.no_grad():
        sums = summed_logprobs(packed, pack(groups))
        expected = torch.stack([s for group in groups for s in plain_sums(plain, group)])
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, expected, atol=1e-4, rtol=1e-5)


def test_gradients_equal_the_plain_forward(tiny_model: Path) -> None:
    group = Group([5, 9, 7], [[11, 12, 2], [40, 2], [11, 12, 13, 2]])
    one = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    other = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    weights = torch.tensor([1.0, -2.0, 0.5])
    (LogprobModel(one)(pack([group])) * weights).sum().backward()
    (torch.stack(plain_sums(other, group)) * weights).sum().backward()
    for name, parameter in one.named_parameters():
        expected = other.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5, rtol=1e-4, msg=name)


def test_checkpointed_layers_give_the_same_gradients(tiny_model: Path) -> None:
    batch = pack([Group([5, 9, 7], [[11, 12, 2], [40, 2]])])
    grads = []
    for checkpointing in (False, True):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        LogprobModel(model)(batch).sum().backward()
        grads.append(model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_bfloat16_forward_keeps_fp32_sums(tiny_model: Path) -> None:
    model = prepare(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16))
    with torch.no_grad():
        sums = summed_logprobs(model, pack([Group([5, 6], [list(range(10, 200))])]))
    assert sums.dtype == torch.float32
    assert float(sums) != float(sums.bfloat16()), "a bf16 sum would sit on a grid of whole nats"


def test_lengths_and_owners() -> None:
    batch = pack([Group([5, 6], [[7], [8, 9]]), Group([4], [[3, 3, 3]])])
    assert batch.lengths().tolist() == [1, 2, 3]
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 4, 3, 3, 3]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 3, 0, 1, 2, 3]]
    assert batch.predictors.tolist() == [1, 1, 3, 5, 6, 7]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        pytest.param(Group([], [[1]]), "prompt without tokens", id="empty prompt"),
        pytest.param(Group([1], [[]]), "completion without tokens", id="empty completion"),
        pytest.param(Group([1], []), "no completion", id="no completion"),
    ],
)
def test_nothing_to_score_is_said(group: Group, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pack([group])


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
# What the families of decoders do to attention and head: windows, scalings, caps, mixtures, positions.
FAMILIES = {
    "mistral": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "gemma3_text": {"sliding_window": 6, "head_dim": 8, "final_logit_softcapping": 5.0},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 3.0},
    "gpt2": {},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "phi3": {"partial_rotary_factor": 0.5},
    "llama": {"rope_parameters": DYNAMIC, "max_position_embeddings": 16},  # as long as the longest text
}
# What they do that packing does not reproduce, and what the error says of it.
REFUSED = {
    "bloom": ({}, "attention cannot be replaced"),
    "falcon": ({"alibi": True}, "ALiBi"),
    "gemma2": ({"head_dim": 8}, "soft-caps its attention"),
    "gpt_oss": ({"num_local_experts": 2, "num_experts_per_tok": 1}, "adds s_aux"),
    "llama": (
        {"rope_parameters": DYNAMIC, "max_position_embeddings": 12},
        r"\(dynamic\).*more than 12 tokens",
    ),
    "phi3": (
        {"rope_parameters": LONG, "original_max_position_embeddings": 12},
        r"\(longrope\).*more than 12 tokens, and one has 16",
    ),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "conv layers"),
    "nemotron": ({}, "was not told the pack's segments"),
    "phimoe": ({"sliding_window": 6, "num_local_experts": 2}, "do not pass on their sliding window of 6"),
    "recurrent_gemma": ({"lru_width": 16}, "carries a state"),
}
FAMILY_GROUPS = [
    Group([5, 9, 7, 8, 30, 4, 17, 9, 21], [[11, 12, 2, 40, 41], [40, 2], [11, 12, 13, 14, 15, 16, 2]]),
    Group([33, 6], [[9, 8, 10]]),
]


def family(name: str, **settings: Any) -> torch.nn.Module:
    """A small random model of a family."""
    sizes = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "initializer_range": 0.5, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **(sizes | settings))).float().eval()


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_families_equal_their_plain_forward(name: str) -> None:
    model = family(name, **FAMILIES[name])
    with torch.no_grad():
        expected = torch.stack([s for group in FAMILY_GROUPS for s in plain_sums(model, group)])
        sums = summed_logprobs(prepare(model), pack(FAMILY_GROUPS))
    torch.testing.assert_close(sums, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_packed_is_refused_by_name(name: str) -> None:
    settings, message = REFUSED[name]
    model = family(name, **settings)
    with torch.no_grad(), pytest.raises(EngineError, match=message):
        summed_logprobs(prepare(model), pack(FAMILY_GROUPS))


def test_adapters_count(tiny_model: Path) -> None:
    """A PEFT-wrapped model scores with its adapters, and only they get gradients."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    group = Group([5, 9, 7], [[11, 12, 2], [40, 2]])
    expected = torch.stack(plain_sums(model, group))
    sums = LogprobModel(model)(pack([group]))
    torch.testing.assert_close(sums, expected, atol=1e-4, rtol=1e-5)
    with torch.no_grad(), model.disable_adapter():
        assert not torch.allclose(summed_logprobs(model, pack([group])), sums, atol=1e-2)
    sums.sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        n for n, p in model.named_parameters() if "lora_" in n
    }


def test_a_broken_model_is_named(tiny_model: Path) -> None:
    model = prepare(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32))
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
        batch = pack([Group([1], [[2]])])
        with pytest.raises(EngineError, match="completion 0 of the pack has log-probability nan"):
            summed_logprobs(model, batch)
        with pytest.raises(EngineError, match="this one has log-probability nan"):
            summed_logprobs(model, batch, ["this one"])
