"""The KFP step's pod that this process runs in: the image, account and owner that its TrainJob gets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from kubealign_components.errors import EngineError
from kubealign_components.json_types import JsonObject
from kubealign_components.trainjob.api import ClusterApi

_CONTAINER = "main"
"""Argo's name of the container that a step's own code runs in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """The object that a TrainJob is deleted with."""

    api_version: str
    kind: str
    name: str
    uid: str

    @property
    def reference(self) -> JsonObject:
        """As an owner reference. It blocks no deletion and controls nothing: OpenShift asks whoever sets
        ``blockOwnerDeletion`` for the right to the owner's finalizers, and Kueue queues a TrainJob by the
        label of its controller where it has one."""
        return {"apiVersion": self.api_version, "kind": self.kind, "name": self.name, "uid": self.uid}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPod:
    """A step's pod, as far as its TrainJob is concerned."""

    name: str
    image: str
    service_account: str
    pull_secrets: tuple[Mapping[str, object], ...] = ()
    labels: Mapping[str, str]
    owner: Owner
    """What controls the pod, which outlives it: the Argo Workflow of the run. A pod that nothing controls
    is the owner itself."""


def this_pod(api: ClusterApi) -> StepPod:
    """The pod that this process runs in.

    Raises:
        EngineError: it runs in none, or may not look at it.
    """
    name = os.environ.get("KFP_POD_NAME") or os.environ.get("HOSTNAME", "")
    pod = api.pod(name) if name else None
    if pod is None:
        raise EngineError(
            f"this process runs in no pod of namespace {api.namespace} (looked for {name!r}): only a pod can "
            "start training on several nodes. On this machine, leave nodes at 1"
        )
    spec, meta = pod["spec"], pod["metadata"]
    containers = {one["name"]: one for one in spec["containers"]}
    return StepPod(
        name=meta["name"],
        image=containers.get(_CONTAINER, spec["containers"][0])["image"],
        service_account=spec.get("serviceAccountName", "default"),
        pull_secrets=tuple(spec.get("imagePullSecrets") or ()),
        labels=meta.get("labels") or {},
        owner=_owner(meta),
    )


def _owner(meta: JsonObject) -> Owner:
    for reference in meta.get("ownerReferences") or []:
        if reference.get("controller"):
            return Owner(
                api_version=reference["apiVersion"],
                kind=reference["kind"],
                name=reference["name"],
                uid=reference["uid"],
            )
    return Owner(api_version="v1", kind="Pod", name=meta["name"], uid=meta["uid"])
