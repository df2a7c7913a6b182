"""Several training processes on this machine give what one gives, sharded or not."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import build_tiny_model
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import MODEL
from kubealign_components.errors import ConfigError, DriftError
from kubealign_components.train.checkpoints import MARKER
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.curves import training_log
from kubealign_components.train.stage import run
from training_data import make_training, score, training_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need no GPU or two"),
]


@pytest.fixture
def pairs(make_dataset: Callable[..., Dataset], tiny_model: Path) -> Dataset:
    return make_training(make_dataset, tiny_model, score(training_rows(12, validation=4), tiny_model))


def settings(policy: Path) -> TrainConfig:
    return TrainConfig(
        policy=str(policy),
        max_steps=4,
        batch_size=5,  # 5, 5 and 2 of the 12 examples: the shares are uneven
        micro_batch_tokens=40,
        learning_rate=1e-3,
        dtype="float32",
        processes=1,
    )


def losses(model: Path) -> list[float]:
    return [m["loss"] for _, m in training_log(Dataset.open(str(model), MODEL)) if "loss" in m]


def weights(model: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(model).state_dict()


@pytest.mark.parametrize(
    ("strategy", "adapter"),
    [("none", "none"), ("zero1", "none"), ("zero2", "none"), ("zero3", "none"), ("zero3", "lora")],
)
def test_two_processes_train_what_one_trains(
    pairs: Dataset, tiny_model: Path, tmp_path: Path, strategy: str, adapter: str
) -> None:
    """Same losses and same weights; and the sharded checkpoint of step 2 leads to the same end."""
    alone = replace(settings(tiny_model), adapter=adapter)
    run(alone, training=pairs, output=str(tmp_path / "one"))
    both = replace(
        alone, strategy=strategy, processes=2, save_every=2, keep_checkpoints=9, work=str(tmp_path / "work")
    )
    run(both, training=pairs, output=str(tmp_path / "two"))
    for marker in (tmp_path / "work").rglob(MARKER):
        if json.loads(marker.read_text())["step"] == 4:
            marker.unlink()
    run(both, training=pairs, output=str(tmp_path / "resumed"))
    for other in ("two", "resumed"):
        assert losses(tmp_path / other) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
        expected, actual = weights(tmp_path / "one"), weights(tmp_path / other)
        for name, weight in expected.items():
            torch.testing.assert_close(actual[name], weight, atol=1e-5, rtol=1e-4)
    assert losses(tmp_path / "one")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(tmp_path / "one")[-1] < 0.65


def test_errors_of_the_processes_reach_the_caller(
    make_dataset: Callable[..., Dataset], tiny_model: Path, tmp_path: Path
) -> None:
    data = make_training(
        make_dataset, tiny_model, score(training_rows(4), build_tiny_model(tmp_path / "x", seed=1))
    )
    with pytest.raises(DriftError, match="nats per token on average"):
        run(replace(settings(tiny_model), processes=2), training=data, output=str(tmp_path / "out"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine could")
def test_fsdp_without_cuda_is_refused(pairs: Dataset, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="zero3 on this machine"):
        run(replace(settings(tiny_model), strategy="fsdp2"), training=pairs, output=str(tmp_path / "out"))


# accelerate runs FSDP2 on accelerators only, so the part that is ours is sharded by torch itself: the
# log-probability module, whose head runs outside its layers and once more in the backward pass.
SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
from kubealign_components.engines.packing import LogprobModel
from kubealign_components.train.data import collate
from training_data import training_rows

dist.init_process_group("gloo")
load = AutoModelForCausalLM.from_pretrained
whole, sharded = (LogprobModel(load(sys.argv[1], dtype=torch.float32)) for _ in "ab")
batch = collate(training_rows(3), 3).packed
mesh = init_device_mesh("cpu", (2,))
for layer in sharded.model.get_decoder().layers:
    fully_shard(layer, mesh=mesh)
fully_shard(sharded, mesh=mesh)
expected, actual = whole(batch), sharded(batch)
expected.sum().backward()
actual.sum().backward()
torch.testing.assert_close(actual, expected)
gradients = dict(whole.named_parameters())
for name, parameter in sharded.named_parameters():
    torch.testing.assert_close(parameter.grad.full_tensor(), gradients[name].grad)
dist.destroy_process_group()
"""


def test_log_probabilities_and_gradients_survive_fsdp2(tiny_model: Path, tmp_path: Path) -> None:
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    tests = str(Path(__file__).parents[1])
    child = subprocess.run(
        [sys.executable, *command, str(tiny_model)],
        env={**os.environ, "PYTHONPATH": tests, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
