"""A process that launches a training, or finds the model made, loads nothing of what trains."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kubealign_components.engines.dtypes import saved_dtype_name
from kubealign_components.errors import EngineError
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.stage import run
from support.datasets import MakeDataset
from support.training_data import make_training, score, training_rows

HEAVY = ("datasets", "deepspeed", "peft", "scipy", "transformers.trainer")
"""What training brings along: five seconds of loading. The tokenizer alone brings in torch."""
LIST = f"import sys; print([name for name in ('torch', *{HEAVY!r}) if name in sys.modules])"


def loaded(program: str) -> list[str]:
    """Which of the heavy modules are there when ``program`` has run."""
    done = subprocess.run([sys.executable, "-c", f"{program}\n{LIST}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout.splitlines()[-1].replace("'", '"'))
    return names


@pytest.mark.parametrize(
    "module",
    ["train.stage", "train_reward_model.stage", "train_ppo.stage", "trainjob.launcher"],
)
def test_a_stage_that_launches_is_light(module: str) -> None:
    assert loaded(f"import kubealign_components.{module}") == []


def test_a_model_that_stands_there_is_found_without_what_trains(
    make_dataset: MakeDataset, tiny_model: Path, tmp_path: Path
) -> None:
    rows = score(training_rows(6, validation=2), tiny_model)
    training = make_training(make_dataset, tiny_model, rows)
    settings = {"policy": str(tiny_model), "max_steps": 1, "batch_size": 2, "dtype": "float32"}
    run(TrainConfig(**settings), training=training, output=str(tmp_path / "model"))
    again = (
        "from kubealign_components.data.dataset import Dataset\n"
        "from kubealign_components.train.config import TrainConfig\n"
        "from kubealign_components.train.stage import run\n"
        f"run(TrainConfig(**{settings!r}), training=Dataset.open({training.uri!r}),"
        f" output={str(tmp_path / 'model')!r})"
    )
    assert not set(loaded(again)) & set(HEAVY)


@pytest.mark.parametrize(
    ("said", "saved"),
    [("float32", "float32"), ("torch.bfloat16", "bfloat16"), ("half", "float16"), ("float", "float32")],
)
def test_the_precision_that_a_model_is_saved_in_has_torch_s_name(
    said: str, saved: str, tmp_path: Path
) -> None:
    import torch

    (tmp_path / "config.json").write_text(json.dumps({"dtype": said}))
    assert saved_dtype_name("saved", tmp_path) == saved
    assert str(getattr(torch, said.removeprefix("torch."))) == f"torch.{saved}"


@pytest.mark.parametrize("said", ["int8", "float8_e4m3fn", "nothing"])
def test_a_precision_that_training_cannot_save_is_refused(said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": said}))
    with pytest.raises(EngineError, match="training cannot save; set save_dtype"):
        saved_dtype_name("saved", tmp_path)


def test_a_pod_that_starts_the_nodes_of_a_training_needs_no_torch(
    make_dataset: MakeDataset, tiny_model: Path, tmp_path: Path
) -> None:
    """As its supervisor has it: with torch out of reach. What the nodes train in is what GPUs have."""
    rows = score(training_rows(6, validation=2), tiny_model)
    training = make_training(make_dataset, tiny_model, rows)
    settings = {"policy": str(tiny_model), "max_steps": 1, "nodes": 2, "max_initial_drift": 1.0}
    settings |= {"work": str(tmp_path / "work"), "strategy": "fsdp2"}
    program = (
        "import json, sys\n"
        "sys.modules['torch'] = None\n"
        "from kubealign_components.data.dataset import Dataset\n"
        "from kubealign_components.errors import EngineError\n"
        "from kubealign_components.train.config import TrainConfig\n"
        "from kubealign_components.train.stage import run\n"
        "def launcher(uri):\n"
        "    print(json.loads(open(uri).read())['config']['dtype'])\n"
        "    raise EngineError('the nodes were asked for')\n"
        "try:\n"
        f"    run(TrainConfig(**{settings!r}), training=Dataset.open({training.uri!r}),"
        f" output={str(tmp_path / 'model')!r}, launcher=launcher)\n"
        "except EngineError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split("\n") == ["bfloat16", "the nodes were asked for", ""], done.stderr
