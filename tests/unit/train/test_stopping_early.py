"""A training that stops after a share of its steps, and goes on to what it would have come to by itself."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import MODEL
from kubealign_components.errors import ConfigError
from kubealign_components.train import stage
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.stage import run
from kubealign_components.training.checkpoints import MARKERS, CheckpointStore
from kubealign_components.training.curves import training_log
from kubealign_components.training.processes import joined
from kubealign_components.training.schedule import planned_steps, steps_in
from support.datasets import MakeDataset
from support.training_data import make_training, score, training_rows

SHARES = (0.2, 0.4, 1.0)
STEPS = (2, 4, 10)
SHARED = ("loss", "learning_rate", "grad_norm", "reward_margin")
"""What the log of a step says that no clock measures."""


@pytest.fixture
def pairs(make_dataset: MakeDataset, tiny_model: Path) -> Dataset:
    """Three steps an epoch, of four pairs each, and four pairs to validate."""
    return make_training(make_dataset, tiny_model, score(training_rows(12, validation=4), tiny_model))


def settings(policy: Path, work: Path, **changes: Any) -> TrainConfig:
    given = {
        "max_steps": 10,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "dtype": "float32",
        "schedule": "cosine",
    }
    return TrainConfig(policy=str(policy), work=str(work), **(given | changes))


def weights(model: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(model / "model.safetensors")


def assert_alike(model: Path, other: Path) -> None:
    ours, theirs = weights(model), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def log_of(model: Path) -> list[tuple[int, dict[str, float]]]:
    log = training_log(Dataset.open(str(model), MODEL))
    return [(step, {name: row[name] for name in SHARED}) for step, row in log]


def saved_steps(work: Path) -> list[int]:
    return sorted(json.loads(path.read_text())["step"] for path in work.rglob(f"{MARKERS}/*.json"))


def step_of_each(rows: list[tuple[int, dict[str, float]]]) -> list[int]:
    return [step for step, _ in rows]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="all weights"),
        pytest.param({"adapter": "lora", "lora_dropout": 0.1, "lora_r": 4}, id="adapters with dropout"),
        pytest.param({"max_steps": 0, "epochs": 3.2, "eval_every": 1}, id="by epochs, validated"),
    ],
)
def test_shares_of_a_training_come_to_what_it_comes_to_at_once(
    pairs: Dataset, tiny_model: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run(settings(tiny_model, tmp_path / "alone", **changes), training=pairs, output=str(tmp_path / "whole"))
    whole = log_of(tmp_path / "whole")
    assert step_of_each(whole) == list(range(1, 11))
    for share, steps in zip(SHARES, STEPS, strict=True):
        config = settings(tiny_model, tmp_path / "work", stop_after=share, **changes)
        output = tmp_path / f"after-{steps}"
        assert run(config, training=pairs, output=str(output)).counts["steps"] == steps
        assert log_of(output) == whole[:steps], "other learning rates, another order, or other steps"
        assert saved_steps(tmp_path / "work") == [min(steps, STEPS[-2])], "what the next one goes on from"
    assert_alike(tmp_path / "after-10", tmp_path / "whole")
    manifests = [Dataset.open(str(tmp_path / n), MODEL).manifest for n in ("after-10", "whole", "after-4")]
    assert manifests[0].fingerprint == manifests[1].fingerprint != manifests[2].fingerprint
    assert len(list((tmp_path / "work" / "train").iterdir())) == 1


def test_a_stop_that_was_killed_before_its_model_takes_no_step_more(
    pairs: Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    """Neither the one that the library takes in the middle of an epoch, nor those of a later checkpoint."""
    config = settings(tiny_model, tmp_path / "work", stop_after=0.4, keep_checkpoints=2)
    run(config, training=pairs, output=str(tmp_path / "first"))
    shutil.rmtree(tmp_path / "work" / "finished")
    run(replace(config, stop_after=0.7), training=pairs, output=str(tmp_path / "later"))
    assert saved_steps(tmp_path / "work") == [4, 7]
    shutil.rmtree(tmp_path / "work" / "finished")
    run(config, training=pairs, output=str(tmp_path / "again"))
    assert_alike(tmp_path / "again", tmp_path / "first")
    assert log_of(tmp_path / "again") == log_of(tmp_path / "first")
    assert saved_steps(tmp_path / "work") == [4, 7], "what a later stop goes on from stays"


def test_without_its_checkpoint_a_training_begins_again_and_says_so(
    pairs: Dataset, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(tiny_model, tmp_path / "work", stop_after=0.2)
    run(config, training=pairs, output=str(tmp_path / "first"))
    with caplog.at_level(logging.WARNING):
        run(replace(config, stop_after=0.4), training=pairs, output=str(tmp_path / "went-on"))
        assert "going on from step 2" in caplog.text
        caplog.clear()
        shutil.rmtree(tmp_path / "work")
        run(replace(config, stop_after=0.4), training=pairs, output=str(tmp_path / "began-again"))
    assert "no checkpoint is there, so training begins at step 0" in caplog.text
    assert_alike(tmp_path / "began-again", tmp_path / "went-on")


def test_processes_elsewhere_are_told_where_to_stop(
    pairs: Dataset, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[dict[str, Any]] = []

    class Told(Exception):
        pass

    def launch(_: object, job: dict[str, Any], *__: object, **___: object) -> None:
        jobs.append(job)
        raise Told

    monkeypatch.setattr("kubealign_components.training.program.run_somewhere", launch)
    for share in SHARES:
        config = settings(tiny_model, tmp_path / "work", stop_after=share)
        with pytest.raises(Told):
            run(config, training=pairs, output=str(tmp_path / "model"))
    assert [job["config"]["stop_after"] for job in jobs] == list(SHARES)
    assert len({job["checkpoints"] for job in jobs}) == 1
    assert len({job["provenance"]["fingerprint"] for job in jobs}) == len(SHARES)
    assert jobs[0]["stage"] == stage.STAGE


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_is_above_0_and_at_most_1(share: float) -> None:
    with pytest.raises(ConfigError, match="stop_after"):
        TrainConfig(policy="p", stop_after=share)


@examples(max_examples=30, deadline=None)
@given(count=st.integers(1, 200), batch=st.integers(1, 9), epochs=st.floats(0.1, 4), factor=st.integers(2, 5))
def test_every_share_has_a_step_and_the_whole_has_all(
    count: int, batch: int, epochs: float, factor: int
) -> None:
    steps = planned_steps(TrainConfig(policy="p", batch_size=batch, epochs=epochs), count)
    shares = [steps_in(factor**-power, steps) for power in (3, 2, 1, 0)]
    assert shares[0] >= 1 and shares == sorted(shares) and shares[-1] == steps
    assert steps_in(1 / factor, factor * steps) == steps


def test_checkpoints_of_later_steps_are_left_to_whom_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    folder.mkdir()
    (folder / "weights").write_text("weights")
    with joined() as alone:
        for step in (2, 8):
            CheckpointStore(uri=str(tmp_path / "store"), keep=2).publish(folder, step, alone)
        early = CheckpointStore(uri=str(tmp_path / "store"), keep=1, last_step=4)
        assert [saved.step for saved in early.complete()] == [2]
        early.publish(folder, 4, alone)
    whole = CheckpointStore(uri=str(tmp_path / "store"), keep=1)
    assert [saved.step for saved in whole.complete()] == [8, 4]
