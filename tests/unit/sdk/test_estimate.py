"""The estimate: formulas against values worked out by hand, and against what the trainer really allocates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import kubealign_pipelines
from kubealign.cli.main import main
from kubealign.estimate.formulas import (
    GIB,
    LOGIT_BYTES,
    SHAPES,
    ModelShape,
    Throughput,
    Training,
    activations,
    gathered,
    gpu_hours,
    layer_activations,
    logits,
    model_state,
    sampling_memory,
    training_memory,
)
from kubealign.estimate.stages import Assumptions, estimate, preset_of, read_shape, rows_of, shape_of
from kubealign.runfile import load_run_file
from kubealign_components.errors import ConfigError

PARAMS = Path(kubealign_pipelines.__file__).parent / "params"
SMALL = ModelShape(
    layers=2, hidden=8, intermediate=16, heads=4, kv_heads=2, head_dim=2, vocabulary=100, tied=False
)
"""q and o 64 weights each, k and v 32, gate, up and down 128: 576 a layer; 2 · 576 + 5 · 8 + 1600 = 2792."""


def test_published_parameter_counts() -> None:
    assert SHAPES["llama-8b"].parameters == 8_030_261_248
    assert SHAPES["llama-70b"].parameters == 70_553_706_496
    assert SMALL.parameters == 2792
    # (8+8)·2 for q and o, (8+4)·2 for k and v, (8+16)·3: 128 a layer and rank.
    assert SMALL.adapter(4) == 2 * 4 * 128


@pytest.mark.parametrize(
    ("strategy", "weights", "gradients", "optimiser"),
    [
        ("none", 4 * 2792, 4 * 2792, 8 * 2792),
        ("fsdp2", 2792, 2792, 2 * 2792),
        ("zero1", 2 * 2792, 2 * 2792, 3 * 2792),
        ("zero2", 2 * 2792, 2 * 2792 / 4, 3 * 2792),
        ("zero3", 2 * 2792 / 4, 2 * 2792 / 4, 3 * 2792),
    ],
)
def test_state_of_four_ranks(strategy: str, weights: float, gradients: float, optimiser: float) -> None:
    state = model_state(SMALL, Training(strategy=strategy, ranks=4))
    assert state == {
        "weights": weights,
        "adapters": 0,
        "gradients": gradients,
        "optimiser state": optimiser,
    }


def test_zero_as_its_paper_counts_it() -> None:
    """ZeRO, figure 1: 7.5e9 parameters on 64 GPUs take 31.4, 16.6 and 1.9 GB."""
    shape = ModelShape(
        layers=1,
        hidden=1,
        intermediate=1,
        heads=1,
        kv_heads=1,
        head_dim=1,
        vocabulary=1,
        counted=7_500_000_000,
    )
    found = [
        sum(model_state(shape, Training(strategy=f"zero{s}", ranks=64)).values()) / 1e9 for s in (1, 2, 3)
    ]
    assert found == pytest.approx([31.4, 16.6, 1.9], abs=0.06)


def test_adapters_of_ppo_on_four_bits() -> None:
    one = SMALL.adapter(4)
    state = model_state(
        SMALL, Training(adapter="qlora", lora_r=4, ranks=48, trained_adapters=2, frozen_adapters=1)
    )
    # 0.5 + 1/64 + 1/4096/... bytes a weight in linear layers, float32 for the 1640 others.
    assert state["weights"] == pytest.approx(1152 * (0.5 + 1 / 64 + 4 / (64 * 256)) + 4 * 1640)
    assert state["adapters"] == 3 * 4 * one
    assert state["gradients"] == 2 * 4 * one
    assert state["optimiser state"] == 2 * 8 * one


def test_what_a_micro_batch_takes() -> None:
    # 10 tokens: norms 2 · (8 + 2) · 8 = 160, attention 2 · (2 · 8 + 2 · 4) = 48, feed-forward 8 · 16 = 128.
    assert layer_activations(SMALL, 10) == 10 * 336
    assert activations(SMALL, Training(micro_batch_tokens=10)) == 2 * 3360
    kept = 4 * 2 * 8 * 10
    assert activations(SMALL, Training(micro_batch_tokens=10, gradient_checkpointing=True)) == 3360 + kept
    assert logits(SMALL, 10) == 10 * 100 * 8
    assert logits(SMALL, 10**7) == LOGIT_BYTES
    assert gathered(SMALL, Training(strategy="fsdp2", ranks=4)) == 2 * (2 * 576 + 1600)
    assert gathered(SMALL, Training(strategy="zero3", ranks=4)) == 2 * 2792
    assert gathered(SMALL, Training(strategy="zero2", ranks=4)) == 0
    assert SMALL.cache_bytes(10) == 2 * 2 * 2 * 2 * 2 * 10


def test_slices_are_those_of_the_program() -> None:
    from kubealign.estimate.formulas import ZERO_BUCKET
    from kubealign_components.engines.head import CARD_HEAD_BYTES
    from kubealign_components.training.arguments import strategy_settings

    assert LOGIT_BYTES == CARD_HEAD_BYTES
    for stage in ("zero2", "zero3"):
        assert strategy_settings(stage)["zero_optimization"]["reduce_bucket_size"] == ZERO_BUCKET


def test_an_engine_takes_its_share_or_does_not_fit() -> None:
    assert sampling_memory(SHAPES["llama-8b"], 80 * GIB, 0.9, 1, 4096).total == pytest.approx(72 * GIB)
    assert not sampling_memory(SHAPES["llama-70b"], 80 * GIB, 0.9, 1, 4096).fits(80 * GIB)


def test_hours_follow_from_rates() -> None:
    rates = Throughput(flops=1e15, sample=500.0).rates(SHAPES["llama-8b"], checkpointing=True)
    assert rates["sample"] == 500
    assert rates["train"] == pytest.approx(rates["score"] / 4)
    assert gpu_hours({"sample": 3_600_000}, rates) == 2


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_the_trainer_allocates_what_the_formula_says(tiny_model: Path, adapter: str) -> None:
    import torch
    from transformers import Trainer

    from kubealign_components.engines.packing import Group, LogprobModel, pack
    from kubealign_components.train.config import TrainConfig
    from kubealign_components.training.arguments import training_arguments
    from kubealign_components.training.models import load_policy, trained_weights

    config = TrainConfig(policy="tiny", adapter=adapter, lora_r=4, dtype="float32")
    model = LogprobModel(load_policy(config, tiny_model))
    arguments = training_arguments(config, tiny_model.parent / f"run-{adapter}")
    optimiser = Trainer(model=model, args=arguments).create_optimizer()
    model(pack([Group([1, 2, 3], [[4, 5], [6]])])).sum().backward()
    optimiser.step()

    def size(tensors: Any) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    trained = list(trained_weights(model).values())
    moments = [v for s in optimiser.state.values() for k, v in s.items() if k.startswith("exp_avg")]
    expected = model_state(read_shape(tiny_model), Training(adapter=adapter, lora_r=4, compute=4))
    assert size(model.parameters()) == expected["weights"] + expected["adapters"]
    assert size(p.grad for p in trained) == expected["gradients"]
    assert size(moments) == expected["optimiser state"]
    assert all(torch.isfinite(p.grad).all() for p in trained)


@pytest.mark.parametrize(
    ("name", "shape", "ranks"),
    [
        ("offline_alignment_8b", "llama-8b", 8),
        ("offline_alignment_70b", "llama-70b", 64),
        ("salmon_70b", "llama-70b", 48),
    ],
)
def test_ready_settings_fit_80_gib(name: str, shape: str, ranks: int) -> None:
    run = load_run_file(PARAMS / f"{name}.yaml")
    assumed = Assumptions(reward_shape=SHAPES["llama-8b"])
    stages = {stage.title: stage for stage in estimate(run, SHAPES[shape], assumed)}
    assert [s.title for s in stages.values() if not s.fits or s.hours <= 0] == []
    assert stages["train ppo" if name.startswith("salmon") else "train"].gpus == ranks
    assert list(stages)[-1] == "evaluate"
    assert [s.nodes for s in stages.values() if s.stage == "train_reward_model"] in ([], [1, 1])
    alone = {s.title: s for s in estimate(run, SHAPES[shape], Assumptions(nodes=1))}
    assert {s.nodes for s in alone.values()} == {1}
    assert ("train" in alone and not alone["train"].fits) == (ranks == 64)


def test_published_rank_does_not_fit_beside_three_adapters() -> None:
    """Why salmon_70b.yaml sets another one."""
    run = load_run_file(PARAMS / "salmon_70b.yaml").with_parameters(["ppo_options.lora_r=64"])
    stages = {s.stage: s for s in estimate(run, SHAPES["llama-70b"], Assumptions())}
    assert not stages["train_ppo"].fits


def test_the_command(tiny_model: Path) -> None:
    arguments = ["estimate", "offline_alignment", "--set", f"policy={tiny_model}", "--train-rate", "50"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "optimiser state" in done.output
    assert "training 50" in done.output
    assert "That is at most" not in done.output
    rounds = ["--set", "rounds=2", "--set", "rounds_stop=no_gain"]
    assert "That is at most" in CliRunner().invoke(main, [*arguments, *rounds]).output
    refused = CliRunner().invoke(main, ["estimate", "offline_alignment", "--set", "policy=org/model"])
    assert refused.exit_code == 2
    assert "--model-shape" in refused.output


def test_counts_are_those_of_the_model(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert shape_of(str(tiny_model)).parameters == sum(p.numel() for p in model.parameters())
    with pytest.raises(ConfigError, match="llama-70b"):
        shape_of("org/model", "llama-1b")


def test_formulas_import_no_model_library() -> None:
    program = (
        "import sys, kubealign.estimate.stages\nassert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_frozen_base_is_whole_on_every_rank() -> None:
    wide = training_memory(SHAPES["llama-8b"], Training(adapter="lora", ranks=64))
    one = training_memory(SHAPES["llama-8b"], Training(adapter="lora", ranks=1))
    assert wide.parts["weights"] == one.parts["weights"] == 2 * 8_030_261_248


def test_stages_are_estimated_with_their_own_settings() -> None:
    run = load_run_file(PARAMS / "salmon_70b.yaml").with_parameters(["rl=offline"])
    stages = estimate(run, SHAPES["llama-8b"], Assumptions())
    by_stage = {stage.stage: stage for stage in stages}
    # Ten offline samples of 512 tokens on 256 tokens of prompt, beside two that are judged.
    assert by_stage["rewards"].tokens == {"score": 10_000 * (256 + 10 * 512)}
    assert sorted(s.tokens["sample"] for s in stages if s.stage == "sample") == [10_240_000, 51_200_000]
    assert by_stage["logprobs"].memory.parts != by_stage["rewards"].memory.parts
    budget = run.with_parameters(["logprobs_options.token_budget=16384"])
    same = {s.stage: s for s in estimate(budget, SHAPES["llama-8b"], Assumptions())}
    assert same["logprobs"].memory.parts == by_stage["rewards"].memory.parts


def test_a_ranking_reads_pairs_under_every_principle_in_both_orders() -> None:
    run = load_run_file(PARAMS / "offline_alignment.yaml")
    ranked = run.with_parameters(["reward_model=", "rank_judge=org/judge-8B", "sample_n=10"])
    by_stage = {stage.stage: stage for stage in estimate(ranked, SHAPES["llama-8b"], Assumptions())}
    assert by_stage["rank"].tokens == {"score": 10_000 * 30 * 22 * (256 + 2 * 512)}
    few = ranked.with_parameters(["sample_n=4"])
    [rank] = [s for s in estimate(few, SHAPES["llama-8b"], Assumptions()) if s.stage == "rank"]
    assert rank.tokens == {"score": 10_000 * 6 * 22 * (256 + 2 * 512)}


def test_functions_and_endpoints_judge_without_a_gpu() -> None:
    salmon, usual = load_run_file(PARAMS / "salmon_70b.yaml"), Assumptions()
    function = "{principle: Concise, function: brevity}"
    by_function = salmon.with_parameters([f"judge_options.functions=[{function}]"])
    for names, asked in (("", 20), ("Concise, Honest and Accurate", 2), ("Concise", 0)):
        run = by_function.with_parameters([f"judge_options.principle_names=[{names}]"])
        judged = [s.tokens for s in estimate(run, SHAPES["llama-8b"], usual) if s.stage == "judge"]
        assert judged == ([{"score": 10_000 * asked * (256 + 2 * 512)}] if asked else [])
    ranked = load_run_file(PARAMS / "offline_alignment.yaml").with_parameters(
        ["reward_model=", "rank_judge=judge-8B", "rank_options.judge.endpoint=http://judge:8000/v1"]
    )
    assert "rank" not in [stage.stage for stage in estimate(ranked, SHAPES["llama-8b"], usual)]


def test_a_benchmark_is_read_by_both_policies_with_every_choice() -> None:
    run = load_run_file(PARAMS / "offline_alignment.yaml")
    measured = run.with_parameters(["benchmark_tasks=[arc_easy, mmlu]", "benchmark_num_fewshot=5"])
    by_stage = {stage.stage: stage for stage in estimate(measured, SHAPES["llama-8b"], Assumptions())}
    assert by_stage["benchmark"].tokens == {"score": 2 * 2 * 1_000 * 4 * 6 * 256}
    limited = measured.with_parameters(["benchmark_limit=100"])
    few = {stage.stage: stage for stage in estimate(limited, SHAPES["llama-8b"], Assumptions())}
    assert few["benchmark"].tokens == {"score": 2 * 2 * 100 * 4 * 6 * 256}
    assert few["benchmark"].fits


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-8b"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
        ("Skywork/Skywork-Reward-V2-Qwen3-0.6B", "qwen3-0.6b"),
        ("org/model-405B", ""),
        ("org/8bit-model", ""),
        ("org/model", ""),
    ],
)
def test_the_name_of_a_model_tells_its_size(name: str, preset: str) -> None:
    assert preset_of(name) == preset


def test_presets_have_the_sizes_of_their_names() -> None:
    sizes = {name: round(shape.parameters / 1e9, 2) for name, shape in SHAPES.items()}
    assert (sizes["smollm2-135m"], sizes["smollm2-1.7b"], sizes["qwen3-0.6b"]) == (0.13, 1.71, 0.6)
    assert (sizes["qwen3-4b"], sizes["qwen3-14b"], sizes["qwen3-32b"]) == (4.02, 14.77, 32.76)


@pytest.mark.parametrize("name", ["offline_alignment", "offline_alignment_8b", "salmon"])
def test_shipped_run_files_need_no_further_word(name: str) -> None:
    done = CliRunner().invoke(main, ["estimate", "-f", str(PARAMS / f"{name}.yaml")])
    assert done.exit_code == 0, done.output + done.stderr
    assert "after the policy's name" in done.output
    assert "10,000 prompts" in done.output.replace("\n", " ")


def test_local_sources_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "?"}\n' * 7)
    (tmp_path / "b.jsonl").write_text('{"prompt": "?"}\n' * 9)
    sources = [{"uri": str(tmp_path / "a.jsonl")}, {"uri": str(tmp_path / "b.jsonl"), "max_rows": 4}]
    assert rows_of({"sources": sources}) == 11
    assert rows_of({"sources": [*sources, {"uri": "org/data"}]}) == 0
