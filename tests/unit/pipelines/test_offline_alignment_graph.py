"""The compiled graph: what every task asks for, and what a run file changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import kubealign_pipelines
from kubealign.parameters import check_parameters
from kubealign.runfile import load_run_file
from kubealign_components.config import from_mapping, from_parameters
from kubealign_components.data.dataset import Dataset
from kubealign_components.errors import ConfigError
from kubealign_components.import_prompts.stage import ImportConfig
from kubealign_components.import_prompts.stage import run as import_prompts
from kubealign_pipelines import build
from kubealign_pipelines.compiler import compile_pipeline
from kubealign_pipelines.graph import CHECK, REGISTER
from kubealign_pipelines.resources import CompileSettings
from kubealign_pipelines.stage_resources import DEFAULTS, PART_OF, StageResources
from support.compiled import compile_ir
from support.pipeline_shapes import FURTHER

ASKED_FOR = {"rank", "choose", "draw_more", "join_draws", "benchmark"}
"""Stages of a judge in place of a reward, of a sweep, and of a range of draws."""
SALMON_ALONE = {
    "clean_prompts",
    "judge",
    "aggregate",
    "clean_pmp",
    "rl_prompts",
    "train_reward_model",
    "train_ppo",
}
"""Stages that only the other recipe has."""


def compiled(folder: Path, settings: CompileSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline's IR and its pod settings."""
    path = folder / "pipeline.yaml"
    compile_pipeline("offline_alignment", path, settings)
    documents = list(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader))
    return documents[0], documents[1] if len(documents) > 1 else {}


def tasks(spec: dict[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Stage, task and container of every task."""
    found = []
    for dag in [spec["root"], *spec["components"].values()]:
        for task in dag.get("dag", {}).get("tasks", {}).values():
            component = spec["components"][task["componentRef"]["name"]]
            if "executorLabel" in component:
                container = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
                found.append((container["args"][-1], task, container))
    return found


def test_every_stage_is_there_with_retries_and_resources(tmp_path: Path) -> None:
    spec, _ = compiled(tmp_path, CompileSettings(retries=4))
    elsewhere = SALMON_ALONE | FURTHER | ASKED_FOR | {"split", REGISTER}
    assert {stage for stage, _, _ in tasks(spec)} == set(DEFAULTS) - elsewhere
    for stage, task, container in tasks(spec):
        if stage != CHECK:
            assert task["retryPolicy"]["maxRetryCount"] == 4, stage
        assert container["resources"]["memoryRequest"] > 0, stage


def test_a_run_file_places_pods(tmp_path: Path) -> None:
    settings = CompileSettings(
        parallelism=7,
        registry="mirror.example",
        labels={"team": "a"},
        environment={"HF_HUB_OFFLINE": "1"},
        stages={
            "sample": StageResources(
                accelerators=4,
                node_selector={"pool": "spot"},
                tolerations=({"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},),
                timeout=3600,
            ),
            "rewards": StageResources(accelerators=0),
        },
    )
    spec, platform = compiled(tmp_path, settings)
    by_stage = {stage: container for stage, _, container in tasks(spec)}
    assert by_stage["sample"]["resources"]["accelerator"]["count"] == "4"
    assert "accelerator" not in by_stage["rewards"]["resources"]
    assert all(container["image"].startswith("mirror.example/kubealign/") for container in by_stage.values())
    assert all({"name": "HF_HUB_OFFLINE", "value": "1"} in c["env"] for c in by_stage.values())
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert pods["exec-sample"]["nodeSelector"]["labels"] == {"pool": "spot"}
    assert pods["exec-sample"]["tolerations"][0]["key"] == "gpu"
    assert all(pod["podMetadata"]["labels"] == PART_OF | {"team": "a"} for pod in pods.values())
    loops = [
        task["iteratorPolicy"]["parallelismLimit"]
        for dag in [spec["root"], *spec["components"].values()]
        for task in dag.get("dag", {}).get("tasks", {}).values()
        if "parameterIterator" in task
    ]
    assert sorted(loops) == [1, 7, 7], "seven GPUs: one pod of four, or seven of one or none"


PARAMS = Path(kubealign_pipelines.__file__).parent / "params"


@pytest.mark.parametrize("path", sorted(PARAMS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_run_file_that_ships_can_be_used(path: Path, tmp_path: Path) -> None:
    run = load_run_file(path)
    graph = compile_pipeline(run.pipeline, tmp_path / "pipeline.yaml", run.compile, run.parameters)
    check_parameters(graph, run.parameters, complete=False)


@pytest.mark.parametrize("name", ["offline", ""])
def test_an_unknown_pipeline_is_refused(name: str) -> None:
    with pytest.raises(Exception, match="one of offline_alignment"):
        build(name)


def _training(folder: Path, train: StageResources) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Component, arguments and pod settings of the training task."""
    labels = {"kueue.x-k8s.io/queue-name": "alignment"}
    spec, pods = compiled(folder, CompileSettings(labels=labels, stages={"train": train}))
    task = spec["root"]["dag"]["tasks"]["train"]
    component = spec["components"][task["componentRef"]["name"]]
    pod = pods["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    constants = {
        name: value["runtimeValue"]["constant"]
        for name, value in task["inputs"]["parameters"].items()
        if "runtimeValue" in value
    }
    return component, constants, pod[component["executorLabel"]]


def _stays(component: dict[str, Any]) -> set[str]:
    """What of the pod's settings holds for the task's own pod as well as being handed on."""
    passed_on = component["taskConfigPassthroughs"]
    assert len(passed_on) == 6
    return {one["field"] for one in passed_on if one.get("applyToTask")}


def test_on_one_node_the_pod_trains_itself(tmp_path: Path) -> None:
    component, constants, _ = _training(tmp_path, StageResources(accelerators=8))
    assert {"RESOURCES", "KUBERNETES_TOLERATIONS", "ENV", "KUBERNETES_VOLUMES"} <= _stays(component)
    assert not constants.keys() & {"nodes", "train_job"}


def test_on_several_nodes_the_starting_pod_holds_no_gpus(tmp_path: Path) -> None:
    train = StageResources(
        nodes=8,
        accelerators=8,
        annotations={"note": "x"},
        volumes={"cache": "/models"},
        shared_memory="64Gi",
        secrets={"HF_TOKEN": "hub/token"},
        train_job={"queue_timeout": 60},
    )
    component, constants, pod = _training(tmp_path, train)
    assert _stays(component) == {"RESOURCES", "ENV", "KUBERNETES_VOLUMES"}
    assert constants["nodes"] == 8
    assert constants["train_job"] == {
        "labels": {"app.kubernetes.io/part-of": "kubealign", "kueue.x-k8s.io/queue-name": "alignment"},
        "annotations": {"note": "x"},
        "queue_timeout": 60,
        "resources": {
            "limits": {"memory": "128Gi", "nvidia.com/gpu": "8"},
            "requests": {"cpu": "16", "memory": "128Gi"},
        },
        "shared_memory": "64Gi",
    }
    assert pod["pvcMount"][0]["mountPath"] == "/models"
    assert "emptyDirMounts" not in pod
    annotations = pod["podMetadata"]["annotations"]
    assert annotations == {"note": "x", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    assert pod["secretAsEnv"][0]["keyToEnv"][0]["envVar"] == "HF_TOKEN"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"stages": {"sample": {"nodes": 2}}}, "stages.sample.nodes=2"),
        ({"stages": {"train": {"nodes": 0}}}, "nodes=0"),
        ({"stages": {"train": {"train_job": {"queue": "a"}}}}, "train_job.queue='a'"),
        ({"stages": {"train": {"secrets": {"A": "hub"}}}}, "secrets.A='hub'"),
        ({"environment": {"A": "1"}, "secrets": {"A": "hub/a"}}, "secrets='A'"),
        ({"volumes": {"one": "/models", "two": "/models/"}}, "volumes.two='/models/'"),
        ({"volumes": {"one": "/a:b"}}, "volumes.one='/a:b'"),
        ({"volumes": {"one": "/s3"}}, "volumes.one='/s3'"),
        ({"stages": {"mix": {"volumes": {"one": "/scratch"}, "scratch": "1Gi"}}}, "volumes.one='/scratch'"),
        (
            {"environment": {"PET_NNODES": "2"}, "stages": {"train": {"nodes": 2}}},
            "stages.train.environment='PET_NNODES'",
        ),
    ],
)
def test_what_cannot_be_placed_is_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        from_mapping(CompileSettings, settings, "compile")


