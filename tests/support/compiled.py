"""Compiled pipelines, read back."""

from __future__ import annotations

from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from kubealign_pipelines.compiler import compile_pipeline
from kubealign_pipelines.resources import CompileSettings

Ir = dict[str, Any]


def read_ir(path: Path) -> tuple[Ir, dict[str, Any]]:
    """The IR at ``path``, and the pod settings of its executors."""
    spec, *platforms = yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader)
    pods = platforms[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if platforms else {}
    return spec, pods


def compile_ir(
    folder: Path,
    pipeline: str,
    settings: CompileSettings | None = None,
    parameters: dict[str, Any] | None = None,
) -> tuple[Ir, dict[str, Any]]:
    """:func:`read_ir` of ``pipeline``, which is compiled to ``pipeline.yaml`` in ``folder``."""
    path = folder / "pipeline.yaml"
    folder.mkdir(exist_ok=True)
    compile_pipeline(pipeline, path, settings or CompileSettings(), parameters or {})
    return read_ir(path)


Artifact = tuple[str, str]
"""Task and output."""


class Artifacts:
    """What each task of a compiled pipeline takes and makes, as Kubeflow's metadata store records it."""

    def __init__(self, spec: Ir) -> None:
        self.types: dict[Artifact, str] = {}
        self.inputs: dict[str, dict[str, Artifact]] = {}
        self._add(spec, spec["root"]["dag"], {})

    def _add(self, spec: Ir, dag: Ir, outer: dict[str, Artifact]) -> dict[str, Artifact]:
        """Add the tasks of ``dag``; gives what it passes on. A loop's tasks stand for those of each item."""
        collected: dict[Artifact, Artifact] = {}
        tasks = dag["tasks"]
        order = TopologicalSorter({name: task.get("dependentTasks", ()) for name, task in tasks.items()})
        for name in order.static_order():
            task = tasks[name]
            component = spec["components"][task["componentRef"]["name"]]
            made = component.get("outputDefinitions", {}).get("artifacts", {})
            taken = {
                key: _producer(one, collected, outer)
                for key, one in task.get("inputs", {}).get("artifacts", {}).items()
            }
            if "dag" in component:
                collected |= {
                    (name, key): one for key, one in self._add(spec, component["dag"], taken).items()
                }
            else:
                self.types |= {(name, key): one["artifactType"]["schemaTitle"] for key, one in made.items()}
                self.inputs[name] = taken
        passed = dag.get("outputs", {}).get("artifacts", {})
        only = {key: one["artifactSelectors"][0] for key, one in passed.items()}
        return {key: (one["producerSubtask"], one["outputArtifactKey"]) for key, one in only.items()}

    def of_type(self, kind: str) -> set[Artifact]:
        return {artifact for artifact, title in self.types.items() if title == kind}

    def ancestors(self, task: str) -> set[str]:
        """The tasks that the explorer reaches from what ``task`` made, and ``task``."""
        before = [self.ancestors(producer) for producer, _ in self.inputs[task].values()]
        return {task}.union(*before)

    def edges(self, task: str) -> set[tuple[str, str]]:
        """From each task to those that take what it made, among the ancestors of ``task`` and itself."""
        return {
            (producer, taker) for taker in self.ancestors(task) for producer, _ in self.inputs[taker].values()
        }


def _producer(
    value: dict[str, Any], collected: dict[Artifact, Artifact], outer: dict[str, Artifact]
) -> Artifact:
    if "componentInputArtifact" in value:
        return outer[value["componentInputArtifact"]]
    made = value["taskOutputArtifact"]
    artifact = made["producerTask"], made["outputArtifactKey"]
    return collected.get(artifact, artifact)
