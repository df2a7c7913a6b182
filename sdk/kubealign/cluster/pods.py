"""The pods of a run, and what they wrote, from the cluster's API while they exist.

KFP's own answer names no pod: its task details bear ids of Argo's nodes. Every pod of a run has a label with
the run's id, and an annotation with its place in the graph, such as
``wf(0).root(0).for-loop-1(0).iteration-iterations(1:1)(0).iteration-item(0).sample(0).executor(0)``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kubealign.cluster.kube import Kubernetes
from kubealign.cluster.workflows import RUN
from kubealign_components.json_types import JsonObject

NODE = "workflows.argoproj.io/node-name"
MAIN = "main"
"""The container that does a task's work."""
POLL = 5.0
"""Seconds between two looks at which pods there are."""
_EXECUTOR = re.compile(r"executor(?:\((\d+)\))?")
_ITERATION = re.compile(r".*\((\d+):[^)]*\)(?:\(\d+\))?")
_ATTEMPT = re.compile(r"(\(\d+\))+$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pod:
    """A pod that does a task's work."""

    task: str
    """KFP's name of the task."""
    chunks: tuple[int, ...]
    """Which iteration of each fan-out around the task, outermost first, from 0."""
    attempt: int
    """From 0."""
    name: str
    phase: str
    created: str

    @property
    def work(self) -> tuple[str, tuple[int, ...]]:
        """What all attempts at one piece of work have in common."""
        return self.task, self.chunks


def pods_of(kubernetes: Kubernetes, namespace: str, run_id: str) -> list[Pod]:
    """The pods that do the run's work, by task and chunk; those of KFP's drivers are left out."""
    items = kubernetes.items(f"/api/v1/namespaces/{namespace}/pods", labelSelector=f"{RUN}={run_id}")
    pods = [pod for item in items or () if (pod := _pod(item))]
    first: dict[str, str] = {}
    for pod in sorted(pods, key=lambda pod: pod.created):
        first.setdefault(pod.task, pod.created)
    return sorted(pods, key=lambda pod: (first[pod.task], pod.task, pod.chunks, pod.attempt, pod.created))


def failed_of(pods: Sequence[Pod]) -> list[Pod]:
    """The last attempts that failed: where a later one is under way or succeeded, nothing did."""
    last = {pod.work: pod for pod in sorted(pods, key=lambda pod: (pod.attempt, pod.created))}
    return [pod for pod in pods if pod.phase == "Failed" and last[pod.work] is pod]


def log_of(kubernetes: Kubernetes, namespace: str, pod: Pod, *, follow: bool = False) -> Iterator[str]:
    """Lines that ``pod`` wrote; with ``follow`` until it ends."""
    how = {"container": MAIN} | ({"follow": "true"} if follow else {})
    return kubernetes.lines(f"/api/v1/namespaces/{namespace}/pods/{pod.name}/log", **how)


def arriving(
    look: Callable[[], Sequence[Pod]], over: Callable[[], bool], *, pause: float = POLL
) -> Iterator[Pod]:
    """Each pod once, when it has begun to work, until the run is ``over``.

    Args:
        look: the pods that there are.
        over: whether there will be no more.
        pause: seconds between two looks.
    """
    seen: set[str] = set()
    while True:
        last = over()
        new = [pod for pod in look() if pod.name not in seen and pod.phase != "Pending"]
        for pod in new:
            seen.add(pod.name)
            yield pod
        if last and not new:
            return
        if not new:
            time.sleep(pause)


def _pod(item: JsonObject) -> Pod | None:
    metadata = item["metadata"]
    *groups, node = (metadata.get("annotations") or {}).get(NODE, "").split(".")
    executor = _EXECUTOR.fullmatch(node)
    if not executor or not groups:
        return None
    return Pod(
        task=_ATTEMPT.sub("", groups[-1]),
        chunks=tuple(int(match[1]) for group in groups if (match := _ITERATION.fullmatch(group))),
        attempt=int(executor[1] or 0),
        name=metadata["name"],
        phase=str(item.get("status", {}).get("phase", "")),
        created=str(metadata.get("creationTimestamp") or ""),
    )