@pytest.mark.parametrize("pipeline", ["offline_alignment", "salmon"])
def test_every_stage_that_draws_is_given_the_seed_of_the_run(pipeline: str, tmp_path: Path) -> None:
    """Those that read sources among them."""
    spec, _ = compile_ir(tmp_path, pipeline)
    given = {}
    for stage, task, _ in tasks(spec):
        component = spec["components"][task["componentRef"]["name"]]
        if "seed" in component.get("inputDefinitions", {}).get("parameters", {}):
            given[stage] = task["inputs"]["parameters"].get("seed", {}).get("componentInputParameter")
    salmon = {"clean_prompts", "clean_pmp", "rl_prompts"}
    assert given.keys() >= (salmon if pipeline == "salmon" else {"import_prompts"})
    assert {stage for stage, parameter in given.items() if "seed" not in (parameter or "")} == set()


def test_the_rows_that_are_imported_go_by_the_seed_of_the_run(tmp_path: Path) -> None:
    """What the compiled graph hands to import_prompts of the run's parameters decides which rows are kept."""
    spec, _ = compile_ir(tmp_path, "offline_alignment")
    [(_, task, _)] = [found for found in tasks(spec) if found[0] == "import_prompts"]
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(40)))
    parameters = {"sources": [{"uri": str(source), "max_rows": 8}]}

    def kept(seed: int, name: str) -> set[str]:
        of_run = parameters | {"seed": seed}
        given = {
            setting: of_run[value["componentInputParameter"]]
            for setting, value in task["inputs"]["parameters"].items()
            if value.get("componentInputParameter") in of_run
        }
        import_prompts(from_parameters(ImportConfig, given, "import_prompts"), output=str(tmp_path / name))
        return {row["prompt_id"] for row in Dataset.open(str(tmp_path / name)).iter_rows()}

    assert kept(1, "a") == kept(1, "again") != kept(2, "b")
