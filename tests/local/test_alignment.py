"""Proof that it aligns: SmolLM2 on real prompts, through the whole pipeline, with DPO and with QRPO.

What was chosen, and why:

- The reward is graded and verifiable: ``target_length`` is best for answers of 80 characters that end by
  themselves. Characters hardly ever tie, also among answers cut at the token limit, and the best answer
  is not the empty one: a policy that collapses loses reward.
- Reference and aligned policy sample with the same seeds, so that most of the noise cancels in the
  difference; some 90 held-out prompts make the interval about 0.16 wide.
- DPO takes the best and the worst completion of a prompt. Sixteen steps at 3e-5 move the policy by about
  one nat a completion; at 1e-5 they do not show.
- QRPO takes all of them and needs them all: a completion between best and worst says little, so a step has
  half the signal of DPO's. It sees each completion once. In a second epoch the ones that it has seen have
  moved by many nats, far beyond its targets, and their squared errors are all that it learns from; a larger
  learning rate (5e-5) does the same within one epoch: three times the KL and less gain. With beta 0.2 the
  targets reach from -3.4 to 1.6 nats a completion: beta 0.5 asks for less than one, which the noise of so
  few steps drowns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubealign import Results, RunFile, quickstart, run_local
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import EVALUATION

EXACT = {"save_dtype": "float32"}
"""The policy's own bfloat16 would round away part of so few small steps."""
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {
        "select_strategy": "best_worst",
        "train_beta": 0.1,
        "train_learning_rate": 3e-5,
        "train_options": {"batch_size": 8, "max_steps": 16, "micro_batch_tokens": 4096, **EXACT},
    },
    "qrpo": {
        "select_strategy": "all",
        "train_beta": 0.2,
        "train_learning_rate": 2e-5,
        "train_epochs": 1.0,
        "train_options": {"batch_size": 16, "micro_batch_tokens": 4096, "max_grad_norm": 1.0, **EXACT},
    },
}


pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of both runs: the second one takes its completions and rewards from the first."""
    return tmp_path_factory.mktemp("alignment")


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_held_out_reward_rises(
    objective: str, output: Path, smollm2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run_local(RunFile(parameters=parameters(objective, smollm2)), output=output, name=objective)
    [evaluation] = [stage for stage in results.stages if stage.stage == "evaluate"]
    numbers = evaluation.numbers
    with capsys.disabled():
        show(objective, numbers, results)
    assert numbers["reward_gain_low"] > 0, "the 95 % interval of the held-out gain reaches below zero"
    assert numbers["reward_gain_low"] < numbers["reward_gain"] < numbers["reward_gain_high"]
    assert numbers["length_aligned"] > 8, "the policy collapsed to next to nothing"
    assert 0 < numbers["kl_per_completion"] < 40, "the policy did not move, or left its reference behind"


def parameters(objective: str, policy: Path) -> dict[str, Any]:
    return {
        "policy": str(policy),
        "sources": [
            {"name": "alpaca", "uri": str(quickstart.preferences() / "alpaca_en_demo.json"), "max_rows": 250}
        ],
        "reward_functions": [
            {
                "function": "kubealign_components.rewards.functions:target_length",
                "settings": {"target": 80, "finished": 0.5},
            }
        ],
        "validation_fraction": 0.4,
        "filter_max_seq_len": 512,
        "filter_max_prompt_len": 120,
        "sample_engine": "vllm",
        "sample_n": 4,
        "sample_max_new_tokens": 48,
        "sample_options": {"sampling": {"max_model_len": 256, "dtype": "float32"}},
        "train_objective": objective,
        "evaluate_max_prompts": 100,
        **OBJECTIVES[objective],
    }


def show(objective: str, numbers: dict[str, float], results: Results) -> None:
    """Numbers and texts, so that a collapse is seen as one."""
    print(f"\n{objective}")
    for name, value in numbers.items():
        print(f"  {name:24s} {value:.4g}")
    [path] = {
        output.path
        for output in results.outputs_of("system.Dataset")
        if output.metadata.get("schema") == EVALUATION
    }
    for row in list(Dataset.open(str(path), EVALUATION).iter_rows())[:3]:
        print(f"  prompt    {row['messages'][-120:]}")
        for side in ("reference", "aligned"):
            print(f"  {side:9s} {row[side][0]['messages'][:240]}")
