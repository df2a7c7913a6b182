"""The compiled pipeline in its images, through kfp's DockerRunner: whole, and when a container fails."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubealign import LocalSettings, RunFile, quickstart, run_local
from kubealign.errors import RunFailed
from kubealign.local.docker import LABEL
from kubealign_components import images
from kubealign_components.data.dataset import Dataset
from kubealign_pipelines.resources import CompileSettings

NO_NETWORK = LocalSettings(runner="docker", container={"network_mode": "none"})


@pytest.fixture(scope="module")
def policy(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 where others than its owner can read it, as a volume of a cluster has it."""
    copy = shutil.copytree(smollm2, tmp_path_factory.mktemp("models") / "smollm2")
    for path in copy.iterdir():
        path.chmod(0o644)
    return copy


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real prompts, and beside them a reward function of one's own."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "rewards.py").write_text("def near(item, target): return -abs(len(item.text) - target)\n")
    path = shutil.copy(quickstart.preferences() / "alpaca_en_demo.json", folder / "alpaca.json")
    path.chmod(0o644)
    return path


def parameters(policy: Path, source: Path) -> dict[str, Any]:
    return {
        "policy": str(policy),
        "sources": [{"name": "alpaca", "uri": str(source), "max_rows": 16}],
        "reward_functions": [{"function": f"{source.parent}/rewards.py:near", "settings": {"target": 80}}],
        "validation_fraction": 0.4,
        "filter_max_seq_len": 512,
        "filter_max_prompt_len": 120,
        "sample_engine": "vllm",
        "sample_n": 2,
        "sample_max_new_tokens": 12,
        "sample_options": {"sampling": {"max_model_len": 256, "dtype": "float32"}},
        "select_strategy": "best_worst",
        "train_objective": "dpo",
        "train_options": {"batch_size": 4, "max_steps": 2, "micro_batch_tokens": 2048},
        "evaluate_max_prompts": 3,
    }


def left_in(engine: Any) -> set[str]:
    """Containers and volumes of the engine."""
    return {
        each.id for each in (*engine.containers.list(all=True, ignore_removed=True), *engine.volumes.list())
    }


def test_offline_alignment_runs_whole(
    built: dict[str, str], engine: Any, policy: Path, source: Path, tmp_path: Path
) -> None:
    before = left_in(engine)
    # So little is computed that a second thread would only wait for its core.
    settings = CompileSettings(images=built, environment={"OMP_NUM_THREADS": "1"})
    run = RunFile(parameters=parameters(policy, source), compile=settings, local=NO_NETWORK)
    results = run_local(run, output=tmp_path, name="whole")
    assert [row.stage for row in results.stages][-2:] == ["train", "evaluate"]
    assert results.evaluation["prompts"] == 3
    assert results.model is not None
    made = [results.model, *(path for path in results.model.rglob("*") if path.is_file())]
    assert {path.stat().st_uid for path in made} == {os.getuid() or images.USER}
    for output in results.outputs_of("system.Dataset"):
        assert Dataset.open(str(output.path)).rows > 0
    assert left_in(engine) == before


def test_a_container_that_fails_is_a_task_that_failed(
    base_image: str, policy: Path, source: Path, tmp_path: Path
) -> None:
    """kfp's own runner can take one for a success: the base image has no kfp, and exits at once."""
    run = RunFile(
        parameters=parameters(policy, source),
        compile=CompileSettings(images={"data": base_image}),
        local=NO_NETWORK,
    )
    for attempt in range(8):
        with pytest.raises(RunFailed, match=r"import.prompts failed: .*(kfp|python3)"):
            run_local(run, output=tmp_path, name=f"failing-{attempt}")


@contextlib.contextmanager
def image_of(command: str, engine: Any, data: str) -> Iterator[str]:
    """The image ``data``, in which every stage is ``command`` and nothing else."""
    program = "/opt/kubealign/bin/python3"
    told = f"rm {program} && printf '#!/bin/sh\\nexec {command}\\n' > {program} && chmod 755 {program}"
    recipe = f"FROM {data}\nUSER 0\nRUN {told}\nUSER {images.USER}\n"
    image, _ = engine.images.build(fileobj=io.BytesIO(recipe.encode()), tag="kubealign-test:other", rm=True)
    try:
        yield "kubealign-test:other"
    finally:
        engine.images.remove(image.id, force=True)


def test_a_container_that_makes_nothing_is_found_out(
    engine: Any, built: dict[str, str], policy: Path, source: Path, tmp_path: Path
) -> None:
    with image_of("true", engine, built["data"]) as image:
        run = RunFile(
            parameters=parameters(policy, source),
            compile=CompileSettings(images={"data": image}),
            local=NO_NETWORK,
        )
        with pytest.raises(RunFailed, match=r"import.prompts"):
            run_local(run, output=tmp_path, name="idle")


def test_no_container_outlives_its_run(
    engine: Any, built: dict[str, str], policy: Path, source: Path, tmp_path: Path
) -> None:
    """One that was told to stop ends with its containers, also those that do not hear; those of one that was
    killed end when it is begun again."""
    command = [sys.executable, "-m", "kubealign.cli.main", "run", "-f", str(tmp_path / "run.yaml")]
    command += ["-o", str(tmp_path), "--name", "busy"]

    def begun(before: set[str]) -> tuple[subprocess.Popen[bytes], set[str]]:
        """A run that has a container, and its containers."""
        run, end = subprocess.Popen(command, stdout=subprocess.DEVNULL), time.monotonic() + 120
        while not (own := containers() - before) and run.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        assert own and run.poll() is None
        return run, own

    def containers() -> set[str]:
        listed = engine.containers.list(
            all=True, filters={"label": f"{LABEL}={tmp_path}/runs/busy"}, ignore_removed=True
        )
        return {container.id for container in listed}

    with image_of("sleep 600", engine, built["data"]) as image:
        written = {
            "pipeline": "offline_alignment",
            "parameters": parameters(policy, source),
            "compile": {"images": {"data": image}},
            "local": {"runner": "docker", "container": NO_NETWORK.container},
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(written))
        killed, left = begun(set())
        killed.kill()
        killed.wait()
        assert containers() == left
        stopped, own = begun(left)
        assert containers() == own
        stopped.terminate()
        assert stopped.wait(timeout=30) == 128 + signal.SIGTERM
        assert containers() == set()
