"""The TrainJob object: deterministic by the training job's URI, so that a retry finds what it started."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from kubealign_components.data.fingerprint import digest
from kubealign_components.trainjob.api import GROUP, VERSION
from kubealign_components.trainjob.owner_pod import Launcher
from kubealign_components.trainjob.settings import PodShape, TrainJobSettings

NODES, CONTAINER = "node", "node"
"""The torch runtime's replicated job, and its container."""
MANAGED_BY = {"app.kubernetes.io/managed-by": "kubealign"}
SPEC_DIGEST = "kubealign/spec-digest"
JOB_URI = "kubealign/job"
RUN = "pipeline/runid"
"""KFP's label of a pod with the id of its run."""
_KUEUE = "kueue.x-k8s.io/"

Json = dict[str, Any]


def job_name(uri: str) -> str:
    """Name of the TrainJob for the training job at ``uri``; pods add up to 30 characters to it."""
    return f"kubealign-{hashlib.sha256(uri.encode()).hexdigest()[:16]}"


def train_job_body(
    uri: str,
    nodes: int,
    processes: int,
    *,
    launcher: Launcher,
    shape: PodShape,
    settings: TrainJobSettings,
) -> Json:
    """A ``trainer.kubeflow.org/v1alpha1`` TrainJob.

    Args:
        uri: of the training job.
        nodes: pods that train together.
        processes: training processes of a pod.
        launcher: the pod that starts it.
        shape: what the pods get.
        settings: the rest.
    """
    spec: Json = {
        "runtimeRef": {
            "apiGroup": GROUP,
            "kind": settings.runtime_kind,
            "name": settings.runtime,
        },
        "trainer": {
            "image": launcher.image,
            # The runtime's PET_ variables are torchrun's arguments.
            "command": ["torchrun", "-m", "kubealign_components.training", uri],
            "env": _by_name([{"name": "PYTHONSAFEPATH", "value": "1"}, *shape.env]),
            "numNodes": nodes,
            "numProcPerNode": processes,
        },
        "runtimePatches": [
            {"manager": "kubealign", "trainingRuntimeSpec": _patch(launcher, shape, settings)}
        ],
    }
    if shape.resources:
        spec["trainer"]["resourcesPerNode"] = dict(shape.resources)
    if settings.run_timeout:
        spec["activeDeadlineSeconds"] = settings.run_timeout
    run = {RUN: launcher.labels[RUN]} if RUN in launcher.labels else {}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": job_name(uri),
            "labels": {**settings.labels, **run, **MANAGED_BY},
            "annotations": {SPEC_DIGEST: digest(spec), JOB_URI: uri},
            "ownerReferences": [launcher.owner],
        },
        "spec": spec,
    }


def _patch(launcher: Launcher, shape: PodShape, settings: TrainJobSettings) -> Json:
    """What the runtime's pods get on top, as a TrainJob's ``trainingRuntimeSpec``."""
    labels = {name: value for name, value in settings.labels.items() if not name.startswith(_KUEUE)}
    container = {
        "name": CONTAINER,
        "volumeMounts": list(shape.volume_mounts),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod = {
        "serviceAccountName": launcher.service_account,
        "imagePullSecrets": list(launcher.pull_secrets),
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{key: value for key, value in container.items() if value}],
        "volumes": _by_name(shape.volumes),
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
        "spec": {key: value for key, value in pod.items() if value},
    }
    replicated = {"name": NODES, "template": {"spec": {"template": template}}}
    return {"template": {"spec": {"replicatedJobs": [replicated]}}}


def _by_name(items: Sequence[Mapping[str, Any]]) -> list[Json]:
    """``items`` without those that a later one of the same name replaces."""
    return list({item["name"]: dict(item) for item in items}.values())
