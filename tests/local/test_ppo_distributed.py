"""PPO with rollouts by vLLM gives what transformers gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kubealign_components.train_ppo.model import POLICY, Adapters, PpoModel
from kubealign_components.train_ppo.prompts import Turn
from kubealign_components.train_ppo.sampling import TransformersSampler, VllmSampler
from support.ppo import jolt, question, settings
from support.tiny import build_tiny_model

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("default")  # vLLM warns in its own and its libraries' name
def test_vllm_samples_with_the_adapter_as_it_is_now(tmp_path: Path) -> None:
    """Near-greedy samples of vLLM and transformers agree before and after the adapter changes."""
    pytest.importorskip("vllm")
    base = build_tiny_model(tmp_path / "base", hidden=256)  # vLLM has no attention for heads of 8
    sizes = {"max_new_tokens": 8, "max_prompt_tokens": 32}
    config = settings(base, engine="vllm", temperature=0.01, memory_fraction=0.3, **sizes)
    model = PpoModel(config, base, Adapters(), torch.device("cpu"))
    prompts = [(1, 50), (1, 60, 61, 62, 63, 64), (1, 70, 71), (1, 80, 81, 82)]
    turns = [Turn(replace(question(), token_ids=ids), str(i)) for i, ids in enumerate(prompts)]
    ours, theirs = TransformersSampler(config, model, base), VllmSampler(config, model, base)
    try:
        before = theirs.sample(turns)
        assert before == ours.sample(turns)
        jolt(model, POLICY)
        after = theirs.sample(turns)
        assert after == ours.sample(turns)
        assert after != before
    finally:
        theirs.close()
