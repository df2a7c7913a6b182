"""The parts of Kubeflow that are there, and whether they are known to work together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from kubealign.cluster.kube import AccessDenied
from kubealign.doctor.diagnosis import KUBEFLOW, Diagnosis, Subject, data_of, ok, problem, unknown, warning
from kubealign.errors import ClusterError

Number = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Software:
    """A part of Kubeflow: where its version is seen, and which versions are known to do."""

    name: str
    namespace: str
    deployment: str
    least: Number
    tried: tuple[Number, ...] = ()
    """What has been tried or read; a newer one may do as well."""
    crd: str = ""
    """A kind that it brings."""
    field: str = ""
    """A field of that kind's spec that earlier versions do not have."""


PIPELINES = Software(
    name="Kubeflow Pipelines",
    namespace=KUBEFLOW,
    deployment="ml-pipeline",
    least=(2, 16),
    tried=((2, 16), (2, 17)),
)
TRAINER = Software(
    name="Kubeflow Trainer",
    namespace="kubeflow-system",
    deployment="kubeflow-trainer-controller-manager",
    least=(2, 2),
    tried=((2, 2), (2, 3)),
    crd="trainjobs.trainer.kubeflow.org",
    field="runtimePatches",
)
JOBSET = Software(
    name="JobSet",
    namespace="kubeflow-system",
    deployment="jobset-controller-manager",
    least=(0, 10),
    tried=((0, 10), (0, 11), (0, 12)),
    crd="jobsets.jobset.x-k8s.io",
)
KUEUE = Software(
    name="Kueue",
    namespace="kueue-system",
    deployment="kueue-controller-manager",
    least=(0, 17),
    crd="workloads.kueue.x-k8s.io",
)
KUBERNETES: Number = (1, 29)
"""The earliest that is known to do."""
_TAG = re.compile(r"v?(\d+)\.(\d+)")


def check_versions(subject: Subject) -> Iterator[Diagnosis]:
    """The parts that the run needs, each against the versions that are known to do."""
    yield from _kubernetes(subject)
    yield from _part(subject, PIPELINES)
    if subject.multi_node:
        yield from _part(subject, TRAINER)
        yield from _part(subject, JOBSET)
    if subject.queue:
        yield from _part(subject, KUEUE)


def check_retries(subject: Subject) -> Iterator[Diagnosis]:
    """Which attempts Argo repeats: what KFP's configuration adds to every template."""
    check = "retry policy"
    path = f"/api/v1/namespaces/{KUBEFLOW}/configmaps/workflow-controller-configmap"
    config_map = subject.kubernetes.get(path)
    if config_map is None:
        yield unknown(check, f"there is no {path}", "see how this installation configures Argo")
        return
    spec = (yaml.safe_load(data_of(config_map).get("workflowDefaults") or "") or {}).get("spec") or {}
    strategy = (spec.get("templateDefaults") or {}).get("retryStrategy") or {}
    policy = strategy.get("retryPolicy", "")
    if policy == "Always" or (strategy and not policy):
        yield problem(
            check,
            f"templateDefaults.retryStrategy of Argo says {policy or 'OnFailure'}, for whole graphs as well",
            f"set retryPolicy: OnError in {path}: else a failed stage begins the whole pipeline again",
        )
    elif policy == "OnError":
        yield ok(check, "a lost pod is replaced (OnError); a stage that fails is begun again in its pod")
    else:
        yield warning(
            check,
            "Argo does not replace deleted pods (no templateDefaults.retryStrategy, as in KFP 2.16)",
            f"for preemptible nodes set it to {{limit: 2, retryPolicy: OnError}} in {path}",
        )


def _kubernetes(subject: Subject) -> Iterator[Diagnosis]:
    text = str((subject.kubernetes.get("/version") or {}).get("gitVersion", ""))
    match, least = _TAG.match(text), f"{_text(KUBERNETES)} or later"
    version = (int(match[1]), int(match[2])) if match else None
    if version is None:
        yield unknown("Kubernetes", "the API server tells no version", f"make sure that it is {least}")
    elif version < KUBERNETES:
        yield problem("Kubernetes", f"version {_text(version)}", f"upgrade the cluster to {least}")
    else:
        yield ok("Kubernetes", f"version {_text(version)}")


def _part(subject: Subject, part: Software) -> Iterator[Diagnosis]:
    path = f"/apis/apps/v1/namespaces/{part.namespace}/deployments/{part.deployment}"
    try:
        deployment = subject.kubernetes.get(path)
    except AccessDenied:
        deployment = None
    kind = _kind(subject, part)
    if kind is None and part.crd:
        yield problem(part.name, f"the cluster has no {part.crd}", f"install {part.name} {_text(part.least)}")
        return
    version = _version(deployment)
    least = f"install {_text(part.least)} or later"
    if kind and part.field and part.field not in kind:
        yield problem(part.name, f"its {part.crd} has no spec.{part.field}", least)
    elif version is None:
        where = f"deployment {part.namespace}/{part.deployment}"
        yield unknown(
            part.name, f"no version is seen at {where}", f"make sure that it is {_text(part.least)} or later"
        )
    elif version < part.least:
        yield problem(part.name, f"version {_text(version)}", least)
    elif part.tried and version not in part.tried:
        tried = ", ".join(map(_text, part.tried))
        yield warning(
            part.name, f"version {_text(version)} has not been tried ({tried} have)", "try a small run"
        )
    else:
        yield ok(part.name, f"version {_text(version)}")


def _kind(subject: Subject, part: Software) -> str | None:
    """The schema of the part's kind as text; empty where it may not be read, None where there is none."""
    if not part.crd:
        return ""
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{part.crd}"
    try:
        definition = subject.kubernetes.get(path)
    except ClusterError:
        return ""
    return None if definition is None else str(definition.get("spec") or {})


def _version(deployment: dict[str, object] | None) -> Number | None:
    text = str((deployment or {}).get("spec") or "")
    for image in re.findall(r"'image': '([^']+)'", text):
        match = _TAG.fullmatch(image.rpartition(":")[2][: _end(image.rpartition(":")[2])])
        if match:
            return int(match[1]), int(match[2])
    return None


def _end(tag: str) -> int:
    """Where the first two numbers of a version end."""
    match = _TAG.match(tag)
    return match.end() if match else 0


def _text(version: Number) -> str:
    return ".".join(map(str, version))
