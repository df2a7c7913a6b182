"""Packed log-probabilities against plain transformers forwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from kubealign_components.engines.packing import Group, LogprobModel, pack, prepare, summed_logprobs
from kubealign_components.engines.scoring import Scorer
from kubealign_components.errors import ConfigError, DataError, EngineError

TOKENS = st.lists(st.integers(3, 200), min_size=1, max_size=12)
GROUPS = st.lists(st.builds(Group, TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=5)


def plain_sums(model: torch.nn.Module, group: Group) -> list[torch.Tensor]:
    """Row at a time, whole vocabulary, log-softmax: what every trainer does."""
    sums = []
    for completion in group.completions:
        ids = torch.tensor([[*group.prompt, *completion]])
        logprobs = model(ids).logits[0].float().log_softmax(-1)
        start = len(group.prompt) - 1
        rows = logprobs[start : start + len(completion)]
        sums.append(rows.gather(1, torch.tensor(completion)[:, None]).sum())
    return sums


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def packed(tiny_model: Path) -> torch.nn.Module:
    return prepare(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=GROUPS)
def test_any_pack_equals_the_plain_forward(
    plain: torch.nn.Module, packed: torch.nn.Module, groups: list[Group]
) -> None:
    with torch.no_grad():
        sums = summed_logprobs(packed, pack(groups))
        expected = torch.stack([s for group in groups for s in plain_sums(plain, group)])
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, expected, atol=1e-4, rtol=1e-5)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=GROUPS, budget=st.integers(1, 60))
def test_the_budget_changes_nothing(
    plain: torch.nn.Module, tiny_model: Path, groups: list[Group], budget: int
) -> None:
    with Scorer(tiny_model, device="cpu", token_budget=budget) as scorer, torch.no_grad():
        sums = scorer.score(groups)
        for group, values in zip(groups, sums, strict=True):
            assert values == pytest.approx([float(s) for s in plain_sums(plain, group)], abs=1e-3)


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


def test_a_sliding_window_shorter_than_a_sequence_is_refused() -> None:
    config = MistralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=4, max_position_embeddings=64,
    )  # fmt: skip
    model = prepare(MistralForCausalLM(config))
    with torch.no_grad():
        assert torch.isfinite(summed_logprobs(model, pack([Group([1, 2], [[3, 4]])]))).all()
        with pytest.raises(EngineError, match="sliding window of 4"):
            summed_logprobs(model, pack([Group([1, 2, 3], [[3, 4]])]))


def test_a_broken_model_is_named(tiny_model: Path) -> None:
    model = prepare(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32))
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
        with pytest.raises(EngineError, match="log-probability nan"):
            summed_logprobs(model, pack([Group([1], [[2]])]))


def test_scorer_settings_are_checked(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype='int8'"):
        Scorer(tiny_model, dtype="int8")
    with pytest.raises(ConfigError, match="token_budget=0"):
        Scorer(tiny_model, token_budget=0)
    with pytest.raises(EngineError, match="cannot load"):
        Scorer(tmp_path)


@pytest.mark.model
def test_smollm2_on_real_pairs(smollm2: Path, preference_rows: list[dict[str, object]]) -> None:
    """Summed log-probabilities of real text within 1e-3 nats of the plain fp32 forward."""
    from kubealign_components.data.chat import ChatTemplate
    from kubealign_components.data.models import find_model

    template = ChatTemplate(find_model(str(smollm2)))
    groups = []
    for row in preference_rows:
        messages = [{"role": "user", "content": row["conversations"][0]["value"]}]  # type: ignore[index]
        answers = [row["chosen"]["value"], row["rejected"]["value"]]  # type: ignore[index]
        texts = [[{"role": "assistant", "content": a}] for a in answers]
        group = Group(template.prompt_ids(messages), [template.completion_ids(messages, t) for t in texts])
        if group.tokens < 400 and len(groups) < 6:
            groups.append(group)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    with torch.no_grad(), Scorer(smollm2, dtype="float32", device="cpu", token_budget=1000) as scorer:
        sums = scorer.score(groups)
        for group, values in zip(groups, sums, strict=True):
            assert values == pytest.approx([float(s) for s in plain_sums(model, group)], abs=1e-3)
