"""How a training stage asks for several nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from kubealign_components.config import require, require_choice
from kubealign_components.json_types import JsonObject

RUNTIMES = ("TrainingRuntime", "ClusterTrainingRuntime")
TORCHRUN = frozenset(
    f"PET_{name}" for name in ("NNODES", "NPROC_PER_NODE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
)
"""Variables by which Trainer tells torchrun where it is; a TrainJob that sets one is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainJobSettings:
    """What of a TrainJob is neither training nor the shape of its pods."""

    runtime: str = "torch-distributed"
    """Training runtime that the job refers to; it must set torchrun's PET_ variables."""
    runtime_kind: str = "TrainingRuntime"
    """TrainingRuntime, such as the one of the manifests, or ClusterTrainingRuntime."""
    queue_timeout: int = 86_400
    """Seconds that the job may wait until its pods run, each time that it is queued; 0 for no limit."""
    run_timeout: int = 0
    """Seconds that its pods may run, from each start; 0 for no limit. The cluster holds it to that."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels of the job and its pods. Kueue's go to the job alone, which is what it queues."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Annotations of the pods."""
    resources: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Requests and limits of each pod, as Kubernetes takes them; those of the task's own pod without."""
    shared_memory: str = ""
    """Size of each pod's /dev/shm, such as "64Gi"; the node's default without."""
    poll_seconds: float = 5.0
    """Seconds between two looks at the job."""
    api_timeout: float = 600.0
    """Seconds that the API server may be out of reach."""

    def __post_init__(self) -> None:
        require(bool(self.runtime), "runtime", self.runtime, "the name of a training runtime")
        require_choice("runtime_kind", self.runtime_kind, RUNTIMES)
        for name in ("queue_timeout", "run_timeout"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more seconds")
        for name in ("poll_seconds", "api_timeout"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number of seconds")


@dataclass(frozen=True, kw_only=True, slots=True)
class PodShape:
    """What KFP hands on of a task's own pod, as parts of the Kubernetes pod spec in JSON."""

    resources: Mapping[str, Mapping[str, str | int]] = field(default_factory=dict)
    env: Sequence[Mapping[str, object]] = ()
    volumes: Sequence[Mapping[str, object]] = ()
    volume_mounts: Sequence[Mapping[str, object]] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, object]] = ()
    affinity: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, task: object, resources: Mapping[str, object]) -> PodShape:
        """Of a ``dsl.TaskConfig``; what it leaves out is empty. ``resources`` go before the task's own."""
        given: JsonObject = {f.name: getattr(task, f.name, None) for f in fields(cls)}
        given["resources"] = resources or given["resources"]
        return cls(**{name: value for name, value in given.items() if value})

    def accelerators(self) -> int:
        """GPUs of a node, or whatever else the node has under a name with a vendor."""
        limits = self.resources.get("limits") or {}
        return sum(int(count) for name, count in limits.items() if "/" in name and _vendor(name))


def _vendor(name: str) -> bool:
    # rdma/hca and hugepages stand beside GPUs and are no reason for a process.
    return name.rpartition("/")[2] in ("gpu", "tpu", "neuron", "gaudi") or "/mig-" in name
