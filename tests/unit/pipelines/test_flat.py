"""A form has few boxes; a run file says any setting by one name, which goes to where it is taken."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from kubealign.cli.main import main
from kubealign_pipelines.checking.describe import describe
from kubealign_pipelines.checking.stages import check_stages
from kubealign_pipelines.compiler import compile_pipeline
from kubealign_pipelines.flat import flat_names, fold, path_of
from kubealign_pipelines.graph import Graph
from support.pipeline_shapes import SHAPES

GIVEN = {
    "policy": "org/model",
    "sources": [{"uri": "a.json", "name": "a"}],
    "reward_functions": ["kubealign_components.rewards.functions:brevity"],
}
BOXES = {"offline_alignment": 24, "salmon": 31}


@pytest.fixture(scope="module", params=sorted(SHAPES))
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Of every shape that the pipelines have."""
    pipeline, parameters, _ = SHAPES[request.param]
    return compile_pipeline(pipeline, tmp_path_factory.mktemp("p") / "p.yaml", parameters=parameters)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return compile_pipeline("offline_alignment", tmp_path_factory.mktemp("p") / "p.yaml")


def errors(graph: Graph, values: Mapping[str, object]) -> list[str]:
    return [f"{f.name}={f.value!r}: {f.expected}" for f in check_stages(graph, {**GIVEN, **values}).findings]


def test_the_form_is_short(graph: Graph) -> None:
    extra = {"variants", "choose_options", "benchmark_tasks", "benchmark_options"}
    assert len(graph.parameters.keys() - extra) <= BOXES[graph.name.replace("-", "_")]


def test_every_setting_in_options_has_one_name_that_leads_to_it(graph: Graph) -> None:
    names = flat_names(graph)
    assert len(set(names.values())) == len(names)
    for place, name in names.items():
        assert path_of(graph, name) == place
    boxes = {parameter.name for parameter in graph.settings()}
    for setting in describe(graph):
        place = tuple(map(str, setting.path[1:]))
        if len(place) > 1 and "[]" not in place:
            is_box = f"{place[0].removesuffix('_options')}_{place[-1]}" in boxes  # of another shape
            assert setting.name == names.get(place) or is_box, place


def test_a_setting_said_flat_reaches_its_stage_as_one_in_options(offline: Graph) -> None:
    flat = {"sample_top_p": 0.9, "train_adapter": "lora", "mix_caps": {"a": 3}, "evaluate_n": 2}
    nested = {
        "sample_options": {"sampling": {"top_p": 0.9}},
        "train_options": {"adapter": "lora"},
        "mix_options": {"caps": {"a": 3}},
        "evaluate_options": {"sampling": {"n": 2}},
    }
    configs = [
        {stage.task.name: stage.config for stage in check_stages(offline, GIVEN | given).stages}
        for given in (flat, nested)
    ]
    assert configs[0] == configs[1]
    assert configs[0]["evaluate"].sampling.n == 2
    assert configs[0]["logprobs"].adapter == "lora", "it scores in the numbers of training"


def test_what_is_given_stays_beside_what_is_folded_in(offline: Graph) -> None:
    given = {"train_options": {"batch_size": 4}, "train_adapter": "lora", "no_such": 1}
    assert fold(offline, given).values == {
        "train_options": {"batch_size": 4, "adapter": "lora"},
        "no_such": 1,
    }
    assert given["train_options"] == {"batch_size": 4}


def test_a_mistake_is_told_by_the_name_that_was_written(offline: Graph) -> None:
    assert errors(offline, {"train_adapter": "Lora"}) == [
        "train_adapter='Lora': one of lora, none, qlora; did you mean lora?"
    ]
    (told,) = errors(offline, {"train_options": {"adapter": "Lora"}})
    assert told.startswith("train_options.adapter='Lora'")
    (told,) = errors(offline, {"train_adaptr": "lora"})
    assert "did you mean train_adapter?" in told


@pytest.mark.parametrize("null", ["train_adapter", "sample_temperature"])
def test_a_null_is_refused(offline: Graph, null: str) -> None:
    (told,) = errors(offline, {null: None})
    assert told.startswith(f"{null}=None: a value; leave the setting out")


def test_a_setting_is_given_once(offline: Graph) -> None:
    (told,) = errors(offline, {"train_adapter": "lora", "train_options": {"adapter": "none"}})
    assert told == (
        "train_options.adapter='none': nothing here: it is the parameter train_adapter; give it there, "
        "and once"
    )


def test_what_stands_in_the_way_hides_no_other_mistake(offline: Graph) -> None:
    told = errors(offline, {"sample_options": {"sampling": 3}, "sample_temperature": "hot"})
    assert told == [
        "sample_options.sampling=3: a mapping of settings",
        "sample_temperature='hot': a number",
    ]


def test_a_compiled_pipeline_has_it_among_the_defaults_of_its_options(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    compile_pipeline("offline_alignment", path, None, {"sample_engine": "fake"}, defaults=True)
    spec = next(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader))
    declared = spec["root"]["inputDefinitions"]["parameters"]
    assert declared["sample_options"]["defaultValue"] == {"sampling": {"engine": "fake"}}


def test_the_description_has_every_key_of_every_options_box(graph: Graph, tmp_path: Path) -> None:
    pipeline, parameters, _ = next(s for s in SHAPES.values() if s[0] == graph.name.replace("-", "_"))
    written = compile_pipeline(pipeline, tmp_path / "p.yaml", parameters=parameters)
    spec = next(yaml.load_all((tmp_path / "p.yaml").read_text(), Loader=yaml.CSafeLoader))
    lines = dict(
        line.split(": ", 1)
        for line in spec["pipelineInfo"]["description"].splitlines()
        if "_options: " in line
    )
    for setting in describe(written):
        parameter, *inner = map(str, setting.path[1:])
        if inner:
            key = ".".join(inner).replace(".[]", "[]")
            assert not parameter.endswith("_options") or f"{key} " in lines[parameter], (parameter, key)


def test_a_flat_name_and_options_of_the_same_stage_are_both_taken(tmp_path: Path) -> None:
    """From the command line, which checks first what it hands on."""
    words = ["--set", "evaluate_max_prompts=6", "--set", "evaluate_options={min_gain: 0.5}"]
    done = CliRunner().invoke(
        main, ["compile", "offline_alignment", *words, "-o", str(tmp_path / "pipeline.yaml")]
    )
    assert done.exit_code == 0, done.output
    spec = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert parameters["evaluate_options"]["defaultValue"] == {"min_gain": 0.5, "max_prompts": 6}
