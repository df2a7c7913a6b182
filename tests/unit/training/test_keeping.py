"""What a training run keeps: checkpoints that damage cannot cost, saving by the clock, stopping together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kubealign_components.data.dataset import Dataset
from kubealign_components.errors import ConfigError
from kubealign_components.preemption import Preempted
from kubealign_components.train.config import TrainConfig
from kubealign_components.training import pausing
from kubealign_components.training import trackers as reporting
from kubealign_components.training.arguments import training_arguments
from kubealign_components.training.changed import require_changed
from kubealign_components.training.checkpoints import MARKERS, CheckpointStore, everything
from kubealign_components.training.pausing import Pauses
from kubealign_components.training.processes import Processes
from kubealign_components.training.schedule import learning_rate_factor
from support.training_data import make_training, score, training_rows


def alone(folder: Path) -> Processes:
    folder.mkdir(parents=True, exist_ok=True)
    return Processes(rank=0, count=1, node=0, on_node=0, ranks_on_node=(0,), folder=folder)


def save(store: CheckpointStore, step: int, folder: Path) -> None:
    made = folder / f"step-{step}"
    made.mkdir(parents=True, exist_ok=True)
    (made / "weights").write_text(f"weights of {step}")
    store.publish(made, step, alone(folder / "scratch"))


def damage(store: Path, how: str) -> None:
    for path in store.glob(f"{MARKERS}/*") if how == "empty marker" else store.glob("checkpoint-*/weights"):
        path.unlink()
        path.write_text("" if how == "empty marker" else "something else")


@pytest.mark.parametrize("how", ["empty marker", "damaged"])
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_bad_checkpoints_never_cost_the_next_one(tmp_path: Path, keep: int, how: str) -> None:
    store = CheckpointStore(uri=str(tmp_path / "store"), keep=keep)
    for step in (100, 200, 300):
        save(store, step, tmp_path)
    damage(tmp_path / "store", how)
    for step in (10, 20, 30, 40):
        save(store, step, tmp_path)
        found = store.newest(everything, alone(tmp_path / "scratch"))
        assert found is not None and found[0].step == step
    assert [saved.step for saved in store.complete()] == [40, 30, 20, 10][:keep]


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.integers(1, 30), min_size=1, max_size=8), keep=st.integers(1, 3))
def test_what_was_published_last_stands(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], keep: int
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    store = CheckpointStore(uri=str(folder / "store"), keep=keep)
    for step in steps:
        save(store, step, folder)
        saved = store.complete()
        assert saved[0].step == step and len(saved) <= keep


class Told:
    """A stop that the test requests."""

    requested = False

    def __call__(self) -> None:
        raise NotImplementedError


def test_saving_by_the_clock_loses_no_more_than_its_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(pausing.time, "monotonic", lambda: clock[0])
    pauses = Pauses(alone(tmp_path), Told(), every=0, minutes=10)
    saved = []
    for step in range(1, 13):
        clock[0] += 200  # seconds a step
        if pauses.after(step):
            saved.append(step)
    assert saved == [3, 6, 9, 12]


def test_sigterm_saves_at_the_step_in_flight(tmp_path: Path) -> None:
    stop = Told()
    pauses = Pauses(alone(tmp_path), stop, every=4, minutes=10)
    assert [pauses.after(step) for step in (1, 2, 3, 4, 5)] == [False, False, False, True, False]
    pauses.check()
    stop.requested = True
    assert pauses.after(6)
    with pytest.raises(Preempted):
        pauses.check()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@given(steps=st.integers(1, 300), warmup=st.integers(0, 40))
def test_no_step_has_a_rate_of_zero(schedule: str, steps: int, warmup: int) -> None:
    rates = [
        learning_rate_factor(step, steps=steps, warmup=min(warmup, steps), schedule=schedule)
        for step in range(steps)
    ]
    assert all(0 < rate <= 1 for rate in rates) and max(rates) == 1


def test_after_the_warm_up_the_rate_is_that_of_transformers() -> None:
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    for schedule, theirs in (
        ("linear", get_linear_schedule_with_warmup),
        ("cosine", get_cosine_schedule_with_warmup),
    ):
        factor = theirs(torch.optim.SGD([torch.zeros(1)], 1.0), 3, 20).lr_lambdas[0]
        ours = [learning_rate_factor(s, steps=20, warmup=3, schedule=schedule) for s in range(3, 20)]
        assert ours == pytest.approx([factor(s) for s in range(3, 20)])


@pytest.mark.parametrize(
    ("environment", "installed", "expected"),
    [
        ({}, True, []),
        ({"MLFLOW_TRACKING_URI": "http://mlflow"}, True, ["mlflow"]),
        ({"MLFLOW_TRACKING_URI": ""}, True, []),
        ({"TENSORBOARD_LOGGING_DIR": "gs://b/tb", "WANDB_PROJECT": "p"}, True, ["tensorboard", "wandb"]),
        ({"KUBEFLOW_TRAINER_SERVER_URL": "https://x", "WANDB_API_KEY": "k"}, False, ["kubeflow"]),
    ],
)
def test_trackers_are_those_whose_variables_are_set(
    environment: dict[str, str], installed: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "find_spec", lambda name: name if installed else None)
    assert reporting.trackers(environment) == expected


def test_the_trainer_reports_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(policy="p", dtype="float32")
    assert training_arguments(config, tmp_path).report_to == []
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "https://trainer.example")
    assert training_arguments(config, tmp_path).report_to == ["kubeflow"]


def weights(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_model_that_is_still_the_policy_is_refused(tmp_path: Path) -> None:
    policy = weights(tmp_path / "policy", a=torch.ones(3), b=torch.ones(2))
    moved = weights(tmp_path / "moved", a=torch.ones(3), b=torch.tensor([1.0, 1.5]))
    rounded = weights(tmp_path / "rounded", a=torch.full((3,), 1.001).bfloat16())
    adapter = weights(
        tmp_path / "adapter", **{"x.lora_A.weight": torch.ones(2), "x.lora_B.weight": torch.zeros(2)}
    )
    require_changed(policy, moved, 1e-6)
    for same in (policy, rounded, adapter):
        with pytest.raises(ConfigError, match=r"learning_rate=1e-06: expected a rate that moves weights"):
            require_changed(policy, same, 1e-6)


PROGRAM = """
import sys
from kubealign_components.data.dataset import Dataset
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.stage import run
policy, data, work, output, steps, processes = sys.argv[1:]
config = TrainConfig(
    policy=policy, work=work, max_steps=int(steps), processes=int(processes), batch_size=4,
    learning_rate=1e-3, dtype="float32",
)
run(config, training=Dataset.open(data), output=output)
"""


@pytest.fixture
def data(make_dataset: Callable[..., Dataset], tiny_model: Path) -> Dataset:
    return make_training(make_dataset, tiny_model, score(training_rows(12), tiny_model))


def started(*arguments: object) -> subprocess.Popen[str]:
    environment = os.environ | {"KUBEALIGN_PROGRESS_SECONDS": "0", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(process: subprocess.Popen[str], text: str) -> None:
    """Read until ``process`` writes ``text``."""
    assert process.stderr is not None
    seen = ""
    while text not in seen:
        block = process.stderr.read(1)
        assert block, seen
        seen += block


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_keeps_the_step_and_the_next_attempt_goes_on(
    data: Dataset, tiny_model: Path, tmp_path: Path, processes: int
) -> None:
    work, output = tmp_path / "work", tmp_path / "model"
    process = started(tiny_model, data.uri, work, output, 3000, processes)
    until(process, " 3/3000 ")
    listens = listening(process.pid)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=60)[1]
    assert process.returncode == 143, text
    assert all(address.startswith("127.") or address == "::1" for address in listens), listens
    (marker,) = work.rglob(f"{MARKERS}/*.json")
    step = int(marker.name.split("-")[1])
    assert step >= 3 and not output.exists()
    again = started(tiny_model, data.uri, work, output, 3000, processes)
    until(again, f"going on from step {step}")
    with again:
        again.kill()


def listening(pid: int) -> set[str]:
    """Addresses on which the process and its children listen for TCP connections."""
    import psutil

    parent = psutil.Process(pid)
    return {
        connection.laddr.ip
        for process in (parent, *parent.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
