"""Training jobs on the fake Kubernetes API server: what several tests of them start with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from kubealign_components.errors import EngineError
from kubealign_components.trainjob.api import ClusterApi
from kubealign_components.trainjob.launcher import train_job
from kubealign_components.trainjob.settings import PodShape, TrainJobSettings
from kubealign_components.trainjob.states import JobState
from support.fake_kubernetes import NAMESPACE, FakeKubernetes, Job

ROLE = Path(__file__).parents[2] / "manifests" / "base" / "role-train.yaml"
URI = "gs://bucket/work/train/ab12/job-cd34/job.json"
SHAPE = PodShape(
    resources={"limits": {"nvidia.com/gpu": "8", "memory": "512Gi"}, "requests": {"cpu": "64"}},
    env=({"name": "AWS_REGION", "value": "eu"}, {"name": "AWS_REGION", "value": "us"}),
    volumes=({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},),
    volume_mounts=({"name": "shm", "mountPath": "/dev/shm"},),
    node_selector={"gpu": "h100"},
    tolerations=({"key": "spot", "operator": "Exists", "effect": "NoSchedule"},),
    affinity={"nodeAffinity": {}},
)
LABELS = {"app.kubernetes.io/part-of": "kubealign", "kueue.x-k8s.io/queue-name": "alignment"}
FAST = {"poll_seconds": 0.02, "api_timeout": 3.0}


def api_of(server: FakeKubernetes, deadline: float = 3.0) -> ClusterApi:
    settings = client.Configuration()
    settings.host = server.url
    return ClusterApi(settings, NAMESPACE, deadline=deadline, pause=0.02)


def run(server: FakeKubernetes, nodes: int = 2, **settings: Any) -> list[str]:
    """Start training and wait for its end; what was written."""
    lines: list[str] = []
    wanted = TrainJobSettings(**{"labels": LABELS, **FAST, **settings})
    train_job(api_of(server), nodes, 0, SHAPE, wanted, lines.append)(URI)
    return lines


def failing(server: FakeKubernetes, **settings: Any) -> str:
    with pytest.raises(EngineError) as caught:
        run(server, **settings)
    return str(caught.value)


def states(lines: list[str]) -> list[str]:
    words = [line.split("] ", 1)[1] for line in lines if line.startswith("[TrainJob")]
    return [word for word in words if word in set(JobState)]


def succeed(server: FakeKubernetes, job: Job) -> None:
    job.pods()
    server.seen()
    job.run()
    server.seen()
    job.complete()


def left_running(server: FakeKubernetes) -> str:
    """A TrainJob as an attempt that was killed leaves it; the uid of its owner."""
    lines: list[str] = []
    body: dict[str, Any] = {}

    def keep(_: FakeKubernetes, job: Job) -> None:
        body.update(job.body)
        del server.jobs[job.name]

    server.story = keep
    with pytest.raises(EngineError):
        train_job(api_of(server), 2, 0, SHAPE, TrainJobSettings(labels=LABELS, **FAST), lines.append)(URI)
    server.story = None
    server.add(body)
    return str(body["metadata"]["ownerReferences"][0]["uid"])
