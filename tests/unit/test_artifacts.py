"""What a component hands to Kubeflow: small artifacts with names, and URIs found from everywhere."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from kubealign_components.artifacts import local_copy, open_dataset, publish, publish_with_page, rows_of
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.manifest import MANIFEST, Manifest
from kubealign_components.data.schemas import PROMPTS
from kubealign_components.data.stats import Stats
from kubealign_components.errors import CorruptDataset
from support.datasets import MakeDataset
from support.pages import Page
from support.tiny import prompt_row

ROWS = [prompt_row(f"question {i}") for i in range(4)]


@pytest.fixture
def made(make_dataset: MakeDataset, tmp_path: Path) -> tuple[dsl.Dataset, dsl.HTML]:
    """The output of a task, published, and a page beside it."""
    source = make_dataset(ROWS)
    folder = tmp_path / "run" / "filter" / "execution"
    dataset = dsl.Dataset(name="dataset", uri=str(folder / "dataset"), metadata={})
    page = dsl.HTML(name="17", uri=str(folder / "report"), metadata={})
    with DatasetWriter(rows_of(dataset), PROMPTS, derive("step", 1, {}, inputs={"a": source})) as writer:
        writer.adopt(source)
        writer.commit(Stats(rows_in=4, rows_out=4))
    publish(dataset, page)
    return dataset, page


def test_an_artifact_is_a_manifest_alone_and_its_rows_are_read_beside_it(
    made: tuple[dsl.Dataset, dsl.HTML],
) -> None:
    dataset, _ = made
    assert [path.name for path in Path(dataset.uri).iterdir()] == [MANIFEST]
    opened = open_dataset(dataset, PROMPTS)
    assert [row["prompt_id"] for row in opened.iter_rows()] == [row["prompt_id"] for row in ROWS]
    beside = Path(opened.home)
    assert not beside.name.startswith("dataset"), "KFP 2.16 downloads what starts with the artifact's URI"
    assert Dataset.open(str(beside)).manifest.fingerprint == opened.manifest.fingerprint


def test_a_moved_run_is_still_whole(made: tuple[dsl.Dataset, dsl.HTML], tmp_path: Path) -> None:
    shutil.move(tmp_path / "run", tmp_path / "moved")
    moved = Dataset.open(str(tmp_path / "moved" / "filter" / "execution" / "dataset"))
    assert moved.table(["prompt_id"]).num_rows == 4


def test_rows_are_found_through_links_as_a_run_folder_has_them(
    made: tuple[dsl.Dataset, dsl.HTML], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "selected").symlink_to(Path("run", "filter", "execution", "dataset"))
    monkeypatch.chdir(made[0].uri)
    for place in (str(tmp_path / "selected"), f"file://{tmp_path / 'selected'}", "."):
        opened = Dataset.open(place)
        assert opened.table(["prompt_id"]).num_rows == 4
        assert opened.uri == place


def test_a_retried_task_publishes_what_stands(made: tuple[dsl.Dataset, dsl.HTML]) -> None:
    dataset, _ = made
    before = (Path(dataset.uri) / MANIFEST).read_bytes()
    publish(dataset)
    assert (Path(dataset.uri) / MANIFEST).read_bytes() == before


def test_artifacts_are_called_by_their_slug(made: tuple[dsl.Dataset, dsl.HTML]) -> None:
    dataset, page = made
    manifest = open_dataset(dataset).manifest
    assert dataset.metadata["display_name"] == manifest.slug
    assert page.metadata["display_name"] == f"{manifest.slug} report"
    assert dataset.metadata["rows"] == 4
    assert dataset.metadata["stage"] == "step"
    assert manifest.fingerprint.startswith(dataset.metadata["short_fingerprint"])


def test_what_a_launcher_has_mounted_never_reaches_a_manifest(
    made: tuple[dsl.Dataset, dsl.HTML], tmp_path: Path
) -> None:
    """The launcher shows a pod its copy at a path of its own; what is recorded is the URI."""
    dataset, _ = made
    mount = tmp_path / "s3" / "bucket" / "dataset"
    shutil.copytree(dataset.uri, mount)
    artifact = _Mounted(uri=dataset.uri, path=str(mount))
    opened = open_dataset(artifact)
    [parent] = derive("next", 1, {}, inputs={"a": opened}).parents
    assert parent["uri"] == dataset.uri
    assert opened.table(["prompt_id"]).num_rows == 4
    assert local_copy(artifact) == str(mount), "a model's files are read where they are"


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ".."])
def test_a_manifest_cannot_lead_out_of_its_task(made: tuple[dsl.Dataset, dsl.HTML], name: str) -> None:
    dataset, _ = made
    manifest = replace(open_dataset(dataset).manifest, shards_in=name)
    with pytest.raises(CorruptDataset, match="shards_in is "):
        Manifest.from_json(manifest.to_json().encode(), "here")


class _Mounted:
    """An input artifact as a pod on a cluster sees it."""

    name = "dataset"

    def __init__(self, uri: str, path: str) -> None:
        self.uri, self.path = uri, path
        self.metadata: dict[str, Any] = {}


def test_a_page_about_the_rows_is_an_output_and_stands_beside_them(
    made: tuple[dsl.Dataset, dsl.HTML],
) -> None:
    dataset, report = made
    (Path(rows_of(dataset)) / "report.html").write_text("what an attempt before this one left")
    published = publish_with_page(dataset, report)
    text = Path(report.path).read_text()
    page = Page(text)
    assert "4 of 4 rows came through step" in page.text and "question 2" in page.text
    assert page.loaded == []
    assert (Path(published.home) / "report.html").read_text() == text
    assert [path.name for path in Path(dataset.uri).iterdir()] == [MANIFEST]


def test_rows_of_which_no_page_can_be_made_are_not_lost(
    make_dataset: MakeDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_dataset([ROWS[0] | {"messages": "no JSON"}])
    dataset = dsl.Dataset(name="dataset", uri=str(tmp_path / "run" / "dataset"), metadata={})
    report = dsl.HTML(name="17", uri=str(tmp_path / "run" / "report"), metadata={})
    with DatasetWriter(rows_of(dataset), PROMPTS, derive("step", 1, {}, inputs={"a": source})) as writer:
        writer.adopt(source)
        writer.commit(Stats(rows_in=1, rows_out=1))
    assert publish_with_page(dataset, report).rows == 1
    assert "The rows are whole; their page cannot be made (JSONDecodeError" in Path(report.path).read_text()
    assert "cannot be made" in caplog.text
