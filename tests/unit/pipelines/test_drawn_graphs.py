"""The lineage picture of every shipped graph has the edges of the compiled pipeline, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import PROMPTS
from kubealign_components.data.stats import Stats
from kubealign_components.reports.lineage import to_html
from support.compiled import Artifacts, compile_ir
from support.pages import Page
from support.pipeline_shapes import SHAPES


def made(artifacts: Artifacts, task: str, folder: Path, done: dict[str, Dataset]) -> Dataset:
    """A dataset with the inputs that ``task`` takes in the compiled pipeline, each made as well."""
    if task not in done:
        inputs = {
            name: made(artifacts, producer, folder, done)
            for name, (producer, _) in artifacts.inputs[task].items()
        }
        with DatasetWriter(str(folder / task), PROMPTS, derive(task, 1, {}, inputs=inputs)) as writer:
            done[task] = writer.commit(Stats())
    return done[task]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_picture_is_that_of_the_pipeline(shape: str, tmp_path: Path) -> None:
    pipeline, parameters, _ = SHAPES[shape]
    artifacts = Artifacts(compile_ir(tmp_path, pipeline, parameters=parameters)[0])
    done: dict[str, Dataset] = {}
    compared = max(task for task in artifacts.inputs if task.startswith("evaluate"))  # of the last round
    last = made(artifacts, compared, tmp_path, done)
    tasks = {dataset.manifest.fingerprint: task for task, dataset in done.items()}
    drawn = Page(to_html(last.manifest)).edges
    assert len(drawn) == len(set(drawn))
    assert {(tasks[parent], tasks[child]) for parent, child in drawn} == artifacts.edges(compared)
    assert len(drawn) >= len(tasks) - 1
