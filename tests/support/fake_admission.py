"""What an API server with Trainer, JobSet and Kueue refuses of a TrainJob and its JobSet, as recorded answers
and the webhooks' sources have it."""

from __future__ import annotations

import json
import re
from typing import Any

Json = dict[str, Any]
Refusal = tuple[int, str]
"""HTTP status and message."""

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_TRAINER = 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: '
_RESERVED = {
    *("PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"),
}
_WITHOUT_ENV = ("dataset-initializer", "model-initializer", "node")
QUEUE = "kueue.x-k8s.io/queue-name"
_RULE = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
_JOB_FAILURES = {
    *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded"),
    "PodFailurePolicy",
}


def refused_creation(body: Json, runtimes: set[str]) -> Refusal | None:
    """Why the TrainJob ``body`` is not taken; None where it is."""
    return (
        _malformed(body) or _metadata(body["metadata"]) or _patches(body["spec"]) or _trainer(body, runtimes)
    )


def refused_change(before: Json, after: Json) -> Refusal | None:
    """Why the TrainJob ``before`` may not become ``after``; None where it may."""
    name = before["metadata"]["name"]
    for field in ("trainer", "runtimeRef"):
        if before["spec"].get(field) != after["spec"].get(field):
            return 422, f'{_invalid(name)}spec.{field}: Invalid value: "object": field is immutable'
    suspended = before["spec"].get("suspend") or after["spec"].get("suspend")
    if before["spec"].get("runtimePatches") != after["spec"].get("runtimePatches") and not suspended:
        return 403, f"{_TRAINER}spec.runtimePatches: Forbidden: can only be modified when suspended"
    return _metadata(after["metadata"])


def refused_pod(pod: Json) -> Refusal | None:
    """Why a namespace that enforces the restricted pod security standard does not take ``pod``."""
    whole = pod["spec"].get("securityContext") or {}
    for container in pod["spec"]["containers"]:
        own = {**whole, **(container.get("securityContext") or {})}
        if own.get("runAsNonRoot") is not True:
            return 403, (
                f'pods "{pod["metadata"]["name"]}" is forbidden: violates PodSecurity "restricted:latest": '
                f'runAsNonRoot != true (pod or container "{container["name"]}" must set '
                "securityContext.runAsNonRoot=true)"
            )
    return None


def refused_job_set(name: str, spec: Json, nodes: int) -> str:
    """Why JobSet's webhook (0.10 to 0.12) does not take the JobSet that Trainer makes; empty where it does.

    The TrainJob is there by then: nobody but an event tells why nothing comes of it.
    """
    jobs = {job["name"] for job in spec["replicatedJobs"]}
    for job in jobs:
        if len(f"{name}-{job}-0-{nodes - 1}-abcde") > 63:
            return "JobSet name is too long, pod names generated for this JobSet will exceed 63 characters"
    rules = (spec.get("failurePolicy") or {}).get("rules") or []
    for rule in rules:
        if not _RULE.fullmatch(rule["name"]) or len(rule["name"]) > 128:
            return f"invalid failure policy rule name '{rule['name']}'"
        for reason in rule.get("onJobFailureReasons") or []:
            if reason not in _JOB_FAILURES:
                return f"invalid job failure reason '{reason}' in failure policy"
        if not jobs.issuperset(rule.get("targetReplicatedJobs") or []):
            return f"invalid replicatedJob name in failure policy rule {rule['name']}"
    if len({rule["name"] for rule in rules}) < len(rules):
        return "rule names are not unique"
    return ""


def _invalid(name: str) -> str:
    return f'TrainJob.trainer.kubeflow.org "{name}" is invalid: '


def _malformed(body: Json) -> Refusal | None:
    processes = (body["spec"].get("trainer") or {}).get("numProcPerNode", 1)
    if not isinstance(processes, int):
        return 400, (
            'admission webhook "mtrainjob.kb.io" denied the request: json: cannot unmarshal string into Go '
            "struct field Trainer.spec.trainer.numProcPerNode of type int32"
        )
    return None


def _metadata(meta: Json) -> Refusal | None:
    name = meta["name"]
    if len(name) > 63:
        problem = "metadata.name must be no more than 63 characters"
        return 422, f'{_invalid(name)}<nil>: Invalid value: "object": {problem}'
    if not _LABEL.fullmatch(name):
        problem = "metadata.name must match RFC 1035 DNS label format"
        return 422, f'{_invalid(name)}<nil>: Invalid value: "object": {problem}'
    for value in (meta.get("labels") or {}).values():
        if len(value) > 63:
            problem = f'metadata.labels: Invalid value: "{value}": must be no more than 63 characters'
            return 422, _invalid(name) + problem
    queue = (meta.get("labels") or {}).get(QUEUE, "q")
    if not _SUBDOMAIN.fullmatch(queue):
        return 403, (
            f'admission webhook "vtrainjob.kb.io" denied the request: metadata.labels[{QUEUE}]: '
            f'Invalid value: "{queue}": a lowercase RFC 1123 subdomain must consist of lower case letters'
        )
    owners = meta.get("ownerReferences") or []
    if sum(bool(owner.get("controller")) for owner in owners) > 1:
        shown = json.dumps(owners, separators=(",", ":"))
        problem = f"Invalid value: {shown}: Only one reference can have Controller set to true."
        return 422, f"{_invalid(name)}metadata.ownerReferences: {problem}"
    return None


def _patches(spec: Json) -> Refusal | None:
    managers = [patch["manager"] for patch in spec.get("runtimePatches") or []]
    for place, manager in enumerate(managers):
        host, slash, path = manager.partition("/")
        if not (slash and path and _SUBDOMAIN.fullmatch(host)):
            problem = 'must be a domain-prefixed path (such as "acme.io/foo")'
            return 403, f'{_TRAINER}spec.runtimePatches.manager: Invalid value: "{manager}": {problem}'
        if manager in managers[:place]:
            problem = f'spec.runtimePatches[{place}]: Duplicate value: {{"manager":"{manager}"}}'
            return 422, f"{_invalid('refusal')}{problem}"
    for container in _patched_containers(spec):
        if container.get("env") and container["name"] in _WITHOUT_ENV:
            problem = f"must not have envs for the {', '.join(_WITHOUT_ENV)} containers"
            return 403, f"{_TRAINER}spec.runtimePatches: Invalid value: […]: {problem}"
    return None


def _patched_containers(spec: Json) -> list[Json]:
    found = []
    for patch in spec.get("runtimePatches") or []:
        template = patch.get("trainingRuntimeSpec", {}).get("template", {}).get("spec", {})
        for replicated in template.get("replicatedJobs") or []:
            pod = replicated.get("template", {}).get("spec", {}).get("template", {}).get("spec", {})
            found += pod.get("containers") or []
    return found


def _trainer(body: Json, runtimes: set[str]) -> Refusal | None:
    spec = body["spec"]
    reserved = [e["name"] for e in (spec.get("trainer") or {}).get("env") or [] if e["name"] in _RESERVED]
    if reserved:
        shown = " ".join(reserved)
        problem = f"must not have reserved envs, invalid envs configured: [{shown}]"
        return 403, f"{_TRAINER}spec.trainer.env: Invalid value: […]: {problem}"
    runtime = (spec.get("runtimeRef") or {}).get("name", "")
    if runtime not in runtimes:
        problem = (
            f'"{runtime}" not found: specified trainingRuntime must be created before the TrainJob is created'
        )
        return 403, f"{_TRAINER}spec.runtimeRef: Invalid value: {problem}"
    return None
