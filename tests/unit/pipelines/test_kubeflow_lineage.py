"""Kubeflow's lineage explorer walks from a model to every dataset: the graph of artifacts, from the IR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.compiled import Artifacts, compile_ir
from support.pipeline_shapes import SHAPES

OUTSIDE = {"import-prompts", "clean-prompts", "clean-pmp"}
"""Tasks that read what no task of the run has made."""
COMPARED = {"choose", "benchmark"}
"""Tasks that say what was made, beside the last evaluation."""
SMALL = {"system.Dataset", "system.Artifact"}
"""Types of artifacts of which a manifest is all that lies under their URI."""
READ_WHOLE = {
    ("evaluate", "model"),
    ("benchmark", "model"),
    ("train-ppo", "reward_model"),
    ("train-reward-model", "start"),
}
"""Inputs that are models, whose files the task reads anyway."""


@pytest.fixture(params=SHAPES)
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Artifacts, dict[str, Any]]:
    pipeline, parameters, _ = SHAPES[request.param]
    spec, _ = compile_ir(tmp_path, pipeline, parameters=parameters)
    return Artifacts(spec), spec


def last_evaluation(artifacts: Artifacts) -> str:
    """Of the last round, where there are several."""
    compared = [task for task in artifacts.inputs if task.startswith("evaluate")]
    return max(compared, key=lambda task: len(artifacts.ancestors(task)))


def test_what_is_made_has_what_it_was_made_from_as_an_input(graph: tuple[Artifacts, dict[str, Any]]) -> None:
    artifacts, _ = graph
    for task, _ in artifacts.of_type("system.Dataset") | artifacts.of_type("system.Model"):
        assert artifacts.inputs[task] or task in OUTSIDE, f"{task} comes from nowhere"


def test_the_last_model_and_the_evaluation_lead_to_every_dataset(
    graph: tuple[Artifacts, dict[str, Any]],
) -> None:
    artifacts, _ = graph
    compared = last_evaluation(artifacts)
    makers = {task for task, _ in artifacts.of_type("system.Dataset")} - {compared, *COMPARED}
    sources = OUTSIDE & artifacts.inputs.keys()
    last, _ = artifacts.inputs[compared]["model"]
    for task in (last, compared):
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
    last = "choose" if "choose" in artifacts.inputs else last_evaluation(artifacts)
    measured = {("benchmark", "dataset")} if "benchmark" in artifacts.inputs else set()
    assert artifacts.of_type("system.Dataset") - taken == {(last, "dataset")} | measured


def test_the_model_of_every_round_leads_to_the_samples_of_all_rounds_so_far(tmp_path: Path) -> None:
    pipeline, parameters, _ = SHAPES["three rounds, near the last"]
    artifacts = Artifacts(compile_ir(tmp_path, pipeline, parameters=parameters)[0])
    merged = ["merge-sample", "merge-sample-round-2", "merge-sample-round-3"]
    for rounds, model in enumerate(["train", "train-round-2", "train-round-3"], start=1):
        before = artifacts.ancestors(model)
        assert [name for name in merged if name in before] == merged[:rounds]
        assert "import-prompts" in before
        assert {name for name in before if name.startswith("train")} == {
            "train",
            *(f"train-round-{number}" for number in range(2, rounds + 1)),
        }


def test_no_task_downloads_what_it_does_not_read(graph: tuple[Artifacts, dict[str, Any]]) -> None:
    artifacts, _ = graph
    for task, inputs in artifacts.inputs.items():
        for name, artifact in inputs.items():
            stage = task.partition("-round-")[0]
            assert artifacts.types[artifact] in SMALL or (stage, name) in READ_WHOLE
