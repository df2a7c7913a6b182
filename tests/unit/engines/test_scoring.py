"""The scorer: budgets and order, what it refuses, and how it names a bad row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, HyperCLOVAXConfig, HyperCLOVAXForCausalLM

from kubealign_components.engines.packing import Group
from kubealign_components.engines.scoring import Scorer, checked_logprob
from kubealign_components.errors import ConfigError, DataError, EngineError
from support.plain_forward import GROUPS, plain_sums


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=GROUPS, budget=st.integers(1, 60))
def test_the_budget_changes_nothing(
    plain: torch.nn.Module, tiny_model: Path, groups: list[Group], budget: int
) -> None:
    with Scorer(tiny_model, device="cpu", token_budget=budget) as scorer, torch.no_grad():
        sums = scorer.score(groups)
        for group, values in zip(groups, sums, strict=True):
            assert values == pytest.approx([float(s) for s in plain_sums(plain, group)], abs=1e-3)


def test_sums_come_in_the_order_of_the_groups(tiny_model: Path) -> None:
    short, long = Group([5], [[6, 7], [8]]), Group([5, 6, 7, 8, 9], [[10] * 20, [11, 12]])
    none = Group([5, 6], [])
    with Scorer(tiny_model, device="cpu", token_budget=12) as scorer:
        sums = scorer.score([short, none, long])
        assert [len(values) for values in sums] == [2, 0, 2]
        assert sums[0] == pytest.approx(scorer.score([short])[0], abs=1e-4)
        assert sums[2] == pytest.approx(scorer.score([long])[0], abs=1e-4)
        assert scorer.score([]) == []


def test_bfloat16_is_near_float32(tiny_model: Path) -> None:
    group = Group([5, 6], [list(range(10, 60)), [7, 8]])
    sums = {}
    for dtype in ("float32", "bfloat16"):
        with Scorer(tiny_model, dtype=dtype, device="cpu") as scorer:
            sums[dtype] = scorer.score([group])[0]
    assert sums["float32"] != sums["bfloat16"]
    assert sums["bfloat16"] == pytest.approx(sums["float32"], rel=0.02, abs=0.1)


def test_a_model_whose_head_is_not_reproduced_is_refused(tmp_path: Path) -> None:
    """It multiplies by what Granite divides by: only comparing with its plain forward can tell."""
    torch.manual_seed(0)
    config = HyperCLOVAXConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.5, logits_scaling=3.0,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    HyperCLOVAXForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="hyperclovax: packed and plain forward differ by"):
        Scorer(tmp_path, device="cpu")


def test_a_bad_row_is_named(tiny_model: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        model.get_input_embeddings().weight[250] = float("nan")
    model.save_pretrained(tmp_path)
    good, bad = Group([5, 6], [[7, 8]], "p1"), Group([5, 6], [[7], [250, 8]], "p2")
    with Scorer(tmp_path, device="cpu") as scorer:
        assert scorer.score([good])[0][0] < 0
        with pytest.raises(EngineError, match="completion 1 of prompt p2 has log-probability nan"):
            scorer.score([good, bad])
        with pytest.raises(DataError, match="completion without tokens"):
            scorer.score([Group([5], [[]])])


def test_a_probability_above_one_is_refused() -> None:
    assert checked_logprob(-0.5, "it") == -0.5
    assert checked_logprob(5e-4, "it") == 0.0, "a certain token, rounded"
    with pytest.raises(EngineError, match=r"it has log-probability 0\.01, a probability above one"):
        checked_logprob(0.01, "it")


def test_scorer_settings_are_checked(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype='int8'"):
        Scorer(tiny_model, dtype="int8")
    with pytest.raises(ConfigError, match="token_budget=0"):
        Scorer(tiny_model, token_budget=0)
    with pytest.raises(EngineError, match="cannot load"):
        Scorer(tmp_path)
