"""The pod that launches a TrainJob: what it is says which image, account and owner the job has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubealign_components.errors import EngineError
from kubealign_components.trainjob.api import ClusterApi

_CONTAINER = "main"
"""Argo's name of the container that a step's own code runs in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launcher:
    """A pod, as far as its TrainJob is concerned."""

    name: str
    uid: str
    image: str
    service_account: str
    pull_secrets: tuple[Mapping[str, Any], ...] = ()
    labels: Mapping[str, str]

    @property
    def owner(self) -> dict[str, Any]:
        """The owner reference that lets the cluster delete the job with the pod."""
        return {"apiVersion": "v1", "kind": "Pod", "name": self.name, "uid": self.uid}


def this_pod(api: ClusterApi) -> Launcher:
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
    return Launcher(
        name=meta["name"],
        uid=meta["uid"],
        image=containers.get(_CONTAINER, spec["containers"][0])["image"],
        service_account=spec.get("serviceAccountName", "default"),
        pull_secrets=tuple(spec.get("imagePullSecrets") or ()),
        labels=meta.get("labels") or {},
    )
