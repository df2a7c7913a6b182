"""Compiled pipelines, read back."""

from __future__ import annotations

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
    compile_pipeline(pipeline, path, settings or CompileSettings(), parameters or {})
    return read_ir(path)


Artifact = tuple[str, str]
"""Task and output."""


class Artifacts:
    """What each task of a compiled pipeline takes and makes, as Kubeflow's metadata store records it."""

    def __init__(self, spec: Ir) -> None:
        self.types: dict[Artifact, str] = {}
        self.inputs: dict[str, dict[str, Artifact]] = {}
        for name, task in spec["root"]["dag"]["tasks"].items():
            component = spec["components"][task["componentRef"]["name"]]
            made = component.get("outputDefinitions", {}).get("artifacts", {})
            if "dag" in component:
                assert not made, "a fan-out passes on no artifacts"
            self.types |= {(name, key): one["artifactType"]["schemaTitle"] for key, one in made.items()}
            taken = task.get("inputs", {}).get("artifacts", {})
            self.inputs[name] = {key: _producer(one["taskOutputArtifact"]) for key, one in taken.items()}

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


def _producer(value: dict[str, Any]) -> Artifact:
    return value["producerTask"], value["outputArtifactKey"]
