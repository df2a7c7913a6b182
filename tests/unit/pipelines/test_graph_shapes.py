"""Whatever a run file leaves out or reorders, the top level of the graph shows every stage by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubealign_components.errors import ConfigError
from kubealign_pipelines.compiler import compile_pipeline
from kubealign_pipelines.graph import Graph
from support.compiled import compile_ir, read_ir
from support.pipeline_shapes import DRAWS, FURTHER, SHAPES


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, Any], Graph, set[str]]:
    """The IR, the graph and the stages that it must show, of every shape."""
    pipeline, parameters, stages = SHAPES[request.param]
    path = tmp_path / "pipeline.yaml"
    graph = compile_pipeline(pipeline, path, parameters=parameters)
    return read_ir(path)[0], graph, stages


def test_the_top_level_shows_the_whole_recipe(shape: tuple[dict[str, Any], Graph, set[str]]) -> None:
    spec, graph, stages = shape
    tasks = spec["root"]["dag"]["tasks"]
    shown = [task["taskInfo"]["name"] for task in tasks.values()]
    assert len(set(shown)) == len(shown)
    named = {title for one in shown for title in one.removeprefix("each variant: ").split(", ")}
    further, draws = FURTHER & stages, DRAWS & stages  # which bear the number of their round, or of draws
    assert {stage.replace("_", " ") for stage in stages - further - draws} <= named
    assert {f"{stage.replace('_', ' ')} 2" for stage in further} <= named
    assert {f"{stage.replace('_', ' ')} of 8" for stage in draws} <= named
    assert {task.function for task in graph.tasks.values()} - {"split", "merge"} == stages
    for name, task in tasks.items():
        assert "triggerPolicy" not in task, f"{name} depends on a condition"
        if "parameterIterator" not in task:
            assert name == task["taskInfo"]["name"].replace(" ", "-").lower()
    named = {task.name: task.title.replace(" ", "-").lower() for task in graph.tasks.values()}
    assert all(name == title for name, title in named.items()), "two tasks of one name"


def test_a_run_is_asked_for_nothing_that_no_stage_reads(
    shape: tuple[dict[str, Any], Graph, set[str]],
) -> None:
    _, graph, _ = shape
    read = {source.parameter for task in graph.tasks.values() for source in task.arguments.values()}
    read |= {task.each for task in graph.tasks.values()}
    assert set(graph.parameters) <= read
    assert not graph.parameters.keys() & graph.others.keys()
    assert not graph.parameters.keys() & graph.choices.keys()


def test_scoring_stands_where_it_was_asked_for(tmp_path: Path) -> None:
    for order, first in (("after", "select"), ("before", "merge-rewards")):
        spec, _ = compile_ir(tmp_path, "offline_alignment", parameters={"logprobs_order": order})
        [loop] = [t for t in spec["root"]["dag"]["tasks"].values() if t["taskInfo"]["name"] == "logprobs"]
        assert _reaches(spec["root"]["dag"]["tasks"], loop, first)
        assert _reaches(spec["root"]["dag"]["tasks"], loop, "select") == (order == "after")


def test_rewards_are_left_out_only_with_labels() -> None:
    given = {"sample_n": 0, "select_strategy": "best_worst"}
    with pytest.raises(
        ConfigError, match="select_strategy='best_worst': expected labels or labelled, as sample_n is 0"
    ):
        compile_pipeline("offline_alignment", Path("unused.yaml"), parameters=given)


def test_a_judge_ranks_in_place_of_a_reward_and_compares_both_policies(tmp_path: Path) -> None:
    ranked = {"rank_judge": "some/judge"}
    graph = compile_pipeline("offline_alignment", tmp_path / "ranked.yaml", parameters=ranked)
    [rank] = [task for task in graph.tasks.values() if task.function == "rank"]
    [evaluate] = [task for task in graph.tasks.values() if task.function == "evaluate"]
    for task in (rank, evaluate):
        assert task.arguments["judge"].parameter == "rank_judge"
    assert (
        rank.arguments["options"].parameter == evaluate.arguments["rank_options"].parameter == "rank_options"
    )
    assert evaluate.arguments["reward_model"].constant == ""
    given = {**ranked, "reward_functions": ["brevity"]}
    with pytest.raises(
        ConfigError, match="rank_judge='some/judge': expected none beside reward_functions or"
    ):
        compile_pipeline("offline_alignment", tmp_path / "unused.yaml", parameters=given)


def test_benchmarks_hang_off_the_training_of_every_round(tmp_path: Path) -> None:
    asked = {"benchmark_tasks": ["arc_easy"]}
    graph = compile_pipeline("offline_alignment", tmp_path / "one.yaml", parameters={**asked, "rounds": 2})
    measured = [task for task in graph.tasks.values() if task.function == "benchmark"]
    assert [task.name for task in measured] == ["benchmark", "benchmark-round-2"]
    for task in measured:
        assert task.arguments["tasks"].parameter == "benchmark_tasks"
        assert task.arguments["policy"].parameter == "policy"
    spec, _ = compile_ir(tmp_path, "offline_alignment", parameters=asked)
    tasks = spec["root"]["dag"]["tasks"]
    assert tasks["benchmark"]["dependentTasks"] == ["train"] == tasks["evaluate"]["dependentTasks"][-1:]


@pytest.mark.parametrize("halving", [0, 2])
def test_of_a_sweep_the_chosen_policy_is_measured_on_benchmarks(tmp_path: Path, halving: int) -> None:
    swept = {"variants": [{"train": {"beta": 0.05}}, {}], "reward_functions": ["brevity"], "halving": halving}
    spec, _ = compile_ir(tmp_path, "offline_alignment", parameters={**swept, "benchmark_tasks": ["arc_easy"]})
    [measured] = [name for name in spec["components"] if name.startswith("comp-benchmark")]
    artifacts = spec["root"]["dag"]["tasks"][measured.removeprefix("comp-")]["inputs"]["artifacts"]
    assert artifacts == {
        "choice": {"taskOutputArtifact": {"producerTask": "choose", "outputArtifactKey": "dataset"}}
    }


@pytest.mark.parametrize(("rl", "trained"), [("ppo", "train-ppo"), ("offline", "train")])
def test_what_salmon_aligns_is_measured_on_benchmarks(tmp_path: Path, rl: str, trained: str) -> None:
    asked = {"rl": rl, "benchmark_tasks": ["arc_easy"]}
    spec, _ = compile_ir(tmp_path, "salmon", parameters=asked)
    tasks = spec["root"]["dag"]["tasks"]
    assert tasks["benchmark"]["dependentTasks"] == [trained]
    spec, _ = compile_ir(tmp_path, "salmon", parameters={"rl": rl})
    assert "benchmark" not in spec["root"]["dag"]["tasks"]


def _reaches(tasks: dict[str, Any], task: dict[str, Any], name: str) -> bool:
    before = task.get("dependentTasks", [])
    return name in before or any(_reaches(tasks, tasks[one], name) for one in before)
