"""What a check found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from kubealign.cluster.kube import Json, Kubernetes
from kubealign.errors import ClusterError
from kubealign.runfile import RunFile
from kubealign_components.config import require
from kubealign_components.stages import own_stages
from kubealign_pipelines.graph import function_of
from kubealign_pipelines.stage_resources import DEFAULTS, StageResources

KUBEFLOW = "kubeflow"
"""Namespace of Kubeflow's own parts."""
QUEUE = "kueue.x-k8s.io/queue-name"
"""Label of pods that wait for quota: the LocalQueue."""


class CheckState(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    """It runs, but not as well as it could."""
    PROBLEM = "problem"
    """A run fails or hangs."""
    UNKNOWN = "unknown"
    """It could not be checked from here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """One fact about the cluster, and what to do about it."""

    check: str
    state: CheckState
    fact: str
    remedy: str = ""


def ok(check: str, fact: str) -> Diagnosis:
    return Diagnosis(check=check, state=CheckState.OK, fact=fact)


def problem(check: str, fact: str, remedy: str) -> Diagnosis:
    return Diagnosis(check=check, state=CheckState.PROBLEM, fact=fact, remedy=remedy)


def warning(check: str, fact: str, remedy: str) -> Diagnosis:
    return Diagnosis(check=check, state=CheckState.WARNING, fact=fact, remedy=remedy)


def unknown(check: str, fact: str, remedy: str) -> Diagnosis:
    return Diagnosis(check=check, state=CheckState.UNKNOWN, fact=fact, remedy=remedy)


class Subject:
    """What is examined: a namespace of a cluster, and a run that is to go there.

    Args:
        kubernetes: the cluster.
        run: the run file.
        namespace: of the run's pods; empty for the one of the run's installation.
        service_account: of the run's pods; empty for the one of the run's installation.
    """

    def __init__(
        self, kubernetes: Kubernetes, run: RunFile, *, namespace: str = "", service_account: str = ""
    ) -> None:
        self.kubernetes, self.run = kubernetes, run
        self.standalone = run.compile.installation == "standalone"
        self.namespace = namespace or (KUBEFLOW if self.standalone else "kubealign")
        self.account = service_account or ("pipeline-runner" if self.standalone else "kubealign")

    def of_namespace(self, path: str) -> str:
        """The path of something in the core API of the run's namespace."""
        return f"/api/v1/namespaces/{self.namespace}/{path}"

    @cached_property
    def tasks(self) -> list[Json]:
        """What each task of the compiled pipeline asks of Kubernetes: executor and pod settings."""
        import tempfile

        import yaml

        from kubealign_pipelines.compiler import compile_pipeline

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pipeline.yaml"
            compile_pipeline(self.run.pipeline, path, self.run.compile, self.run.parameters)
            spec, *platforms = yaml.load_all(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
        pods = platforms[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if platforms else {}
        executors = spec["deploymentSpec"]["executors"].items()
        return [
            {"name": name, "container": executor["container"], "pod": pods.get(name, {})}
            for name, executor in executors
            if "container" in executor
        ]

    @property
    def stages(self) -> Iterator[tuple[str, StageResources]]:
        """The stages that the run has, and what their pods ask for."""
        functions = {function_of(task["container"]) for task in self.tasks}
        for stage in (*DEFAULTS, *own_stages()):
            if stage in functions:
                yield stage, self.run.compile.resources(stage)

    @property
    def labels(self) -> dict[str, str]:
        """Labels that every pod of the run gets."""
        by_task = [task["pod"].get("podMetadata", {}).get("labels", {}).items() for task in self.tasks]
        return dict(set.intersection(*map(set, by_task))) if by_task else {}

    @property
    def multi_node(self) -> bool:
        """Whether a stage trains on several nodes."""
        return any((resources.nodes or 1) > 1 for _, resources in self.stages)

    @property
    def queue(self) -> str:
        """The LocalQueue that pods wait in; empty without one."""
        return self.labels.get(QUEUE, "")


def require_namespace(subject: Subject) -> None:
    """Raise unless the namespace exists, as far as that may be asked.

    Raises:
        ConfigError: there is none of that name.
        NoKubernetes: the cluster cannot be reached.
    """
    try:
        namespace = subject.kubernetes.get(f"/api/v1/namespaces/{subject.namespace}")
    except ClusterError as error:
        if "403" not in str(error):
            raise
        return
    require(namespace is not None, "--namespace", subject.namespace, "a namespace of the cluster")


def data_of(resource: Any) -> dict[str, str]:
    """The data of a ConfigMap or Secret that may be none."""
    return (resource or {}).get("data") or {}
