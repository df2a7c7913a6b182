"""Run files and --set: what is read, what is refused and by which name."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubealign.runfile import RunFile, load_run_file
from kubealign_components.errors import ConfigError
from kubealign_pipelines.resources import CompileSettings
from kubealign_pipelines.stage_resources import DEFAULTS, StageResources


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_sections_become_typed_settings(tmp_path: Path) -> None:
    run = load_run_file(
        write(
            tmp_path,
            """
pipeline: offline_alignment
parameters: {policy: org/model, sample_options: {dtype: float32}}
compile:
  parallelism: 4
  images: {train: mirror.example/kubealign/train@sha256:0}
  stages:
    sample: {accelerators: 4, tolerations: [{key: gpu, operator: Exists}]}
local: {parallelism: 2}
""",
        )
    )
    assert run.parameters["policy"] == "org/model"
    assert run.compile.parallelism == 4
    assert run.compile.stages["sample"].tolerations == ({"key": "gpu", "operator": "Exists"},)
    assert run.local.parallelism == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("pipline: x", "pipline", id="unknown section"),
        pytest.param("pipeline: other", "pipeline='other'", id="unknown pipeline"),
        pytest.param("compile: {retry: 1}", "compile.retry=1", id="unknown setting"),
        pytest.param("compile: {retries: many}", "compile.retries='many'", id="wrong type"),
        pytest.param(
            "compile: {stages: {smaple: {cpu: 1}}}", "compile.stages.smaple='smaple'", id="unknown stage"
        ),
        pytest.param("compile: {stages: {sample: {accelerators: -1}}}", "accelerators=-1", id="negative"),
        pytest.param("local: {parallelism: 3}", "parallelism=3", id="more than KFP runs"),
        pytest.param("- a list", "a mapping", id="no mapping"),
        pytest.param("a: [", "a YAML file", id="no YAML"),
    ],
)
def test_mistakes_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_file(write(tmp_path, text))
    assert message in str(caught.value)


def test_a_missing_run_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml"):
        load_run_file(tmp_path / "no.yaml")


def test_set_reaches_keys_and_items_and_copies() -> None:
    before = RunFile(parameters={"sources": [{"uri": "a", "weight": 1}], "sample_options": {"dtype": "x"}})
    after = before.with_parameters(
        ["sources.0.uri=/data/b.json", "sample_options.stop=[a, b]", "sample_n=4", "select_strategy="]
    )
    assert after.parameters == {
        "sources": [{"uri": "/data/b.json", "weight": 1}],
        "sample_options": {"dtype": "x", "stop": ["a", "b"]},
        "sample_n": 4,
        "select_strategy": "",
    }
    assert before.parameters["sources"][0]["uri"] == "a"


@pytest.mark.parametrize(
    "assignment", ["sample_n", "=3", "sources.1.uri=x", "sources.first.uri=x", "policy.name=x", "a=[b"]
)
def test_bad_assignments_are_refused(assignment: str) -> None:
    run = RunFile(parameters={"sources": [{"uri": "a"}], "policy": "p"})
    with pytest.raises(ConfigError):
        run.with_parameters([assignment])


@pytest.mark.parametrize(
    ("given", "sources"),
    [
        ("sources=a.csv", [{"uri": "a.csv"}]),
        ("pmp_sources=[a.csv, org/name]", [{"uri": "a.csv"}, {"uri": "org/name"}]),
        ("sources=[{uri: a.csv, name: a}]", [{"uri": "a.csv", "name": "a"}]),
        ("sources=[]", []),
    ],
)
def test_sources_may_be_set_by_their_places(given: str, sources: list[dict[str, str]]) -> None:
    run = RunFile(pipeline="offline_alignment").with_parameters([given])
    assert run.parameters == {given.partition("=")[0]: sources}


def test_a_local_run_takes_the_local_retries_and_parallelism() -> None:
    stages = {"sample": StageResources(retries=7, cpu=1), "train": StageResources(nodes=4)}
    settings = CompileSettings(retries=5, stages=stages)
    local = RunFile(compile=settings).for_local_run().compile
    assert (local.retries, local.parallelism) == (0, 1)
    assert local.resources("sample").retries == 0
    assert local.resources("sample").cpu == 1
    assert local.resources("train").nodes is None


def test_resources_are_layered_stage_over_default_over_everywhere() -> None:
    settings = CompileSettings(
        retries=3,
        environment={"A": "1", "B": "1"},
        stages={"sample": StageResources(accelerators=0, memory="1Gi", environment={"B": "2"})},
    )
    sample = settings.resources("sample")
    assert (sample.accelerators, sample.memory, sample.cpu) == (0, "1Gi", DEFAULTS["sample"].cpu)
    assert (sample.retries, sample.environment) == (3, {"A": "1", "B": "2"})


def test_images_come_from_a_registry_or_by_digest() -> None:
    from kubealign_components import images

    settings = CompileSettings(registry="mirror.example/team/", images={"data": "x@sha256:1"})
    assert settings.image(images.DATA) == "x@sha256:1"
    assert settings.image(images.TRAIN) == f"mirror.example/team/{images.TRAIN}"
    assert CompileSettings().image(images.SAMPLE) == images.SAMPLE
    with pytest.raises(ConfigError, match=r"images\.tarin='tarin'"):
        CompileSettings(images={"tarin": "x"})
