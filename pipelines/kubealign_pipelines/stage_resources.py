"""What the pods of each stage ask for: defaults, and what a run file puts over them."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from kubealign_components.config import from_mapping, require
from kubealign_components.store.base import KUBEFLOW
from kubealign_components.trainjob.settings import TrainJobSettings
from kubealign_pipelines.graph import CHECK, REGISTER
from kubealign_pipelines.kubernetes_values import (
    require_cpu,
    require_labels,
    require_memory,
    require_object_name,
    require_pod_names,
    require_toleration,
    require_variables,
    require_volumes,
)

SHARED_MEMORY, SCRATCH = "/dev/shm", "/scratch"
"""Places of the volumes that ``shared_memory`` and ``scratch`` make."""
PART_OF = {"app.kubernetes.io/part-of": "kubealign"}
"""Label of every pod, by which PodDefaults and network policies select."""
TRAINING = ("train", "train_reward_model", "train_ppo")
"""Stages that can run on several nodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResources:
    """What one stage's pods ask for; what is left out keeps the stage's default."""

    cpu: float | str | None = None
    """Requested CPU cores, such as 4 or "500m"."""
    memory: str | None = None
    """Requested memory, which is also the limit, such as "64Gi"."""
    accelerators: int | None = None
    """Number of accelerators of a pod; 0 for none."""
    accelerator: str | None = None
    """Resource name of the accelerator, such as "nvidia.com/gpu"."""
    retries: int | None = None
    """How often a stage that died is started again: its process in its pod, and a pod that is lost."""
    timeout: int | None = None
    """Seconds after which a pod is stopped; none by default."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Pod labels, such as a Kueue queue name."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Pod annotations."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    """Node labels that the pods need."""
    tolerations: tuple[Mapping[str, str], ...] = ()
    """Taints that the pods bear: mappings with key, operator, value and effect."""
    volumes: Mapping[str, str] = field(default_factory=dict)
    """Volume claims by name, and where the pods see them, such as "/models"."""
    shared_memory: str | None = None
    """Size of /dev/shm, such as "64Gi", which counts as the pod's memory; by default 8Gi for each of
    the accelerators, whose processes talk to each other there."""
    scratch: str | None = None
    """Size of the pod's own disk space for temporary files, such as "200Gi": one that writes more is evicted
    alone, before the node's disk is full; by default what the node has."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Environment variables from secrets, as "secret/key", or "secret/key?" where there may be none."""
    nodes: int | None = None
    """Pods that train together, each with all of the above; more than one are a TrainJob, which a pod
    without accelerators starts and watches."""
    train_job: Mapping[str, object] = field(default_factory=dict)
    """Settings of the TrainJob: runtime, runtime_kind, queue_timeout, run_timeout."""

    def __post_init__(self) -> None:
        require(self.nodes is None or self.nodes >= 1, "nodes", self.nodes, "1 or more")
        from_mapping(TrainJobSettings, self.train_job, "train_job")
        require_variables("secrets", self.secrets)
        for variable, secret in self.secrets.items():
            name, _, key = secret.partition("/")
            require(bool(name and key), f"secrets.{variable}", secret, "secret/key")
            require_object_name(f"secrets.{variable}", name)
        others = {SHARED_MEMORY: self.shared_memory, SCRATCH: self.scratch}
        require_volumes("volumes", self.volumes, [path for path, size in others.items() if size])
        both = ", ".join(self.environment.keys() & self.secrets.keys())
        require(not both, "secrets", both, "variables that environment does not set as well")
        require_cpu("cpu", self.cpu)
        for name in ("memory", "shared_memory", "scratch"):
            require_memory(name, getattr(self, name))
        require_pod_names(self.labels, self.annotations, self.environment)
        require_labels("node_selector", self.node_selector)
        for name in ("accelerators", "retries"):
            value = getattr(self, name)
            require(value is None or value >= 0, name, value, "0 or more")
        require(
            self.timeout is None or self.timeout > 0, "timeout", self.timeout, "a positive number of seconds"
        )
        for position, toleration in enumerate(self.tolerations):
            require_toleration(f"tolerations[{position}]", toleration)

    def over(self, base: StageResources) -> StageResources:
        """These settings where given, else those of ``base``; mappings are joined. A variable is a value or
        from a secret, and at a place in the pod is one volume: whichever is said here."""
        mount_paths = {posixpath.normpath(path) for path in self.volumes.values()}
        left = replace(
            base,
            environment={n: v for n, v in base.environment.items() if n not in self.secrets},
            secrets={n: v for n, v in base.secrets.items() if n not in self.environment},
            volumes={n: p for n, p in base.volumes.items() if posixpath.normpath(p) not in mount_paths},
        )
        return StageResources(
            **{f.name: _prefer(getattr(self, f.name), getattr(left, f.name)) for f in fields(self)}
        )


_DATA = StageResources(cpu=2, memory="8Gi")
STREAMED = StageResources(cpu=2, memory="4Gi")
"""Of stages whose memory does not grow with the rows: 5 GB pass through filter, select and mix in 1 GiB."""
_GPU = StageResources(cpu=8, memory="64Gi", accelerators=1, accelerator="nvidia.com/gpu")
DEFAULTS: dict[str, StageResources] = {
    # Another attempt would find the same.
    CHECK: StageResources(cpu="500m", memory="2Gi", retries=0),
    REGISTER: StageResources(cpu="500m", memory="2Gi"),
    "import_prompts": STREAMED,
    "filter": StageResources(cpu=4, memory="4Gi"),
    "split": STREAMED,
    "sample": _GPU,
    "merge": STREAMED,
    "rewards": _GPU,
    "rank": _GPU,
    "draw_more": STREAMED,
    "join_draws": STREAMED,
    "next_round": _DATA,
    "join_rounds": STREAMED,
    "select": STREAMED,
    "logprobs": _GPU,
    "mix": StageResources(cpu=4, memory="4Gi"),
    "train": StageResources(cpu=16, memory="128Gi", accelerators=1, accelerator="nvidia.com/gpu"),
    "evaluate": _GPU,
    "benchmark": _GPU,
    "choose": STREAMED,
    "clean_prompts": _DATA,
    "judge": _GPU,
    "aggregate": StageResources(cpu=4, memory="16Gi"),
    "clean_pmp": _DATA,
    "train_reward_model": StageResources(
        cpu=16, memory="128Gi", accelerators=1, accelerator="nvidia.com/gpu"
    ),
    "rl_prompts": StageResources(cpu=4, memory="16Gi"),
    "train_ppo": StageResources(cpu=16, memory="128Gi", accelerators=1, accelerator="nvidia.com/gpu"),
}
STANDALONE = StageResources(
    environment={
        "AWS_ENDPOINT_URL_S3": KUBEFLOW,
        "AWS_REGION": "us-east-1",
        "HF_HOME": "/models/huggingface",
        "KUBEALIGN_CACHE": "/models/kubealign",
    },
    secrets={
        "AWS_ACCESS_KEY_ID": "mlpipeline-minio-artifact/accesskey",
        "AWS_SECRET_ACCESS_KEY": "mlpipeline-minio-artifact/secretkey",
        "HF_TOKEN": "kubealign-hub/token?",
    },
    volumes={"kubealign-model-cache": "/models"},
)
"""What PodDefaults give the pods in a profile, and tasks must bring along where there are none."""
INSTALLATIONS = {"profile": StageResources(), "standalone": STANDALONE}


def _prefer(own: Any, base: Any) -> Any:
    if isinstance(own, Mapping):
        return {**base, **own}
    if isinstance(own, tuple):
        return own or base
    return base if own is None else own
