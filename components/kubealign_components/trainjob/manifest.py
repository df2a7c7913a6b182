"""The TrainJob object: deterministic by the training job's URI, so that a retry finds what it started."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from kubealign_components.data.fingerprint import digest
from kubealign_components.json_types import JsonObject
from kubealign_components.trainjob.api import GROUP, VERSION
from kubealign_components.trainjob.settings import PodShape, TrainJobSettings
from kubealign_components.trainjob.step_pod import StepPod

NODES, CONTAINER = "node", "node"
"""The torch runtime's replicated job, and its container."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "kubealign"}
SPEC_DIGEST = "kubealign/spec-digest"
JOB_URI = "kubealign/job"
RUN = "pipeline/runid"
"""KFP's label of a pod with the id of its run."""
MANAGER = "kubealign.org/launcher"
"""Who made a TrainJob's patch of its runtime; Trainer wants a path below a domain."""
_KUEUE = "kueue.x-k8s.io/"
_SHARED_MEMORY = "shared-memory"
_SUPERVISED = ("-m", "kubealign_components.supervisor")
"""Here it starts nothing again, which is the runtime's part, but keeps secrets out of the pod's log."""


def job_name(uri: str) -> str:
    """Name of the TrainJob for the training job at ``uri``; pods add up to 30 characters to it."""
    return f"kubealign-{hashlib.sha256(uri.encode()).hexdigest()[:16]}"


def train_job_body(
    uri: str,
    nodes: int,
    processes: int,
    *,
    pod: StepPod,
    shape: PodShape,
    settings: TrainJobSettings,
) -> JsonObject:
    """A ``trainer.kubeflow.org/v1alpha1`` TrainJob.

    Args:
        uri: of the training job.
        nodes: pods that train together.
        processes: training processes of a pod.
        pod: the step's pod that starts it.
        shape: what the pods get.
        settings: the rest.
    """
    spec: JsonObject = {
        "runtimeRef": {
            "apiGroup": GROUP,
            "kind": settings.runtime_kind,
            "name": settings.runtime,
        },
        "trainer": {
            "image": pod.image,
            # The runtime's PET_ variables are torchrun's arguments.
            "command": ["python", *_SUPERVISED, "-m", "kubealign_components.training.node", uri],
            "env": _by_name([{"name": "PYTHONSAFEPATH", "value": "1"}, *shape.env]),
            "numNodes": nodes,
            "numProcPerNode": processes,
        },
        "runtimePatches": [
            {"manager": MANAGER, "trainingRuntimeSpec": _patch(pod, shape, settings)},
        ],
    }
    if shape.resources:
        spec["trainer"]["resourcesPerNode"] = dict(shape.resources)
    if settings.run_timeout:
        spec["activeDeadlineSeconds"] = settings.run_timeout
    run = {RUN: pod.labels[RUN]} if RUN in pod.labels else {}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": job_name(uri),
            "labels": {**settings.labels, **run, **MANAGED_BY},
            "annotations": {SPEC_DIGEST: digest(spec), JOB_URI: uri},
            "ownerReferences": [pod.owner.reference],
        },
        "spec": spec,
    }


def _patch(pod: StepPod, shape: PodShape, settings: TrainJobSettings) -> JsonObject:
    """What the runtime's pods get on top, as a TrainJob's ``trainingRuntimeSpec``."""
    labels = {name: value for name, value in settings.labels.items() if not name.startswith(_KUEUE)}
    volumes, mounts = _shared_memory(settings)
    container = {
        "name": CONTAINER,
        "volumeMounts": [*shape.volume_mounts, *mounts],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "serviceAccountName": pod.service_account,
        "imagePullSecrets": list(pod.pull_secrets),
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{key: value for key, value in container.items() if value}],
        "volumes": _by_name([*shape.volumes, *volumes]),
        "nodeSelector": dict(shape.node_selector),
        "tolerations": list(shape.tolerations),
        "affinity": dict(shape.affinity),
    }
    template = {
        # Nodes talk to each other directly, on ports that only torch knows.
        "metadata": {
            "labels": {"sidecar.istio.io/inject": "false", **labels},
            "annotations": dict(settings.annotations),
        },
        "spec": {key: value for key, value in spec.items() if value},
    }
    replicated = {"name": NODES, "template": {"spec": {"template": template}}}
    return {"template": {"spec": {"replicatedJobs": [replicated]}}}


def _shared_memory(settings: TrainJobSettings) -> tuple[list[JsonObject], list[JsonObject]]:
    """Volumes and mounts for /dev/shm: KFP hands an emptyDir of the task on to nobody."""
    if not settings.shared_memory:
        return [], []
    memory = {"medium": "Memory", "sizeLimit": settings.shared_memory}
    mount = {"name": _SHARED_MEMORY, "mountPath": "/dev/shm"}
    return [{"name": _SHARED_MEMORY, "emptyDir": memory}], [mount]


def _by_name(items: Sequence[Mapping[str, object]]) -> list[JsonObject]:
    """``items`` without those that a later one of the same name replaces."""
    return list({item["name"]: dict(item) for item in items}.values())
