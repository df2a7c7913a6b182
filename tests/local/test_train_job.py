"""The train component on two nodes: a TrainJob whose pods the fake API server really runs, under torchrun."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kfp import dsl

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import MODEL
from kubealign_components.errors import DriftError
from kubealign_components.train.component import train
from support.fake_kubernetes import LAUNCHER, FakeKubernetes, Job, granted_by
from support.training_data import losses, make_training, score, training_rows

ROLE = Path(__file__).parents[2] / "manifests" / "base" / "role-train.yaml"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="gloo between processes that have no GPU"),
]


def kubelet(server: FakeKubernetes, job: Job) -> None:
    """Run the pods' command as Trainer's runtime and a kubelet do, and tell how it ended."""
    names = job.run()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    trainer = job.body["spec"]["trainer"]
    processes = []
    for rank, name in enumerate(names):
        told = {
            "PET_NNODES": trainer["numNodes"],
            "PET_NPROC_PER_NODE": trainer["numProcPerNode"],
            "PET_NODE_RANK": rank,
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": port,
            # Where an image has torchrun.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        environment = {key: str(value) for key, value in told.items()}
        environment |= {one["name"]: one["value"] for one in trainer["env"]}
        process = subprocess.Popen(
            trainer["command"],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=_log, args=(server, name, process), daemon=True).start()
        processes.append(process)
    codes = [process.wait() for process in processes]
    if not any(codes):
        return job.complete()
    for name, code in zip(names, codes, strict=True):
        if code:
            job.end_pod(name, code)
    return job.fail()


def _log(server: FakeKubernetes, name: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            server.write(name, line.rstrip("\n"))


def artifacts_of(
    make_dataset: Callable[..., Dataset], policy: Path, folder: Path, wrong_by: float = 0.0
) -> dict[str, dsl.Artifact]:
    """Inputs and outputs of the component; the reference log-probabilities are ``wrong_by`` so much."""
    rows = score(training_rows(12, validation=4), policy)
    for completion in (one for row in rows for one in row["completions"]):
        completion["logprob"] += wrong_by
    return {
        "training": dsl.Dataset(uri=make_training(make_dataset, policy, rows).uri),
        "model": dsl.Model(uri=str(folder / "model")),
        "metrics": dsl.Metrics(uri=str(folder / "metrics")),
        "curves": dsl.HTML(uri=str(folder / "curves.html")),
    }


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKubernetes:
    server = FakeKubernetes(kubelet, granted_by(ROLE))
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "config")))
    monkeypatch.setenv("KFP_POD_NAME", LAUNCHER)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return server


def run(artifacts: dict[str, dsl.Artifact], policy: Path, work: Path, nodes: int, **options: object) -> None:
    train.python_func(
        **artifacts,
        policy=str(policy),
        learning_rate=3e-4,
        max_steps=4,
        batch_size=4,
        nodes=nodes,
        work=str(work),
        train_job={"poll_seconds": 0.2},
        pod=dsl.TaskConfig(env=[{"name": "FROM_TASK", "value": "1"}]),
        options={"dtype": "float32", "strategy": "fsdp2", "processes": 1, **options},
    )


def test_two_nodes_publish_the_model_that_one_would(
    make_dataset: Callable[..., Dataset],
    cluster: FakeKubernetes,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    artifacts = artifacts_of(make_dataset, tiny_model, tmp_path)
    run(artifacts, tiny_model, tmp_path / "work", nodes=2)
    ((_, body),) = cluster.jobs.items()
    assert {"name": "FROM_TASK", "value": "1"} in body["spec"]["trainer"]["env"]
    assert artifacts["model"].metadata["schema"] == MODEL
    model = Dataset.open(artifacts["model"].uri, MODEL)
    together = losses(model.uri)
    assert (tmp_path / "curves.html").read_text().startswith("<!")
    shown = capsys.readouterr().out
    assert re.search(r"\[TrainJob kubealign-\w+\] succeeded", shown)

    alone = artifacts | {"model": dsl.Model(uri=str(tmp_path / "alone"))}
    run(alone, tiny_model, tmp_path / "work-alone", nodes=1, strategy="none")
    single = losses(alone["model"].uri)
    assert together == pytest.approx(single, rel=1e-5)
    assert len(cluster.jobs) == 1
    # A retry of the step finds the model and starts nothing.
    before = len(cluster.requests)
    run(artifacts, tiny_model, tmp_path / "work", nodes=2)
    assert {permission[0] for permission, _ in cluster.requests[before:]} == {"get"}
    cluster.close()


def test_what_a_node_raised_is_what_the_step_fails_with(
    make_dataset: Callable[..., Dataset], cluster: FakeKubernetes, tiny_model: Path, tmp_path: Path
) -> None:
    artifacts = artifacts_of(make_dataset, tiny_model, tmp_path, wrong_by=-50.0)
    with pytest.raises(DriftError):
        run(artifacts, tiny_model, tmp_path / "work", nodes=2)
    ((_, body),) = cluster.jobs.items()
    assert body["status"]["conditions"][-1]["type"] == "Failed"
    assert not (tmp_path / "model").exists()
    cluster.close()
