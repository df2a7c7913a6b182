"""PPO over two processes, and with rollouts by vLLM, gives what one process and transformers give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import build_tiny_model
from kubealign_components.data.dataset import Dataset
from kubealign_components.train.ppo.model import POLICY, Adapters, PpoModel
from kubealign_components.train.ppo.prompts import Turn
from kubealign_components.train.ppo.sampling import TransformersSampler, VllmSampler
from kubealign_components.train_ppo.stage import run
from ppo_support import ENDING, jolt, log_of, question, settings, tokenised_prompts, weights

pytestmark = pytest.mark.slow


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need no GPU or two")
def test_two_processes_are_one(
    make_dataset: Callable[..., Dataset], tiny_model: Path, tmp_path: Path
) -> None:
    """Over gloo: losses to 1e-4, however rollouts and passes are shared out."""
    prompts = tokenised_prompts(make_dataset, tiny_model, 160)
    config = settings(
        tiny_model,
        functions=(ENDING,),
        rollout_batch=25,
        step_batch=10,
        micro_batch_tokens=500,
        length_bonus_scale=5.0,
        stop_penalty=1.0,
        validation_fraction=0.1,
    )
    one, two = tmp_path / "one", tmp_path / "two"
    run(config, prompts=prompts, output=str(one))
    run(replace(config, processes=2), prompts=prompts, output=str(two))
    assert len(log_of(one)) == len(log_of(two)) == 3
    for alone, shared in zip(log_of(one), log_of(two)):
        assert shared == pytest.approx(alone, abs=1e-4, rel=1e-4)
    before = weights(tiny_model)
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(two)[name], weight, atol=1e-4, rtol=1e-3)
        if "proj" in name:
            assert (weight - before[name]).abs().max() > 1e-3
    assert Dataset.open(str(one)).manifest.fingerprint == Dataset.open(str(two)).manifest.fingerprint


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
