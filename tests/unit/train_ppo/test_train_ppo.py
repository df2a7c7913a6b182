"""The stage on a tiny random policy: it learns, KL holds it, processes and retries change nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from kubealign_components.data.chat import ChatTemplate, stored_settings
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.models import find_model
from kubealign_components.data.schemas import MODEL
from kubealign_components.engines.rewards import RewardFunctionSpec
from kubealign_components.errors import ConfigError, EngineError
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as run_filter
from kubealign_components.train_ppo.config import PpoConfig
from kubealign_components.train_ppo.report import report_page
from kubealign_components.train_ppo.stage import run
from kubealign_components.training.checkpoints import MARKERS
from support.datasets import MakeDataset
from support.pages import Page
from support.ppo import build_reward_model, log_of, settings, tokenised_prompts, weights
from support.tiny import CHATML, build_tiny_model, prompt_row


@pytest.fixture
def prompts(make_dataset: MakeDataset, tiny_model: Path) -> Dataset:
    return tokenised_prompts(make_dataset, tiny_model, 160)


def children() -> set[str]:
    """The processes that threads of this one have started and that are still there."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {pid for task in tasks if task.exists() for pid in task.read_text().split()}


def test_the_policy_learns_a_verifiable_reward(prompts: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    """Letters are a fifth of the tokens of a random policy; after 20 steps, more than half."""
    before = children()
    stats = run(settings(tiny_model, max_steps=20), prompts=prompts, output=str(tmp_path / "out"))
    numbers, log = stats.numbers, log_of(tmp_path / "out")
    assert children() <= before, "the processes of reward functions end with the training"
    assert numbers["eval_gain_low"] > 0.15
    assert numbers["eval_score_after"] > 0.45
    assert numbers["eval_gain"] == pytest.approx(numbers["eval_score_after"] - numbers["eval_score_before"])
    assert log[-1]["kl"] > 1 and log[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert log[-1]["entropy_per_token"] < log[0]["entropy_per_token"]
    assert log[-1]["value_explained_variance"] > 0
    assert stats.counts["steps"] == 20
    page = Page(report_page(str(tmp_path / "out")))
    titles = ("Score", "Parts", "KL", "Policy loss", "Value loss", "Clipped", "Entropy", "Length")
    assert set(titles) <= set(page.charts)
    assert "95 % interval +" in page.text and not page.loaded


def test_one_held_out_prompt_has_a_gain_and_no_interval(
    prompts: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    config = settings(tiny_model, max_steps=1, rollout_batch=4, step_batch=4, eval_prompts=1)
    numbers = run(config, prompts=prompts, output=str(tmp_path / "out")).numbers
    assert numbers["eval_prompts"] == 1 and "eval_gain" in numbers
    assert "eval_gain_low" not in numbers and "eval_gain_high" not in numbers
    assert "one held-out prompt the score changed by" in Page(report_page(str(tmp_path / "out"))).text


def test_a_rollout_that_a_function_refuses_is_counted_and_not_trained_on(
    prompts: Dataset, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = RewardFunctionSpec(function="support.ppo:some_letters")
    config = settings(tiny_model, functions=(refusing,), max_steps=1)
    run(config, prompts=prompts, output=str(tmp_path / "out"))
    (row,) = log_of(tmp_path / "out")
    refused = int(row["dropped_refused"])
    assert 0 < refused < config.rollout_batch and row["dropped_over_length"] == 0
    assert f"step 0: left out rollouts without a score: odd {refused}" in caplog.messages
    config = replace(config, functions=(replace(refusing, settings={"every": 1}),))
    with pytest.raises(EngineError, match=r"none of 64 rollouts has a score \(odd 64\)"):
        run(config, prompts=prompts, output=str(tmp_path / "none"))


def test_a_large_kl_coefficient_holds_the_policy(prompts: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    config = settings(tiny_model, max_steps=15, kl_coef=100.0, kl_estimator="k1")
    numbers = run(config, prompts=prompts, output=str(tmp_path / "out")).numbers
    assert numbers["eval_gain_low"] < 0 < numbers["eval_gain_high"]
    assert abs(numbers["eval_gain"]) < 0.03
    assert log_of(tmp_path / "out")[-1]["kl"] < 0.5


def test_cuts_of_the_work_change_nothing(prompts: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    config = settings(tiny_model, max_steps=2, rollout_batch=16, step_batch=8, validation_fraction=0.0)
    changes: list[dict[str, Any]] = [{}, {"micro_batch_tokens": 1}, {"generation_tokens": 200}]
    changes.append({"gradient_checkpointing": True})
    for number, change in enumerate(changes):
        run(replace(config, **change), prompts=prompts, output=str(tmp_path / str(number)))
        for row, expected in zip(log_of(tmp_path / str(number)), log_of(tmp_path / "0"), strict=True):
            assert row == pytest.approx(expected, abs=1e-4, rel=1e-4)


def test_before_the_first_update_old_and_new_policy_are_one(
    prompts: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    """One optimiser step: ratios are 1, nothing is clipped, and the loss is the mean advantage: 0."""
    config = settings(tiny_model, max_steps=1, ppo_epochs=1, step_batch=64, validation_fraction=0.0)
    run(config, prompts=prompts, output=str(tmp_path / "out"))
    (row,) = log_of(tmp_path / "out")
    assert row["approx_kl"] == pytest.approx(0, abs=1e-9)
    assert row["policy_clip_fraction"] == row["value_clip_fraction"] == 0
    assert row["policy_loss"] == pytest.approx(0, abs=1e-6)


def test_the_adaptive_coefficient_is_used_and_kept(
    prompts: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    config = settings(
        tiny_model, kl_controller="adaptive", kl_coef=0.1, kl_target=1e-3, validation_fraction=0.0
    )
    run(config, prompts=prompts, output=str(tmp_path / "out"))
    used = [row["kl_coef"] for row in log_of(tmp_path / "out")]
    assert used == pytest.approx([0.1, 0.1 * 0.98, 0.1 * 0.98 * 1.02])


# Trains, and gets a signal as soon as a name like the given one appears among the checkpoints.
CHILD = """
import json, os, sys, threading, time
from pathlib import Path
from kubealign_components.config import from_mapping
from kubealign_components.data.chat import ChatTemplate, stored_settings
from kubealign_components.data.dataset import Dataset
from kubealign_components.train_ppo.config import PpoConfig
from kubealign_components.train_ppo.stage import run

config, data, output, pattern, number = json.loads(sys.argv[1])

def watch():
    while not list(Path(config["work"]).glob(pattern)):
        time.sleep(0.01)
    os.kill(os.getpid(), number)

threading.Thread(target=watch, daemon=True).start()
run(from_mapping(PpoConfig, config, "train_ppo"), prompts=Dataset.open(data), output=output)
"""


def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    prompts: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    """Whether it was killed or told to end, as the run that nobody stopped."""
    plain = settings(
        tiny_model, max_steps=6, rollout_batch=32, step_batch=16, kl_controller="adaptive", kl_target=0.5
    )
    longest = max(row["prompt_tokens"] for row in prompts.iter_rows())
    plain = replace(plain, max_prompt_tokens=longest - 1)
    run(plain, prompts=prompts, output=str(tmp_path / "straight"))
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)):
        (tmp_path / str(code)).mkdir()
        check_resumed(plain, prompts, tmp_path / str(code), number, code, tmp_path / "straight")


def check_resumed(
    plain: PpoConfig, prompts: Dataset, folder: Path, number: int, code: int, straight: Path
) -> None:
    """A run in ``folder`` that got the signal ``number`` and ended with ``code`` goes on to the policy at
    ``straight``."""
    config = replace(plain, save_every=2, work=str(folder / "work"))
    arguments = json.dumps(
        [asdict(config), prompts.uri, str(folder / "resumed"), "**/checkpoint-00000004-*/*", int(number)]
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, arguments], capture_output=True, text=True, env=environment
    )
    assert child.returncode == code, child.stderr
    resumed = folder / "resumed"
    assert not resumed.exists()
    saved = {json.loads(path.read_text())["step"] for path in (folder / "work").rglob(f"{MARKERS}/*.json")}
    assert saved and max(saved) < 6
    stats = run(config, prompts=prompts, output=str(resumed))
    assert stats.dropped == {"prompt_too_long": 60}
    assert log_of(resumed) == log_of(straight)
    expected = weights(straight)
    assert all(torch.equal(w, expected[n]) for n, w in weights(resumed).items())
    written = (resumed / "model.safetensors").stat().st_mtime_ns
    again = run(config, prompts=prompts, output=str(resumed))
    assert again.metrics() == stats.metrics(), "a finished run is kept"
    assert (resumed / "model.safetensors").stat().st_mtime_ns == written


def test_a_reward_model_scores_by_drawn_principles(
    prompts: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    reward_model = build_reward_model(tmp_path / "reward", tiny_model)
    config = settings(tiny_model, functions=(), max_steps=1, max_principles=1, rollout_batch=32)
    run(config, prompts=prompts, reward_model=reward_model, output=str(tmp_path / "out"))
    (row,) = log_of(tmp_path / "out")
    assert row["reward_functions"] == 0 != row["reward_model"] == pytest.approx(row["score"])
    manifest = Dataset.open(str(tmp_path / "out")).manifest
    step = manifest.provenance.step
    assert set(step["inputs"]) == {"prompts", "reward_model"}
    assert step["models"]["principles"]["name"] == "rl"
    shown = manifest.extra["samples"]["rollouts"][0]["after"]
    assert len(shown["principles"]) == 4  # three always, one drawn


def test_the_output_is_a_policy_like_the_one_it_was(
    prompts: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    config = settings(tiny_model, max_steps=2, learning_rate=1e-2)
    out = tmp_path / "out"
    run(config, prompts=prompts, output=str(out))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (tiny_model / name).read_bytes()
    assert find_model(str(out)).tokenizer_digest() == find_model(str(tiny_model)).tokenizer_digest()
    manifest = Dataset.open(str(out), MODEL).manifest
    assert set(manifest.extra["files"]) >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert manifest.slug.endswith("-ppo-kl0.01-lr0.01") or manifest.slug == "ppo-kl0.01-lr0.01"
    run(replace(config, merge_adapter=False), prompts=prompts, output=str(tmp_path / "adapter"))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        merged, adapted = (
            AutoModelForCausalLM.from_pretrained(place)(ids).logits for place in (out, tmp_path / "adapter")
        )
        start = AutoModelForCausalLM.from_pretrained(tiny_model)(ids).logits
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)
    assert (merged - start).abs().max() > 0.01


def test_an_own_template_goes_from_the_prompts_into_the_policy(
    make_dataset: MakeDataset, tiny_model: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(
        CHATML.replace("message['role']", "message['role'] | upper").replace("assistant", "ASSISTANT")
    )
    rows = make_dataset([prompt_row(f"question {number}") for number in range(80)])
    run_filter(
        FilterConfig(policy=str(tiny_model), chat_template=str(own)),
        prompts=rows,
        output=str(tmp_path / "tokenised"),
    )
    prompts = Dataset.open(str(tmp_path / "tokenised"))
    out = tmp_path / "out"
    run(settings(tiny_model, max_steps=1, rollout_batch=32), prompts=prompts, output=str(out))
    assert (out / "chat_template.jinja").read_text() == own.read_text()
    named = Dataset.open(str(out), MODEL).manifest.extra["chat_template"]
    assert named == stored_settings(prompts).named() and named["of"] == "setting"
    saved = ChatTemplate(find_model(str(out)))
    for row in prompts.iter_rows():
        assert saved.prompt_ids(json.loads(row["messages"])) == row["prompt_token_ids"]
    assert "USER" in saved.tokenizer.decode(row["prompt_token_ids"])


def test_training_goes_on_from_an_adapter(prompts: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    config = settings(tiny_model, max_steps=2, merge_adapter=False, validation_fraction=0.0)
    run(config, prompts=prompts, output=str(tmp_path / "first"))
    second = replace(config, policy_adapter=str(tmp_path / "first"))
    run(second, prompts=prompts, output=str(tmp_path / "second"))
    row = log_of(tmp_path / "second")[0]
    assert row["kl"] == pytest.approx(0, abs=1e-5), "the reference is the policy that training starts from"
    fingerprints = [Dataset.open(str(tmp_path / n)).manifest.fingerprint for n in ("first", "second")]
    assert fingerprints[0] != fingerprints[1]
    with pytest.raises(ConfigError, match=r"policy_adapter=.*adapter_config\.json"):
        run(replace(config, policy_adapter=str(tiny_model)), prompts=prompts, output=str(tmp_path / "x"))


def test_what_cannot_be_trained_on_is_refused(
    make_dataset: MakeDataset, prompts: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    def refused(config: PpoConfig, data: Dataset = prompts, reward: Dataset | None = None) -> str:
        with pytest.raises((ConfigError, EngineError)) as error:
            run(config, prompts=data, reward_model=reward, output=str(tmp_path / "none"))
        return str(error.value)

    assert "a reward function, or a reward model" in refused(settings(tiny_model, functions=()))
    other = build_tiny_model(tmp_path / "other", seed=1)
    assert "the model that the dataset was tokenised for" in refused(settings(other))
    another = build_reward_model(tmp_path / "another", other)
    assert "its adapter was trained on a base with digest" in refused(settings(tiny_model), reward=another)
    whole = build_reward_model(tmp_path / "whole", tiny_model)
    for file in (tmp_path / "whole" / "adapter").iterdir():
        file.unlink()
    assert "train it with adapter=lora or qlora" in refused(settings(tiny_model), reward=whole)
    headless = build_reward_model(tmp_path / "headless", tiny_model)
    (tmp_path / "headless" / "adapter" / "score.safetensors").unlink()
    assert "score.safetensors is missing" in refused(settings(tiny_model), reward=headless)
    assert "max_prompt_tokens=5" in refused(settings(tiny_model, max_prompt_tokens=5))
    few = tokenised_prompts(make_dataset, tiny_model, 3)
    assert "holds out some" in refused(settings(tiny_model, validation_fraction=0.001), few)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine could")
def test_qlora_needs_cuda(prompts: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="4-bit weights need a CUDA device"):
        run(settings(tiny_model, adapter="qlora"), prompts=prompts, output=str(tmp_path / "out"))


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "fake"},
        {"kl_estimator": "k2"},
        {"temperature": 0.0},
        {"gamma": 1.1},
        {"step_batch": 600},
        {"tag_weights": {"trivia": 1.0}},
        {"validation_fraction": 1.0},
        {"save_every": 5},
        {"reward_model_weight": 0.0},
    ],
)
def test_settings_that_do_not_fit_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        PpoConfig(policy="p", **change)
    assert error.value.field in [*change, "work"]


def test_the_defaults_are_the_published_ones() -> None:
    config = PpoConfig(policy="p")
    published = {
        "learning_rate": 2e-5, "warmup_steps": 5, "schedule": "cosine", "max_grad_norm": 1.0,
        "rollout_batch": 576, "step_batch": 288, "ppo_epochs": 2, "epochs": 2.0,
        "kl_coef": 0.01, "kl_estimator": "k1_clamped", "kl_controller": "fixed",
        "clip": 0.2, "value_clip": 0.2, "value_coef": 0.1, "gamma": 1.0, "gae_lambda": 1.0,
        "temperature": 0.7, "max_prompt_tokens": 256, "max_new_tokens": 1024,
        "max_principles": 3, "length_bonus_scale": 5.0, "length_bonus_cap": 0.8, "stop_penalty": 6.0,
        "lora_r": 64, "lora_alpha": 16,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in published} == published
