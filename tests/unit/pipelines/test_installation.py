"""Where pods get store keys and model cache from: PodDefaults of a profile, or their own tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kubealign_components.errors import ConfigError
from kubealign_pipelines import PIPELINES
from kubealign_pipelines.resources import CompileSettings
from kubealign_pipelines.stage_resources import StageResources
from support.compiled import compile_ir

KEYS = {"AWS_ACCESS_KEY_ID": "accesskey", "AWS_SECRET_ACCESS_KEY": "secretkey"}


def compiled(folder: Path, pipeline: str, settings: CompileSettings) -> list[tuple[Any, Any]]:
    """Environment and pod settings of every task."""
    spec, pods = compile_ir(folder, pipeline, settings)
    return [
        (
            {one["name"]: one.get("value", "") for one in executor["container"].get("env", [])},
            pods.get(name, {}),
        )
        for name, executor in spec["deploymentSpec"]["executors"].items()
    ]


def secrets(pod: Any) -> dict[str, tuple[str, str, bool]]:
    return {
        one["envVar"]: (entry["secretName"], one["secretKey"], entry.get("optional", False))
        for entry in pod.get("secretAsEnv", [])
        for one in entry["keyToEnv"]
    }


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_beside_pipelines_alone_every_task_brings_store_and_cache(pipeline: str, tmp_path: Path) -> None:
    for environment, pod in compiled(tmp_path, pipeline, CompileSettings(installation="standalone")):
        assert environment["AWS_ENDPOINT_URL_S3"] == "http://seaweedfs.kubeflow:9000"
        assert all(environment[name].startswith("/models/") for name in ("HF_HOME", "KUBEALIGN_CACHE"))
        store = {name: ("mlpipeline-minio-artifact", key, False) for name, key in KEYS.items()}
        assert secrets(pod) == {**store, "HF_TOKEN": ("kubealign-hub", "token", True)}
        assert [claim["mountPath"] for claim in pod["pvcMount"]] == ["/models"]


def test_in_a_profile_tasks_bring_none_of_it(tmp_path: Path) -> None:
    for environment, pod in compiled(tmp_path, "offline_alignment", CompileSettings()):
        assert "HF_HOME" not in environment and not secrets(pod) and "pvcMount" not in pod


def test_secrets_and_volumes_of_all_pods(tmp_path: Path) -> None:
    settings = CompileSettings(secrets={"TOKEN": "one/key"}, volumes={"claim": "/data"})
    for _, pod in compiled(tmp_path, "offline_alignment", settings):
        assert secrets(pod) == {"TOKEN": ("one", "key", False)}
        assert [claim["mountPath"] for claim in pod["pvcMount"]] == ["/data"]


@pytest.mark.parametrize("several_nodes", [False, True])
def test_what_a_run_file_says_takes_the_place_of_what_an_installation_has(
    several_nodes: bool, tmp_path: Path
) -> None:
    """Kubernetes refuses a variable with a value and a secret; of two volumes at one place KFP drops one."""
    train = StageResources(environment={"AWS_ACCESS_KEY_ID": "a"}, nodes=2 if several_nodes else 1)
    settings = CompileSettings(
        installation="standalone",
        environment={"HF_TOKEN": "", "AWS_REGION": "eu"},
        secrets={"HF_HOME": "mine/home"},
        volumes={"mine": "/models/"},
        stages={"train": train},
    )
    own = 0
    for environment, pod in compiled(tmp_path, "offline_alignment", settings):
        assert not environment.keys() & secrets(pod).keys()
        assert environment["HF_TOKEN"] == "" and environment["AWS_REGION"] == "eu"
        assert secrets(pod)["HF_HOME"] == ("mine", "home", False)
        assert [claim["mountPath"] for claim in pod["pvcMount"]] == ["/models/"]
        own += environment.get("AWS_ACCESS_KEY_ID") == "a"
    assert own == 1


def test_an_unknown_installation_is_refused() -> None:
    with pytest.raises(ConfigError, match="installation='kind': expected"):
        CompileSettings(installation="kind")
