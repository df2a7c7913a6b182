"""Components as files: each can be loaded and run by others; pipelines as objects that can be applied."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from kfp import compiler, components, dsl

from kubealign.cli.main import main
from kubealign_pipelines.catalogue import STAGES


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All components, of a registry."""
    folder = tmp_path_factory.mktemp("catalogue")
    done = call(
        "components", "-o", folder, "--registry", "ghcr.io/me", "--owner", "a", "--verified", "2026-11-27"
    )
    assert done.exit_code == 0, done.output
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("stage", STAGES)
def test_each_component_is_loaded_from_its_file(catalogue: Path, stage: str) -> None:
    loaded: Any = components.load_component_from_file(str(catalogue / stage / f"{stage}.component.yaml"))
    own = components.load_component_from_text((catalogue / stage / f"{stage}.component.yaml").read_text())
    assert loaded.component_spec.inputs == own.component_spec.inputs
    metadata = yaml.safe_load((catalogue / stage / "metadata.yaml").read_text())
    assert list(metadata) == ["name", "stability", "dependencies", "tags", "lastVerified"]
    assert metadata["name"] == stage
    assert metadata["dependencies"]["kubeflow"][0]["name"] == "Pipelines"
    assert metadata["lastVerified"].date().isoformat() == "2026-11-27"
    readme = (catalogue / stage / "README.md").read_text()
    assert all(f"| `{name}` |" in readme for name in loaded.component_spec.inputs)
    assert all(f"- `{name}`: " in readme for name in loaded.component_spec.outputs or {})
    assert yaml.safe_load((catalogue / stage / "OWNERS").read_text()) == {"approvers": ["a"]}


def test_a_pipeline_of_somebody_elses_is_made_of_them(catalogue: Path, tmp_path: Path) -> None:
    load = components.load_component_from_file
    importing: Any = load(str(catalogue / "import_prompts" / "import_prompts.component.yaml"))
    filtering: Any = load(str(catalogue / "filter" / "filter.component.yaml"))

    @dsl.pipeline(name="theirs")
    def pipeline(policy: str) -> None:
        rows = importing(sources=[{"uri": "org/data"}])
        filtering(prompts=rows.outputs["dataset"], policy=policy)

    compiler.Compiler().compile(pipeline, str(tmp_path / "theirs.yaml"))
    spec = yaml.safe_load((tmp_path / "theirs.yaml").read_text())
    used = {one["container"]["image"] for one in spec["deploymentSpec"]["executors"].values()}
    assert all(image.startswith("ghcr.io/me/kubealign/data:") for image in used)


def test_writing_components_leaves_those_of_the_pipelines_as_they_are(
    catalogue: Path, tmp_path: Path
) -> None:
    assert catalogue.is_dir()
    assert call("compile", "offline_alignment", "-o", tmp_path / "p.yaml").exit_code == 0
    assert "ghcr.io/me" not in (tmp_path / "p.yaml").read_text()


def test_a_pipeline_is_compiled_to_objects_whose_version_says_what_is_in_it(tmp_path: Path) -> None:
    def objects(*more: str) -> list[dict[str, Any]]:
        path = tmp_path / "objects.yaml"
        done = call("compile", "offline_alignment", *more, "--format", "kubernetes", "-o", path)
        assert done.exit_code == 0, done.output
        return list(yaml.safe_load_all(path.read_text()))

    pipeline, version = objects()
    package = tmp_path / "package.yaml"
    assert call("compile", "offline_alignment", "-o", package).exit_code == 0
    spec, platform = yaml.safe_load_all(package.read_text())
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert {one["apiVersion"] for one in (pipeline, version)} == {"pipelines.kubeflow.org/v2beta1"}
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == "offline-alignment"
    assert version["spec"]["pipelineSpec"] == spec
    assert version["spec"]["platformSpec"] == platform
    assert "sources" in pipeline["spec"]["description"], "what a form asks for"
    assert objects()[1]["metadata"] == version["metadata"]
    assert objects("--set", "seed=7")[1]["metadata"] != version["metadata"]
    assert len(version["metadata"]["name"]) <= 63
