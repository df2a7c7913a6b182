"""The trainer on a tiny random Llama: its losses, its checks, its checkpoints and what it saves."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.models import find_model
from kubealign_components.data.schemas import MODEL, SELECTION
from kubealign_components.errors import ConfigError, DataError, Diverged, DriftError, EngineError, NotFinite
from kubealign_components.progress import read_line
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.stage import run
from kubealign_components.train.trainer import AlignmentTrainer
from kubealign_components.training import objectives, program
from kubealign_components.training.checkpoints import MARKERS, CheckpointStore, everything
from kubealign_components.training.curves import curves_page, training_log
from kubealign_components.training.processes import joined
from kubealign_components.training.step_trainer import StepProgress
from support.datasets import MakeDataset
from support.pages import Page
from support.tiny import build_tiny_model
from support.training_data import losses, make_training, score, training_rows


def settings(policy: Path, **changes: Any) -> TrainConfig:
    """Ten steps of four examples, at a rate at which a tiny model moves."""
    defaults: dict[str, Any] = {
        "policy": str(policy),
        "max_steps": 10,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "dtype": "float32",
    }
    return TrainConfig(**(defaults | changes))


@pytest.fixture
def pairs(make_dataset: MakeDataset, tiny_model: Path) -> Dataset:
    """Twelve pairs to train on and four to validate."""
    return make_training(make_dataset, tiny_model, score(training_rows(12, validation=4), tiny_model))


def logits(model: str | Path) -> torch.Tensor:
    """What the model at ``model`` says of a fixed input."""
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(model)
        return loaded(torch.arange(3, 67)[None]).logits


def weights(model: str | Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(model).state_dict()


def test_dpo_starts_at_ln_2_and_learns_the_preferences(
    pairs: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    stats = run(settings(tiny_model, max_steps=20), training=pairs, output=str(tmp_path / "out"))
    log = training_log(Dataset.open(str(tmp_path / "out"), MODEL))
    assert log[0][1]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log[0][1]["abs_log_ratio_per_token"] < 1e-6
    assert log[-1][1]["loss"] < 0.5
    assert log[-1][1]["reward_accuracy"] == 1
    assert log[-1][1]["kl_estimate"] != 0
    assert stats.counts["train_examples"] == 12
    assert stats.counts["validation_examples"] == 4
    assert stats.numbers["eval_loss"] > 0


# Loss of every optimiser step on 12 random pairs; a change of seed, order, objective, schedule or
# accumulation shows here.
GOLDEN: dict[str, list[float]] = {
    "dpo": [0.693147, 0.694833, 0.693722, 0.61733, 0.527542, 0.546262],
    "dpo_norm": [0.693147, 0.702081, 0.688268, 0.386974, 0.343991, 0.233005],
    "ipo": [1.0, 1.00712, 0.996049, 0.699814, 0.656409, 0.517664],
    "simpo": [0.782541, 0.607034, 1.22019, 0.761435, 0.864493, 0.378709],
    "rebel": [7.5337, 3.99989, 6.89517, 1.36744, 7.28952, 2.28708],
    "qrpo": [0.178284, 0.209635, 0.0552456, 0.0576095, 0.0237834, 0.104276],
    "qrpo_length": [0.0861057, 0.118967, 0.029357, 0.106697, 0.129578, 0.431227],
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"objective": "dpo"},
    "dpo_norm": {"objective": "dpo_norm", "beta": 5.0},
    "ipo": {"objective": "ipo", "beta": 0.5},
    "simpo": {"objective": "simpo", "beta": 2.0},
    "rebel": {"objective": "rebel", "beta": 0.5},
    "qrpo": {"objective": "qrpo", "beta": 0.1},
    "qrpo_length": {"objective": "qrpo", "beta": 5.0, "length_normalise": True, "transform": "sqrt"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_curves_are_the_golden_ones(name: str, pairs: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    config = settings(tiny_model, max_steps=6, learning_rate=3e-4, **OBJECTIVES[name])
    run(config, training=pairs, output=str(tmp_path / "out"))
    assert losses(tmp_path / "out") == pytest.approx(GOLDEN[name], rel=1e-4)


def test_micro_batches_are_one_batch(pairs: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    """Also where the last batch of an epoch is short: 12 examples in batches of 8."""
    config = settings(tiny_model, batch_size=8, max_steps=6, objective="qrpo")
    for tokens in (4096, 90, 1):
        run(replace(config, micro_batch_tokens=tokens), training=pairs, output=str(tmp_path / str(tokens)))
    whole = weights(tmp_path / "4096")
    for tokens in (90, 1):
        assert losses(tmp_path / str(tokens)) == pytest.approx(losses(tmp_path / "4096"), rel=1e-5)
        for name, weight in weights(tmp_path / str(tokens)).items():
            torch.testing.assert_close(weight, whole[name], atol=1e-5, rtol=1e-4)
    fingerprints = {Dataset.open(str(tmp_path / m)).manifest.fingerprint for m in ("4096", "90", "1")}
    assert len(fingerprints) == 1


def test_qrpo_trains_on_single_completions_and_calibrates(
    make_dataset: MakeDataset, tiny_model: Path, tmp_path: Path
) -> None:
    rows = score(training_rows(16, completions=1), tiny_model)
    data = make_training(make_dataset, tiny_model, rows)
    config = settings(tiny_model, objective="qrpo", max_steps=12, batch_size=16)
    run(config, training=data, output=str(tmp_path / "out"))
    log = training_log(Dataset.open(str(tmp_path / "out"), MODEL))
    assert log[-1][1]["loss"] < 0.7 * log[0][1]["loss"]
    assert log[-1][1]["calibration_error"] < log[0][1]["calibration_error"]
    assert sum(count for *_, count in log[0][1]["calibration"]) == 16
    assert "reward_margin" not in log[0][1]


def test_dpo_compares_confidence_in_pairs_with_how_often_it_is_right(
    pairs: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    config = settings(tiny_model, objective="dpo", eval_every=2, max_steps=4)
    run(config, training=pairs, output=str(tmp_path / "out"))
    log = training_log(Dataset.open(str(tmp_path / "out"), MODEL))
    for name in ("", "eval_"):
        last = log[-1][1]
        bins = last[f"{name}calibration"]
        right, count = (sum(one[i] for one in bins) for i in (1, 2))
        assert right / count == pytest.approx(last[f"{name}reward_accuracy"])
        assert all(0.5 <= confidence / n <= 1 for confidence, _, n in bins)
    page = Page(curves_page(str(tmp_path / "out")))
    assert page.charts[-1] == "Calibration"
    assert "share rightly ordered (held-out)" in page.text


def test_wrong_logprobs_stop_the_run_before_the_first_step(
    make_dataset: MakeDataset, tiny_model: Path, tmp_path: Path
) -> None:
    rows = score(training_rows(4), tiny_model)
    for row in rows:
        for completion in row["completions"]:
            completion["logprob"] -= 0.06 * completion["num_tokens"]
    data = make_training(make_dataset, tiny_model, rows)
    with pytest.raises(DriftError, match=r"0\.06 nats per token .* max_initial_drift=0\.05.* dtype float32"):
        run(settings(tiny_model), training=data, output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_logprobs_of_another_policy_stop_the_run(
    make_dataset: MakeDataset, tiny_model: Path, tmp_path: Path
) -> None:
    other = build_tiny_model(tmp_path / "other", seed=1)
    data = make_training(make_dataset, tiny_model, score(training_rows(4), other))
    with pytest.raises(DriftError, match="nats per token"):
        run(settings(tiny_model), training=data, output=str(tmp_path / "out"))


def test_another_policy_than_the_datasets_is_refused_by_digest(
    pairs: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    other = build_tiny_model(tmp_path / "other", seed=1)
    digests = [find_model(str(path)).identity()["digest"][:12] for path in (other, tiny_model)]
    with pytest.raises(ConfigError, match=".*".join(digests)):
        run(settings(other), training=pairs, output=str(tmp_path / "out"))


def test_pairwise_objectives_refuse_single_completions(
    make_dataset: MakeDataset, tiny_model: Path, tmp_path: Path
) -> None:
    data = make_training(make_dataset, tiny_model, score(training_rows(4, completions=1), tiny_model))
    with pytest.raises(ConfigError, match=r"objective='dpo': expected qrpo, or pairs"):
        run(settings(tiny_model), training=data, output=str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("column", "value", "change", "message"),
    [
        pytest.param("logprob", None, {}, "no reference log-probability", id="unscored"),
        pytest.param("logprob", 0.5, {}, r"is 0\.5, expected a number from -1e\+15 to 0", id="positive"),
        pytest.param("logprob", -1e300, {}, r"completion .*: its reference log-pro.* is -1e\+300", id="vast"),
        pytest.param("logprob", math.nan, {}, "reference log-probability is nan", id="nan"),
        pytest.param("reward", 1e300, {"objective": "rebel"}, r"reward is 1e\+300", id="vast-reward"),
        pytest.param("reward", -1e300, {"objective": "rebel"}, r"reward is -1e\+300", id="low-reward"),
        pytest.param("reward", None, {"objective": "rebel"}, "reward is None", id="rebel-reward"),
        pytest.param(
            "quantile_reward", None, {"objective": "qrpo"}, "quantile reward is None", id="quantile"
        ),
    ],
)
def test_examples_that_the_objective_cannot_use_are_refused(
    make_dataset: MakeDataset,
    tiny_model: Path,
    tmp_path: Path,
    column: str,
    value: float | None,
    change: dict[str, Any],
    message: str,
) -> None:
    rows = score(training_rows(4), tiny_model)
    rows[2]["completions"][1][column] = value
    data = make_training(make_dataset, tiny_model, rows)
    with pytest.raises(DataError, match=message):
        run(settings(tiny_model, **change), training=data, output=str(tmp_path / "out"))


@pytest.mark.parametrize(("rule", "least"), [("inclusive", 3), ("mid_rank", 2), ("leave_one_out", 2)])
def test_too_few_references_for_the_transform_are_refused_by_rule(
    make_dataset: MakeDataset, tiny_model: Path, tmp_path: Path, rule: str, least: int
) -> None:
    """The rule stands in the recipe. By the inclusive one two references leave the reward no say."""
    rows = score(training_rows(4), tiny_model)
    selected = make_dataset([], SELECTION, stage="select", params={"quantile": rule})
    config = settings(tiny_model, objective="qrpo", transform="normal_icdf", max_steps=1)
    for references in (least, least - 1):
        data = make_training(
            make_dataset,
            tiny_model,
            [row | {"num_references": references} for row in rows],
            inputs={"selection": selected},
            references=references,
        )
        if references == least:
            run(config, training=data, output=str(tmp_path / "out"))
            continue
        with pytest.raises(DataError, match=f"normal_icdf needs {least} or more with {rule}"):
            run(config, training=data, output=str(tmp_path / "none"))


@pytest.mark.parametrize(
    "change",
    [
        {"objective": "ppo"},
        {"beta": 0.0},
        {"objective": "dpo", "length_normalise": True},
        {"objective": "dpo", "beta_max": 0.1},
        {"objective": "ipo", "label_smoothing": 0.1},
        {"adapter": "qlora", "strategy": "zero3"},
        {"save_every": 5},
        {"save_minutes": 5.0},
        {"keep_checkpoints": 2},
        {"stop_after": 0.5},
        {"warmup_ratio": 1.0},
    ],
)
def test_settings_that_do_not_fit_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(policy="p", **change)
    assert error.value.field in [*change, "work"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "rebel", "beta": 1e-30}, "beta=1e-30 makes it so"),
        ({"learning_rate": 1e30, "warmup_ratio": 0.0}, r"completion \w+ has log-probability .*learning_rate"),
    ],
    ids=["beta", "diverged"],
)
def test_a_loss_that_is_not_finite_names_its_cause(
    pairs: Dataset, tiny_model: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(Diverged, match=message) as error:
        run(settings(tiny_model, **change), training=pairs, output=str(tmp_path / "out"))
    variant = str(tmp_path / "variant")
    stats = run(settings(tiny_model, **change), training=pairs, output=variant, sweep=True)
    ended = Dataset.open(variant, MODEL)
    assert (stats.rows_out, ended.rows, ended.ended_early) == (0, 0, str(error.value))
    own = ended.manifest.provenance.step
    assert own["params"].items() >= {name: change[name] for name in change}.items(), "it tells what spoilt it"
    assert pairs.manifest.fingerprint in ended.manifest.recipe
    assert not list(Path(variant).glob("*.safetensors"))


def test_a_gradient_that_is_no_number_is_told_though_the_loss_is_one(
    pairs: Dataset, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step follows the last one, whose loss would show what the weights have become."""
    plain = objectives.dpo_loss

    def steep(chosen: torch.Tensor, rejected: torch.Tensor, **settings: Any) -> torch.Tensor:
        return plain(chosen, rejected, **settings) + (chosen * 0).sqrt()

    monkeypatch.setattr(objectives, "dpo_loss", steep)
    with pytest.raises(EngineError, match="norm of the gradient is nan at step 1"):
        run(settings(tiny_model, max_steps=1), training=pairs, output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine could")
def test_qlora_needs_cuda(pairs: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="4-bit weights need a CUDA device"):
        run(settings(tiny_model, adapter="qlora"), training=pairs, output=str(tmp_path / "out"))


def test_the_saved_directory_loads_in_transformers(pairs: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(settings(tiny_model), training=pairs, output=str(out))
    assert not torch.equal(logits(out), logits(tiny_model))
    assert find_model(str(out)).tokenizer_digest() == find_model(str(tiny_model)).tokenizer_digest()
    chat = [{"role": "user", "content": "hi"}]
    templates = [
        AutoTokenizer.from_pretrained(p).apply_chat_template(chat, tokenize=False) for p in (out, tiny_model)
    ]
    assert templates[0] == templates[1]
    manifest = Dataset.open(str(out)).manifest
    assert set(manifest.extra["files"]) >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert manifest.slug.endswith("-dpo-beta0.1-lr0.001")
    changed = {"use_cache", "transformers_version", "_name_or_path"}
    before, after = (json.loads((p / "config.json").read_text()) for p in (tiny_model, out))
    assert {k: v for k, v in before.items() if k not in changed} == {
        k: v for k, v in after.items() if k not in changed
    }


def test_a_finished_run_is_kept(pairs: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(settings(tiny_model, max_steps=2), training=pairs, output=str(out))
    written = (out / "model.safetensors").stat().st_mtime_ns
    second = run(settings(tiny_model, max_steps=2), training=pairs, output=str(out))
    assert second.metrics() == first.metrics()
    assert (out / "model.safetensors").stat().st_mtime_ns == written


def test_a_model_that_was_finished_elsewhere_is_taken_and_nothing_trains(
    pairs: Dataset, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a run whose checkpoints are gone; another setting trains."""
    config = settings(tiny_model, max_steps=2, work=str(tmp_path / "work"))
    first = run(config, training=pairs, output=str(tmp_path / "first"))
    shutil.rmtree(tmp_path / "work" / "train", ignore_errors=True)

    def train(*_: object, **__: object) -> None:
        raise AssertionError("a training process was started")

    monkeypatch.setattr(program, "run_somewhere", train)
    second = run(config, training=pairs, output=str(tmp_path / "second"))
    assert second == first
    files = [tmp_path / name / "model.safetensors" for name in ("first", "second")]
    assert files[0].stat().st_ino == files[1].stat().st_ino
    assert Dataset.open(str(tmp_path / "second")).manifest == Dataset.open(str(tmp_path / "first")).manifest
    with pytest.raises(AssertionError, match="was started"):
        run(replace(config, max_steps=3), training=pairs, output=str(tmp_path / "third"))


def test_merged_adapters_give_the_logits_of_the_unmerged(
    pairs: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    config = settings(tiny_model, adapter="lora", learning_rate=1e-2, lora_r=4)
    run(config, training=pairs, output=str(tmp_path / "merged"))
    run(replace(config, merge_adapter=False), training=pairs, output=str(tmp_path / "adapter"))
    merged, adapted = logits(tmp_path / "merged"), logits(tmp_path / "adapter")
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)
    assert (merged - logits(tiny_model)).abs().max() > 0.01
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    assert losses(tmp_path / "merged")[0] == pytest.approx(math.log(2), abs=1e-6)


def test_the_curves_page_shows_everything_and_needs_nothing(
    pairs: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    config = settings(tiny_model, objective="qrpo", eval_every=2, max_steps=4)
    run(config, training=pairs, output=str(tmp_path / "out"))
    page = Page(curves_page(str(tmp_path / "out")))
    assert page.charts == [
        "Loss",
        "Reward margin",
        "Reward accuracy",
        "Log-ratio",
        "KL estimate",
        "Gradient norm",
        "Learning rate",
        "Throughput",
        "Memory",
        "Quantile calibration",
    ]
    peaks = [metrics["memory_gib"] for _, metrics in training_log(Dataset.open(str(tmp_path / "out"), MODEL))]
    assert len(peaks) == 4 and peaks == sorted(peaks)
    assert 0.1 < peaks[-1] < 24  # of this process, which holds torch
    assert not page.loaded
    assert "qrpo_identity-beta0.1-lr0.001" in page.text


# Trains, and dies by SIGKILL as soon as a name like the given one appears among the checkpoints.
CHILD = """
import json, os, signal, sys, threading
from pathlib import Path
from kubealign_components.data.dataset import Dataset
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.stage import run

config, data, output, pattern = json.loads(sys.argv[1])

def watch():
    while not list(Path(config["work"]).glob(pattern)):
        pass
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=watch, daemon=True).start()
run(TrainConfig(**config), training=Dataset.open(data), output=output)
"""


@pytest.mark.parametrize(
    ("adapter", "pattern"),
    [
        pytest.param("none", "**/checkpoint-00000006-*/*", id="within a save"),
        pytest.param("lora", "**/checkpoint-00000006-*/*", id="adapters with dropout, within a save"),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(
    pairs: Dataset, tiny_model: Path, tmp_path: Path, adapter: str, pattern: str
) -> None:
    """SIGKILL in the middle of saving a checkpoint: same losses, same weights, from the one before."""
    plain = settings(tiny_model, adapter=adapter, lora_dropout=0.1 if adapter == "lora" else 0.0)
    config = replace(plain, save_every=2, work=str(tmp_path / "work"))
    run(plain, training=pairs, output=str(tmp_path / "straight"))
    fields = asdict(config)
    arguments = json.dumps([fields, pairs.uri, str(tmp_path / "resumed"), pattern])
    child = subprocess.run([sys.executable, "-c", CHILD, arguments], capture_output=True, text=True)
    assert child.returncode == -9, child.stderr
    assert not (tmp_path / "resumed").exists()
    saved = {json.loads(path.read_text())["step"] for path in (tmp_path / "work").rglob(f"{MARKERS}/*.json")}
    assert saved and max(saved) < 10
    run(config, training=pairs, output=str(tmp_path / "resumed"))
    assert losses(tmp_path / "resumed") == losses(tmp_path / "straight")
    resumed, straight = weights(tmp_path / "resumed"), weights(tmp_path / "straight")
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_another_config_does_not_resume(pairs: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    config = settings(tiny_model, save_every=2, max_steps=4, work=str(tmp_path / "work"))
    run(config, training=pairs, output=str(tmp_path / "a"))
    other = replace(config, beta=0.2)
    run(other, training=pairs, output=str(tmp_path / "b"))
    assert losses(tmp_path / "b")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert len(losses(tmp_path / "b")) == 4
    assert len(list((tmp_path / "work" / "train").iterdir())) == 2


def test_checkpoints_without_marker_or_with_damage_do_not_count(tmp_path: Path) -> None:
    store = CheckpointStore(uri=str(tmp_path / "store"), keep=2)

    def newest() -> str:
        with joined() as processes:
            found = store.newest(everything, processes)
            return (found[1] / "sub" / "state.bin").read_text() if found else "nothing"

    with joined() as processes:
        for step in (1, 2, 3):
            source = tmp_path / f"source-{step}"
            (source / "sub").mkdir(parents=True)
            (source / "sub" / "state.bin").write_text(f"state {step}")
            store.publish(source, step, processes)
    names = sorted(p.name for p in (tmp_path / "store").iterdir() if list(p.rglob("*.bin")))
    assert [name[:19] for name in names] == ["checkpoint-00000002", "checkpoint-00000003"]
    half = tmp_path / "store" / "checkpoint-00000009-00000000"
    half.mkdir()
    (half / "state.bin").write_text("half")
    assert newest() == "state 3"
    (tmp_path / "store" / names[-1] / "sub" / "state.bin").write_text("damaged")
    assert newest() == "state 2"
    (tmp_path / "store" / MARKERS / f"{names[0]}.json").write_text("{")
    assert newest() == "nothing"


def test_ready_configs_are_accepted(tmp_path: Path) -> None:
    """transformers and accelerate build their plugins from them; in a process of its own, they linger."""
    code = """
import sys
from pathlib import Path
from kubealign_components.training.arguments import training_arguments
from kubealign_components.train.config import TrainConfig
from kubealign_components.training.config import SHARDED

for strategy in SHARDED:
    config = TrainConfig(policy="p", strategy=strategy, batch_size=4)
    built = training_arguments(config, Path(sys.argv[1]))
    print(strategy, built.fsdp_plugin_args or built.deepspeed_plugin.zero_stage)
"""
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    built = dict(
        line.split(" ", 1) for line in child.stdout.splitlines() if line.startswith(("fsdp", "zero"))
    )
    assert "'fsdp_version': 2" in built.pop("fsdp2")
    assert built == {"zero1": "1", "zero2": "2", "zero3": "3"}


def test_training_needs_few_packages() -> None:
    """The trainer runs in an image without these, and does not load scikit-learn where it is."""
    code = """
import importlib.util, sys
from kubealign_components.lean_imports import without_scikit_learn
BLOCKED = {"kfp", "deepspeed", "vllm", "trl", "datasets", "matplotlib"}
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
without_scikit_learn()
import kubealign_components.training.objectives, kubealign_components.train.trainer
import kubealign_components.train.stage, kubealign_components.training.curves
import kubealign_components.train_reward_model.program, kubealign_components.train_reward_model.held_out
assert not BLOCKED & set(sys.modules)
assert "sklearn" not in sys.modules and importlib.util.find_spec("sklearn")
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr


def test_every_step_s_loss_is_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = TrainingArguments(output_dir="unused", report_to=[])
    state, control = TrainerState(max_steps=3), TrainerControl()
    told = StepProgress("train")
    told.on_train_begin(arguments, state, control)
    for step in (1, 2, 3):
        state.global_step = step
        logs = {"loss": 0.5 / step, "grad_norm": 1.25, "learning_rate": 1e-6, "epoch": 0.1}
        told.on_log(arguments, state, control, logs=logs)
    told.on_train_end(arguments, state, control)
    lines = capsys.readouterr().err.splitlines()
    told_lines = [line for line in lines if "step " in line]
    assert told_lines == [
        f"train: step {step}, loss {0.5 / step:.4g}, grad norm 1.25, learning rate 1e-06"
        for step in (1, 2, 3)
    ]
    last = [state for state in map(read_line, lines) if state is not None][-1]
    assert (last.done, last.total, last.unit, last.notes) == (3, 3, "steps", "loss=0.1667")


@pytest.mark.parametrize(
    ("step", "error", "kind"),
    [
        (0, NotFinite("it has log-probability nan"), NotFinite),
        (3, NotFinite("it has log-probability nan"), Diverged),
        (3, EngineError("a text is too long"), EngineError),
    ],
)
def test_only_numbers_that_training_has_spoilt_are_a_training_that_has_diverged(
    step: int, error: EngineError, kind: type[EngineError]
) -> None:
    def model(*_: object) -> torch.Tensor:
        raise error

    trainer: Any = SimpleNamespace(state=TrainerState(global_step=step))
    with pytest.raises(EngineError) as raised:
        AlignmentTrainer._logprobs(trainer, model, None)  # type: ignore[arg-type]
    assert type(raised.value) is kind
