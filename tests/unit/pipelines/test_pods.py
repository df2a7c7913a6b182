"""What every pod of a compiled pipeline bears, whatever its run file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import kubealign_pipelines
from kubealign.cli.main import main
from kubealign.runfile import RunFile, load_run_file
from kubealign_components.config import from_mapping
from kubealign_pipelines.resources import READS_OUTSIDE, CompileSettings
from support.compiled import compile_ir

RUN_FILES = sorted((Path(kubealign_pipelines.__file__).parent / "params").glob("*.yaml"))
LABEL = "app.kubernetes.io/part-of"


def compiled(run: RunFile, folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The IR, and containers and pod settings by executor."""
    spec, pods = compile_ir(folder, run.pipeline, run.compile, run.parameters)
    containers = {name: one["container"] for name, one in spec["deploymentSpec"]["executors"].items()}
    return spec, containers, pods


def shared_memory(pod: dict[str, Any]) -> list[str]:
    return [one["sizeLimit"] for one in pod.get("emptyDirMounts", []) if one["mountPath"] == "/dev/shm"]


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_every_pod_is_selected_admitted_and_has_room_to_talk(path: Path, tmp_path: Path) -> None:
    _, containers, pods = compiled(load_run_file(path), tmp_path)
    assert pods.keys() == containers.keys()
    for name, pod in pods.items():
        assert pod["podMetadata"]["labels"][LABEL] == "kubealign"
        assert pod["securityContext"] == {"runAsNonRoot": True}
        accelerators = int(containers[name]["resources"].get("accelerator", {}).get("resourceCount", 0))
        assert len(shared_memory(pod)) == (accelerators > 0), name


@pytest.mark.parametrize("retries", [0, 1])
def test_every_process_has_a_supervisor(retries: int, tmp_path: Path) -> None:
    """It names what ends the process, and keeps secrets out of the pod's log: without retries as well."""
    _, containers, _ = compiled(RunFile(compile=CompileSettings(retries=retries)), tmp_path)
    for name, container in containers.items():
        assert "kubealign_components.supervisor --retries " in " ".join(container["command"]), name


@pytest.mark.parametrize(("nodes", "loads"), [(1, True), (2, False)])
def test_a_task_that_only_starts_the_nodes_of_a_training_loads_no_torch(
    nodes: int, loads: bool, tmp_path: Path
) -> None:
    settings = from_mapping(CompileSettings, {"stages": {"train": {"nodes": nodes}}}, "compile")
    _, containers, _ = compiled(RunFile(compile=settings), tmp_path)
    without = {name for name, one in containers.items() if "--without-torch" in " ".join(one["command"])}
    assert ("exec-train" not in without) == loads
    assert not without & {"exec-sample", "exec-logprobs", "exec-evaluate"}


def test_a_run_file_sets_what_all_pods_have(tmp_path: Path) -> None:
    settings = {
        "image_pull_secrets": ["registry"],
        "labels": {LABEL: "mine"},
        "stages": {
            "sample": {"shared_memory": "3Gi"},
            "rewards": {"accelerators": 2},
            "mix": {"scratch": "9Gi"},
        },
    }
    _, containers, pods = compiled(
        RunFile(compile=from_mapping(CompileSettings, settings, "compile")), tmp_path
    )
    assert {pod["podMetadata"]["labels"][LABEL] for pod in pods.values()} == {"mine"}
    assert all(pod["imagePullSecret"][0]["secretName"] == "registry" for pod in pods.values())
    assert shared_memory(pods["exec-sample"]) == ["3Gi"]
    assert shared_memory(pods["exec-rewards"]) == ["16Gi"]
    [scratch] = pods["exec-mix"]["emptyDirMounts"]
    assert scratch["sizeLimit"] == "9Gi"
    assert {"name": "TMPDIR", "value": scratch["mountPath"]} in containers["exec-mix"]["env"]


@pytest.mark.parametrize(
    ("pipeline", "caching"), [("offline_alignment", True), ("salmon", True), ("salmon", False)]
)
def test_kubeflow_answers_no_task_that_reads_the_outside_world(
    pipeline: str, caching: bool, tmp_path: Path
) -> None:
    """Its key is made of parameters: the source of a second night may have grown under the same name."""
    run = RunFile(pipeline=pipeline, compile=CompileSettings(caching=caching))
    spec, _, _ = compiled(run, tmp_path)
    tasks = spec["root"]["dag"]["tasks"]
    outside = {stage.replace("_", "-") for stage in READS_OUTSIDE} & tasks.keys()
    answered = {name for name, task in tasks.items() if task.get("cachingOptions", {}).get("enableCache")}
    assert outside
    assert not outside & answered
    assert bool(answered) == caching


def test_kubeflow_answers_no_benchmark_whose_folder_of_tasks_may_have_changed(tmp_path: Path) -> None:
    spec, _, _ = compiled(RunFile(parameters={"benchmark_tasks": ["arc_easy"]}), tmp_path)
    tasks = spec["root"]["dag"]["tasks"]
    assert not tasks["benchmark"]["cachingOptions"].get("enableCache")
    assert tasks["evaluate"]["cachingOptions"].get("enableCache")


def test_no_task_is_answered_from_a_night_before(tmp_path: Path) -> None:
    """Every task has an artifact of this run among its inputs, whose id is in the key, or reads sources."""
    spec, _, _ = compiled(RunFile(pipeline="salmon"), tmp_path)
    for name, task in spec["root"]["dag"]["tasks"].items():
        made = "parameterIterator" in task or task.get("inputs", {}).get("artifacts")
        assert made or not task["cachingOptions"].get("enableCache"), name


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.stem)
def test_a_run_file_compiles_where_its_data_are_not(path: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["compile", "-f", str(path), "--set", "policy=org/model", "-o", str(tmp_path / "p.yaml")]
    )
    assert done.exit_code == 0, done.stderr
