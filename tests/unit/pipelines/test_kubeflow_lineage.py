"""Kubeflow's lineage explorer walks from a model to every dataset: the graph of artifacts, from the IR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.compiled import Artifacts, compile_ir
from support.pipeline_shapes import SHAPES

OUTSIDE = {"import-prompts", "clean-prompts", "clean-pmp"}
"""Tasks that read what no task of the run has made."""
SMALL = {"system.Dataset", "system.Artifact"}
"""Types of artifacts of which a manifest is all that lies under their URI."""
READ_WHOLE = {("evaluate", "model"), ("train-ppo", "reward_model"), ("train-reward-model", "start")}
"""Inputs that are models, whose files the task reads anyway."""


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
    makers = {task for task, _ in artifacts.of_type("system.Dataset")} - {"evaluate", "choose"}
    sources = OUTSIDE & artifacts.inputs.keys()
    [last] = {task for task, _ in artifacts.of_type("system.Model")} & {"train", "train-ppo"}
    for task in (last, "evaluate"):
        assert artifacts.ancestors(task) >= makers
        assert artifacts.ancestors(task) >= sources
    for model, _ in artifacts.of_type("system.Model"):
        assert artifacts.ancestors(model) & sources
    if "choose" in artifacts.inputs:
        assert artifacts.ancestors("choose") > artifacts.ancestors("evaluate")


def test_datasets_are_taken_by_every_edge_of_the_recipe(graph: tuple[Artifacts, dict[str, Any]]) -> None:
    """The explorer shows an artifact where something took it: all but the last are taken by one."""
    artifacts, _ = graph
    taken = {artifact for inputs in artifacts.inputs.values() for artifact in inputs.values()}
    last = "choose" if "choose" in artifacts.inputs else "evaluate"
    assert artifacts.of_type("system.Dataset") - taken == {(last, "dataset")}


def test_no_task_downloads_what_it_does_not_read(graph: tuple[Artifacts, dict[str, Any]]) -> None:
    artifacts, _ = graph
    for task, inputs in artifacts.inputs.items():
        for name, artifact in inputs.items():
            assert artifacts.types[artifact] in SMALL or (task, name) in READ_WHOLE
