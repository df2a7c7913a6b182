"""Proof that it aligns: SmolLM2 on real prompts, through the whole pipeline, with DPO and with QRPO.

What was chosen, and why:

- The reward is graded and verifiable: ``target_length`` is best for answers of 80 characters that end by
  themselves. Characters hardly ever tie, also among answers cut at the token limit, and the best answer
  is not the empty one: a policy that collapses loses reward.
- DPO learns from the best and worst of each prompt's samples. QRPO regresses on every sample (``all``):
  best and worst alone say nothing of the middle, and it has no partner to compare with.
- QRPO's β is 0.5. The policy it regresses to is the reference tilted by exp(q/β), so β = 0.5 already moves
  the mean quantile from 0.5 to 0.66, by log-ratios of under a nat, which some thirty steps can fit;
  with four references, inclusive quantiles average 0.625 against β·logZ = 0.58, so as much probability is
  pushed up as down. At β = 0.05 the targets run to −16 nats, everything is pushed down, and the policy is
  worse before it is better.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubealign import Results, RunFile, quickstart, run_local
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import EVALUATION

OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {
        "select_strategy": "best_worst",
        "train_beta": 0.1,
        "train_learning_rate": 3e-5,
        "train_options": {"batch_size": 8, "max_steps": 16, "micro_batch_size": 8},
    },
    "qrpo": {
        "select_strategy": "all",
        "logprobs_source": "sampler",
        "train_beta": 0.1,
        "train_learning_rate": 3e-5,
        "train_options": {"batch_size": 16, "max_steps": 16, "micro_batch_size": 16},
    },
}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder: the second run takes samples and rewards from the first."""
    return tmp_path_factory.mktemp("alignment")


@pytest.mark.model
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
            {"name": "alpaca", "uri": str(quickstart.preferences() / "alpaca_en_demo.json"), "max_rows": 110}
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
        "evaluate_max_prompts": 40,
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
