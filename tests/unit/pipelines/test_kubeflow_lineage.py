"""Kubeflow's lineage explorer walks from a model to every dataset: the graph of artifacts, from the IR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.compiled import compile_ir
from support.pipeline_shapes import SHAPES

Artifact = tuple[str, str]
"""Task and output."""
OUTSIDE = {"import-prompts", "clean-prompts", "clean-pmp"}
"""Tasks that read what no task of the run has made."""
SMALL = {"system.Dataset", "system.Artifact"}
"""Types of artifacts of which a manifest is all that lies under their URI."""
READ_WHOLE = {("evaluate", "model"), ("train-ppo", "reward_model"), ("train-reward-model", "start")}
"""Inputs that are models, whose files the task reads anyway."""


class Artifacts:
    """What each task of a compiled pipeline takes and makes, as Kubeflow's metadata store records it."""

    def __init__(self, spec: dict[str, Any]) -> None:
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


def _producer(value: dict[str, Any]) -> Artifact:
    return value["producerTask"], value["outputArtifactKey"]


@pytest.fixture(params=SHAPES)
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Artifacts, dict[str, Any]]:
    pipeline, parameters, _ = SHAPES[request.param]
    spec, _ = compile_ir(tmp_path, pipeline, parameters=parameters)
    return Artifacts(spec), spec


def test_what_is_made_has_what_it_was_made_from_as_an_input(graph: tuple[Artifacts, dict[str, Any]]) -> None:
    artifacts, _ = graph
    for task, _ in artifacts.of_type("system.Dataset") | artifacts.of_type("system.Model"):
        assert artifacts.inputs[task] or task in OUTSIDE, f"{task} comes from nowhere"


def test_the_last_model_and_the_evaluation_lead_to_every_dataset(
    graph: tuple[Artifacts, dict[str, Any]],
) -> None:
    artifacts, _ = graph
    makers = {task for task, _ in artifacts.of_type("system.Dataset")} - {"evaluate"}
    sources = OUTSIDE & artifacts.inputs.keys()
    [last] = {task for task, _ in artifacts.of_type("system.Model")} & {"train", "train-ppo"}
    for task in (last, "evaluate"):
        assert artifacts.ancestors(task) >= makers
        assert artifacts.ancestors(task) >= sources
    for model, _ in artifacts.of_type("system.Model"):
        assert artifacts.ancestors(model) & sources


def test_datasets_are_taken_by_every_edge_of_the_recipe(graph: tuple[Artifacts, dict[str, Any]]) -> None:
    """The explorer shows an artifact where something took it: all but the last are taken by one."""
    artifacts, _ = graph
    taken = {artifact for inputs in artifacts.inputs.values() for artifact in inputs.values()}
    assert artifacts.of_type("system.Dataset") - taken == {("evaluate", "dataset")}


def test_no_task_downloads_what_it_does_not_read(graph: tuple[Artifacts, dict[str, Any]]) -> None:
    artifacts, _ = graph
    for task, inputs in artifacts.inputs.items():
        for name, artifact in inputs.items():
            assert artifacts.types[artifact] in SMALL or (task, name) in READ_WHOLE
