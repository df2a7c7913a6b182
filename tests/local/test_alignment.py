"""Proof that it aligns: SmolLM2 on real prompts, in two rounds of DPO, and by QRPO on the same samples.

What was chosen, and why:

- The reward is that of short answers, which a policy of 135M parameters learns from few of them. It is a
  reward of length alone, so the audit has to refuse what it gains.
- Prompts ask for one word: about half of the answers have ended after sixteen tokens, and stages take longer
  to start than to compute.
- Reference and aligned policy sample with the same seeds: most of the noise cancels in the difference.
- DPO takes the best and the worst completion of a prompt, QRPO takes all of them and needs them all: a
  completion between best and worst says little. It sees each completion once: in a second epoch the ones that
  it has seen have moved by many nats, far beyond its targets, and their squared errors teach it nothing.
- A step of QRPO has 32 completions: with the noise of 16, twice the steps gain half as much. With beta 0.1
  the targets reach further than with 0.2, which so few steps come nowhere near.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kubealign import Results, RunFile, quickstart, run_local
from kubealign.errors import RunFailed
from kubealign.local.results import StageRow
from kubealign_components.data.slices import KEY

pytestmark = [pytest.mark.model, pytest.mark.timeout(2400)]

EXACT = {"save_dtype": "float32"}
"""The policy's own bfloat16 would round away part of so few small steps."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Another file is tested at the same time, and threads that wait for a core take its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of all runs: later ones take completions and rewards from the first."""
    return tmp_path_factory.mktemp("again")


@pytest.fixture(scope="module")
def two(output: Path, smollm2: Path) -> Results:
    """Two rounds."""
    return run_local(RunFile(parameters=parameters(smollm2, rounds=2)), output=output, name="two")


def test_the_held_out_reward_rises_from_round_to_round(
    two: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (row.numbers for row in evaluations(two))
    with capsys.disabled():
        show(first, second)
    assert first["prompts"] == second["prompts"]
    assert 0 < first["reward_gain_low"] < second["reward_gain_low"]
    assert first["reward_gain"] < second["reward_gain"]
    assert all(0 < numbers["kl_per_completion"] < 40 for numbers in (first, second))
    assert second["same_answer_aligned"] < 0.5, "the policy collapsed to one answer"


def test_qrpo_raises_it_with_the_samples_of_the_first_round(
    two: Results, output: Path, smollm2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = parameters(
        smollm2,
        select_strategy="all",
        train_objective="qrpo",
        train_beta=0.1,
        train_learning_rate=2e-5,
        train_options={"batch_size": 32, "max_steps": 5, "warmup_ratio": 0.0, "max_grad_norm": 1.0, **EXACT},
    )
    results = run_local(RunFile(parameters=asked), output=output, name="qrpo")
    [row] = evaluations(results)
    with capsys.disabled():
        show(row.numbers)
    assert row.numbers["prompts"] == evaluations(two)[0].numbers["prompts"]
    assert row.numbers["reward_gain_low"] > 0, "the 95 % interval of the held-out gain reaches below zero"
    assert row.numbers["reward_gain_low"] < row.numbers["reward_gain"] < row.numbers["reward_gain_high"]
    assert 0 < row.numbers["kl_per_completion"] < 40, "the policy did not move, or left its reference behind"
    assert sampled(output) == dict.fromkeys(sampled(output), 1)


def test_the_audit_refuses_a_run_whose_reward_is_length_alone(
    two: Results, output: Path, smollm2: Path
) -> None:
    asked = parameters(smollm2, evaluate_require=["gain", "beyond_length"])
    with pytest.raises(RunFailed, match="beyond_length: ") as refused:
        run_local(RunFile(parameters=asked), output=output, name="audited")
    assert "gain: the mean reward" not in str(refused.value), "there is one"
    assert sampled(output) == dict.fromkeys(sampled(output), 1)


def evaluations(results: Results) -> list[StageRow]:
    return [row for row in results.stages if row.stage == "evaluate"]


def sampled(output: Path) -> Counter[str]:
    """How often an engine sampled each completion of the work prefix."""
    files = (output / "work" / "sample").glob("*/data/*.parquet")
    return Counter(f"{file.parent} {key}" for file in files for key in pq.read_table(file)[KEY].to_pylist())


def parameters(policy: Path, **changes: Any) -> dict[str, Any]:
    source = quickstart.preferences() / "alpaca_en_demo.json"
    asked = {"max_rows": 80, "prompt_suffix": "Answer with one word."}
    return {
        "policy": str(policy),
        "sources": [{"name": "alpaca", "uri": str(source), **asked}],
        "reward_functions": [{"function": "brevity", "settings": {"unit": "tokens", "scale": 8}}],
        "validation_fraction": 0.35,
        "filter_max_seq_len": 128,
        "filter_max_prompt_len": 50,
        "sample_engine": "transformers",
        "sample_dtype": "float32",
        "sample_n": 8,
        "sample_max_new_tokens": 16,
        "train_learning_rate": 1.5e-5,
        "train_options": {"batch_size": 8, "max_steps": 4, "warmup_ratio": 0.0, **EXACT},
        "evaluate_kl_prompts": 4,
        **changes,
    }


def show(*rounds: dict[str, float]) -> None:
    for number, numbers in enumerate(rounds, start=1):
        print(
            f"\nevaluation {number}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        )
