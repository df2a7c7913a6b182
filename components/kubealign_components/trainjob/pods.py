"""A TrainJob's pods: which is which, which waits, and which failed first and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kubealign_components.errors import EngineError
from kubealign_components.json_types import JsonObject
from kubealign_components.trainjob.api import ClusterApi
from kubealign_components.trainjob.manifest import CONTAINER, NODES

_RESTART = "jobset.sigs.k8s.io/restart-attempt"
_INDEX = "batch.kubernetes.io/job-completion-index"
LAST_LINES = 20
_OUT_OF_MEMORY = "OOMKilled"
"""The kubelet's reason for a container that the kernel ended."""
_LATER = "9"
"""After every time that is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _End:
    """How a pod's container ended."""

    at: str
    """When, in ISO 8601."""
    node: int
    pod: str
    code: int
    reason: str
    message: str
    memory: str = ""
    """The container's memory limit."""


def pods_of(api: ClusterApi, job: str) -> list[JsonObject]:
    """The training pods of the TrainJob, by node."""
    selector = f"jobset.sigs.k8s.io/jobset-name={job},jobset.sigs.k8s.io/replicatedjob-name={NODES}"
    return sorted(api.pods(selector), key=lambda pod: (node_of(pod), pod["metadata"]["creationTimestamp"]))


def node_of(pod: JsonObject) -> int:
    """The node's number among those that train together, which is its rank's with one process each."""
    meta = pod["metadata"]
    text = (meta.get("labels") or {}).get(_INDEX) or (meta.get("annotations") or {}).get(_INDEX) or "0"
    return int(text)


def waits(pod: JsonObject) -> bool:
    """Whether the pod does not run yet."""
    return bool((pod.get("status") or {}).get("phase", "Pending") == "Pending")


def restart_of(pods: Sequence[JsonObject]) -> int:
    """How often the runtime started all nodes anew, as the labels of ``pods`` say."""
    return max((int((pod["metadata"].get("labels") or {}).get(_RESTART, 0)) for pod in pods), default=0)


def failure(api: ClusterApi, job: str) -> str:
    """Why the TrainJob's first pod that failed did so; empty where no pod says."""
    try:
        ends = [end for pod in pods_of(api, job) if (end := _end(pod)) is not None]
        if not ends:
            return ""
        first = min(ends, key=lambda end: (end.at, end.node))
        words = first.message or _last_words(api, first.pod)
    except EngineError as error:
        return f"(no more is known: {error})"
    why = f", {first.reason}" if first.reason not in ("", "Error") else ""
    if first.reason == _OUT_OF_MEMORY and first.memory:
        why += f" (its memory limit is {first.memory}: raise it, or lower micro_batch_tokens)"
    ended = f"ended with exit code {first.code}" if first.code else "was taken away"
    return f"node {first.node} (pod {first.pod}) {ended}{why}" + (f":\n{words}" if words else "")


def _end(pod: JsonObject) -> _End | None:
    """How ``pod`` failed, if it did."""
    status, name = pod.get("status") or {}, pod["metadata"]["name"]
    for container in status.get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated") or {}
        ended = ended or (container.get("lastState") or {}).get("terminated") or {}
        if container["name"] == CONTAINER and ended.get("exitCode"):
            return _End(
                at=ended.get("finishedAt") or _LATER,
                node=node_of(pod),
                pod=name,
                code=ended["exitCode"],
                reason=ended.get("reason") or "",
                message=(ended.get("message") or "").strip(),
                memory=_memory_limit(pod),
            )
    if status.get("phase") != "Failed":
        return None
    # The kubelet or the scheduler ended it: an eviction, a preemption, a node that is gone.
    at = max((c.get("lastTransitionTime") or "" for c in status.get("conditions") or []), default="")
    return _End(
        at=at or _LATER,
        node=node_of(pod),
        pod=name,
        code=0,
        reason=status.get("reason") or "",
        message=status.get("message") or "",
    )


def _memory_limit(pod: JsonObject) -> str:
    for container in (pod.get("spec") or {}).get("containers") or []:
        if container["name"] == CONTAINER:
            return str(((container.get("resources") or {}).get("limits") or {}).get("memory", ""))
    return ""


def _last_words(api: ClusterApi, pod: str) -> str:
    lines = api.log_lines(pod, CONTAINER, {"tailLines": LAST_LINES})
    return "\n".join(f"  {line}" for line in lines)
