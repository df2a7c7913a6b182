"""Bad settings are refused by the name that the user gave them, before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kubealign.cli.main import main
from kubealign.parameters import check_parameters, whole_parameters
from kubealign_components.config import assemble
from kubealign_components.errors import ConfigError
from kubealign_components.stages import config_class
from kubealign_pipelines.checking.stages import arguments
from kubealign_pipelines.compiler import compile_pipeline
from kubealign_pipelines.graph import Graph

GIVEN: dict[str, Any] = {
    "sources": [{"name": "a", "uri": "a.json"}],
    "policy": "org/model",
    "reward_functions": ["kubealign_components.rewards.functions:brevity"],
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return compile_pipeline("offline_alignment", tmp_path_factory.mktemp("ir") / "pipeline.yaml")


def test_the_defaults_are_complete_and_pass(graph: Graph) -> None:
    values = check_parameters(graph, GIVEN)
    assert set(values) == set(graph.parameters)
    assert values["sample_n"] == 10


@pytest.mark.parametrize(
    "chosen",
    [
        {"rounds": 2, "rounds_reference": "last", "logprobs_order": "before"},
        {"sample_n": {"from": 4, "to": 16}},
        {"sample_n": 0, "select_strategy": "labels"},
        {"variants": [{"train": {"beta": beta}} for beta in (0.1, 0.2)], "halving": 2, "work": "gs://a/work"},
    ],
    ids=str,
)
def test_what_a_run_leaves_of_its_parameters_gives_the_same_stages_again(
    chosen: dict[str, Any], tmp_path: Path
) -> None:
    given = {**GIVEN, **chosen, "rounds_reference": chosen.get("rounds_reference", "first")}
    graph = compile_pipeline("offline_alignment", tmp_path / "pipeline.yaml", parameters=given)
    kept = whole_parameters(graph, given, check_parameters(graph, given))
    assert kept.items() >= chosen.items()
    assert graph.rules.shape(kept) == graph.rules.shape(given)
    assert kept.get("rounds_reference") != "first", "a default of no stage is nothing that was chosen"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        pytest.param("sample_m", 3, "sample_m=3: expected a parameter of offline-alignment", id="unknown"),
        pytest.param("sample_n", "many", "sample_n='many': expected a whole number", id="type"),
        pytest.param("sample_n", True, "sample_n=True: expected a whole number", id="bool is no number"),
        pytest.param("sample_n", 0, "sample_n=0", id="stage refuses"),
        pytest.param("train_objective", "dpoo", "train_objective='dpoo': expected one of", id="choice"),
        pytest.param("select_options", {"kk": 1}, "select_options.kk=1", id="unknown option"),
        pytest.param("train_options", {"batch_size": 0}, "train_options.batch_size=0", id="option refused"),
        pytest.param("filter_options", {"revision": None}, "filter_options.revision=None", id="null"),
        pytest.param("reward_functions", ["brevit"], "module:function", id="reward function"),
        pytest.param("filter_max_prompt_len", 8192, "filter_max_prompt_len=8192", id="two settings"),
        pytest.param("logprobs_order", "befor", "logprobs_order='befor': expected", id="order"),
    ],
)
def test_what_is_refused_and_how(graph: Graph, name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_parameters(graph, GIVEN | {name: value})
    assert message in str(caught.value)


SALMON = {
    "sources": [{"name": "a", "uri": "a.json"}],
    "pmp_sources": [{"name": "b", "uri": "b.json"}],
    "policy": "org/model",
}


@pytest.fixture(scope="module")
def salmon(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return compile_pipeline("salmon", tmp_path_factory.mktemp("ir") / "salmon.yaml")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        pytest.param("rl", "dpo", "rl='dpo': expected one of offline, ppo", id="branch"),
        pytest.param("pmp_learning_rate", -1.0, "pmp_learning_rate=-1.0", id="first reward model"),
        pytest.param("reward_model_max_steps", -1, "reward_model_max_steps=-1", id="second reward model"),
        pytest.param("ppo_step_batch", 1000, "ppo_step_batch=1000: expected at most", id="two settings"),
        pytest.param("judge_options", {"dtype": "int8"}, "judge_options.dtype='int8'", id="chunked stage"),
        pytest.param("rl_sources", [{"name": "x", "uri": "x", "kind": "zzz"}], "rl_sources", id="source"),
        pytest.param("train_beta", "x", "train_beta='x': expected a number", id="of the other shape"),
    ],
)
def test_salmon_refuses_by_its_own_names(salmon: Graph, name: str, value: Any, message: str) -> None:
    assert set(check_parameters(salmon, SALMON)) == set(salmon.parameters)
    with pytest.raises(ConfigError) as caught:
        check_parameters(salmon, SALMON | {name: value})
    assert message in str(caught.value)


def test_the_other_shape_of_salmon_is_checked_as_well(tmp_path: Path) -> None:
    given = SALMON | {"rl": "offline", "train_beta": 0.0, "ppo_epochs": 1.0}
    offline = compile_pipeline("salmon", tmp_path / "salmon.yaml", parameters=given)
    with pytest.raises(ConfigError, match=r"train_beta=0\.0"):
        check_parameters(offline, given)
    values = check_parameters(offline, given | {"train_beta": 0.2})
    assert values["train_beta"] == 0.2
    assert not values.keys() & {"rl", "ppo_epochs"}, "the compiled pipeline has no such parameters"


def test_a_missing_parameter_is_explained(graph: Graph) -> None:
    given = {name: value for name, value in GIVEN.items() if name != "policy"}
    with pytest.raises(
        ConfigError, match="policy=None: expected a value, it has no default: Model directory"
    ):
        check_parameters(graph, given)
    check_parameters(graph, given, complete=False)
    with pytest.raises(ConfigError, match="reward_functions=None: expected a value for reward_functions or"):
        check_parameters(graph, GIVEN | {"reward_functions": []})


def test_every_flat_argument_is_a_setting_of_its_stage(graph: Graph, salmon: Graph) -> None:
    """Else a parameter would go unchecked."""
    mappings = {"options", "judge_options", "rank_options", "rewards_options", "sample_options"}
    no_settings = {
        "chunk",
        "train_job",
        "training_uris",
        "work",
        "seen",
        "rounds",
        "rows_per_chunk",
        "max_chunks",
        "engines",
        "variant",
        "sweep",
        "train_options",
    }
    for task in [*graph.tasks.values(), *salmon.tasks.values()]:
        cls = config_class(task.function)
        if cls is not None:
            values = dict.fromkeys(graph.parameters | salmon.parameters, "x")
            called = arguments(task, values) | {name: {} for name in mappings & set(task.arguments)}
            used = {origins[-1][0] for origins in assemble(cls, called).origins.values()}
            assert set(task.arguments) - mappings - no_settings - used == set(), task.function


def test_evaluate_is_checked_with_the_options_of_sample_and_rewards(graph: Graph) -> None:
    for name, value in (("top_p", 2), ("dtyp", "x"), ("dtype", "x")):
        with pytest.raises(ConfigError, match=f"^sample_options.sampling.{name}={value!r}"):
            check_parameters(graph, GIVEN | {"sample_options": {"sampling": {name: value}}})
    with pytest.raises(ConfigError, match=r"^rewards_options\.reward\.over_length='cut'"):
        check_parameters(graph, GIVEN | {"rewards_options": {"reward": {"over_length": "cut"}}})


def test_every_parameter_is_documented_and_reaches_a_stage(graph: Graph, salmon: Graph) -> None:
    for pipeline in (graph, salmon):
        assert [p.name for p in pipeline.parameters.values() if not p.description] == []
        used = {source.parameter for task in pipeline.tasks.values() for source in task.arguments.values()}
        assert set(pipeline.parameters) <= used


def test_bad_settings_end_the_command_in_a_second_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kubealign.cli.main", "run", "offline_alignment"]
    done = subprocess.run(
        [*command, "--set", "sample_n=-1", "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "Error: sample_n=-1: expected a positive number" in done.stderr
    assert "Error: policy=None: expected a value" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("*.yaml")) == []


def test_compile_writes_parameters_as_defaults(tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text("parameters: {policy: org/model, sample_n: 4}\ncompile: {labels: {team: a}}\n")
    path = tmp_path / "pipeline.yaml"
    done = CliRunner().invoke(main, ["compile", "-f", str(run), "-o", str(path)])
    assert done.exit_code == 0, done.output
    from kubealign_pipelines.compiler import read_graph

    assert read_graph(path).parameters["sample_n"].default == 4
    assert not read_graph(path).parameters["policy"].required
    assert "team: a" in path.read_text()


def test_compile_leaves_nothing_behind_when_settings_are_bad(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    done = CliRunner().invoke(main, ["compile", "offline_alignment", "--set", "sample_n=-1", "-o", str(path)])
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: sample_n=-1")
    assert not path.exists()


def test_params_lists_names_defaults_and_meanings() -> None:
    done = CliRunner().invoke(main, ["params", "offline_alignment"])
    assert done.exit_code == 0, done.output
    assert "train_epochs" in done.output
    assert "required" in done.output
    assert "logprobs_order" in done.output
    assert "compile time" in done.output
