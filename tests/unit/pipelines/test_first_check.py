"""Every run's first task holds all of its parameters to the stages' rules, and nothing starts before it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kfp import components, local

from kubealign_components.config import from_mapping
from kubealign_components.errors import FINAL_CODE, ConfigError
from kubealign_pipelines.checking.outside import identify
from kubealign_pipelines.checking.stages import Checked
from kubealign_pipelines.flat import Folded
from kubealign_pipelines.resources import CompileSettings
from support.compiled import compile_ir
from support.pipeline_shapes import SHAPES
from support.source_files import write_pairs

BREVITY = "kubealign_components.rewards.functions:brevity"


def compiled(folder: Path, parameters: dict[str, Any], **settings: Any) -> tuple[Path, dict[str, Any]]:
    """A compiled offline alignment, and its IR."""
    spec, _ = compile_ir(
        folder, "offline_alignment", from_mapping(CompileSettings, settings, "compile"), parameters
    )
    return folder / "pipeline.yaml", spec


@pytest.fixture
def sound(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    """Parameters with which nothing is wrong."""
    return {
        "policy": str(tiny_model),
        "sources": [{"uri": write_pairs(tmp_path / "prompts.jsonl", 60), "name": "mine"}],
        "reward_functions": [BREVITY],
        "sample_options": {"sampling": {"engine": "transformers", "max_new_tokens": 10}},
        "filter_options": {"max_prompt_len": 1024},
        "validation_fraction": 0.3,
        "train_options": {"batch_size": 2},
    }


def night(spec: dict[str, Any], parameters: dict[str, Any], folder: Path) -> str:
    """KFP's key of the import: what its cache knows of it on a night with ``parameters``."""
    code, log = run_check(spec, parameters, folder)
    assert code == 0, log
    made = {"Output": json.loads((folder / "output.json").read_text())["parameterValues"]["Output"]}
    task = spec["root"]["dag"]["tasks"]["import-prompts"]
    assert task["cachingOptions"] == {"enableCache": True}
    values = {}
    for name, one in task["inputs"]["parameters"].items():
        if "taskOutputParameter" in one:
            assert one["taskOutputParameter"] == {"producerTask": "check", "outputParameterKey": "Output"}
            values[name] = made["Output"]
        elif "componentInputParameter" in one:
            values[name] = parameters.get(one["componentInputParameter"])
    return json.dumps(values, sort_keys=True)


def run_check(spec: dict[str, Any], parameters: dict[str, Any], folder: Path) -> tuple[int, str]:
    """Exit code and log of the first task alone, run as KFP's launcher runs it with ``parameters``."""
    declared = spec["root"]["inputDefinitions"]["parameters"]
    values = {n: parameters.get(n, d.get("defaultValue")) for n, d in declared.items()}
    task = spec["root"]["dag"]["tasks"]["check"]
    given = {
        name: one["runtimeValue"]["constant"] if "runtimeValue" in one else values[name]
        for name, one in task["inputs"]["parameters"].items()
    }
    asked = {
        "inputs": {"parameterValues": given},
        "outputs": {"outputFile": str(folder / "output.json")},
    }
    container = spec["deploymentSpec"]["executors"]["exec-check"]["container"]
    arguments = [part.replace("{{$}}", json.dumps(asked)) for part in container["args"]]
    done = subprocess.run(
        [*container["command"], *arguments], capture_output=True, text=True, check=False, env=os.environ
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(autouse=True)
def the_python_of_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an image gives the compiled command ``python3``."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_other_task_comes_after_the_check(shape: str, tmp_path: Path) -> None:
    pipeline, parameters, _ = SHAPES[shape]
    spec, _ = compile_ir(tmp_path, pipeline, parameters=parameters)
    tasks = spec["root"]["dag"]["tasks"]
    assert "dependentTasks" not in tasks["check"]
    assert not tasks["check"]["cachingOptions"].get("enableCache")
    assert "retryPolicy" not in tasks["check"]
    for name, task in tasks.items():
        assert name == "check" or task["dependentTasks"], f"{name} starts beside the check"
        assert not task.get("cachingOptions", {}).get("enableCache") or _after_artifacts(task), (
            f"{name} asks no source"
        )
    asked = set(tasks["check"]["inputs"]["parameters"]) - {"pipeline", "compiled", "shape"}
    assert asked == set(spec["root"]["inputDefinitions"]["parameters"])


def _after_artifacts(task: dict[str, Any]) -> bool:
    return "parameterIterator" in task or bool(task.get("inputs", {}).get("artifacts"))


def test_a_run_file_may_leave_it_out(tmp_path: Path) -> None:
    _, spec = compiled(tmp_path, {}, check=False)
    assert "check" not in spec["root"]["dag"]["tasks"]


def test_a_run_with_two_mistakes_ends_with_both_and_starts_nothing_else(
    tmp_path: Path, sound: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    path, _ = compiled(tmp_path, {})
    pipeline = components.load_component_from_file(str(path))
    root = tmp_path / "root"
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
    with pytest.raises(RuntimeError):
        pipeline(**sound, select_strategy="bestworst", train_objective="dopo")
    told = capfd.readouterr()
    log = told.out + told.err
    assert "select_strategy='bestworst': expected one of" in log
    assert "train_objective='dopo': expected one of" in log
    assert "did you mean" in log
    assert "Executing task" in log
    assert not [line for line in log.splitlines() if "Executing task" in line and "check" not in line]


def test_a_sound_run_passes_and_is_looked_at_with_its_model_and_its_rows(
    tmp_path: Path, sound: dict[str, Any]
) -> None:
    _, spec = compiled(tmp_path, {})
    code, log = run_check(spec, sound, tmp_path)
    assert (code, "no errors" in log) == (0, True), log
    assert "Warning" not in log
    assert "Error" not in log

    source = {**sound["sources"][0], "uri": str(tmp_path / "promts.jsonl")}
    wrong = {**sound, "sources": [source], "policy": str(tmp_path), "validation_fraction": 1.5}
    code, log = run_check(spec, wrong, tmp_path)
    assert code == FINAL_CODE, "another attempt would find the same"
    assert f"did you mean {tmp_path / 'prompts.jsonl'}" in log
    assert "expected a model directory (with config.json)" in log
    assert "validation_fraction=1.5" in log


def test_what_decides_the_stages_cannot_change_after_compiling(tmp_path: Path, sound: dict[str, Any]) -> None:
    _, spec = compiled(tmp_path, {"sample_n": 0, "select_strategy": "labels"})
    given = {n: v for n, v in sound.items() if n in spec["root"]["inputDefinitions"]["parameters"]}
    code, log = run_check(spec, {**given, "select_strategy": "labels"}, tmp_path)
    assert code == 0, log
    code, log = run_check(spec, {**given, "select_strategy": "best_worst"}, tmp_path)
    assert code == FINAL_CODE
    assert "select_strategy='best_worst': expected labels or labelled" in log


def test_a_function_of_an_image_of_its_own_is_no_error_where_it_is_not(
    tmp_path: Path, sound: dict[str, Any]
) -> None:
    _, spec = compiled(tmp_path, {}, images={"sample": "registry.example/mine:1"})
    code, log = run_check(spec, {**sound, "reward_functions": ["of_my_image:reward"]}, tmp_path)
    assert code == 0, log
    assert "Warning: reward_functions[0]='of_my_image:reward'" in log


def test_volumes_of_single_stages_are_left_to_them(tmp_path: Path, sound: dict[str, Any]) -> None:
    stages = {
        "filter": {"volumes": {"models": "/only-there"}},
        "sample": {"volumes": {"models": "/only-there"}},
    }
    _, spec = compiled(tmp_path, {}, stages=stages)
    code, log = run_check(spec, {**sound, "policy": "/only-there/model"}, tmp_path)
    assert code == 0, log


def test_a_night_with_nothing_new_is_answered_by_the_cache_and_one_with_something_is_not(
    tmp_path: Path, sound: dict[str, Any]
) -> None:
    _, spec = compiled(tmp_path, {}, when_nothing_new="stop")
    first = night(spec, sound, tmp_path)
    assert night(spec, sound, tmp_path) == first
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "New?", "chosen": "Yes.", "rejected": "No."}) + "\n")
    assert night(spec, sound, tmp_path) != first, "the source has grown"


@pytest.mark.parametrize("beside", [{"check": False}, {"caching": False}])
def test_nobody_knows_that_nothing_is_new_without_check_and_cache(beside: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="when_nothing_new='stop': expected repeat, or check and caching"):
        from_mapping(CompileSettings, {"when_nothing_new": "stop", **beside}, "compile")


def test_what_lies_at_a_place_is_known_by_names_sizes_and_times(tmp_path: Path) -> None:
    def word(**values: Any) -> str:
        return identify(Checked(values=values, written=Folded(values=values, names={}, findings=())))

    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.jsonl").write_text("{}")
    place = {"sources": [{"uri": str(tmp_path / "shards")}], "work": str(tmp_path / "work"), "n": 3}
    first = word(**place)
    assert word(**{**place, "work": str(tmp_path / "other"), "n": 4}) == first, (
        "the run's own place is no input"
    )
    (tmp_path / "shards" / "b.jsonl").write_text("{}")
    second = word(**place)
    os.utime(tmp_path / "shards" / "a.jsonl", ns=(1, 1))
    assert len({first, second, word(**place)}) == 3
    gone = {"sources": [{"uri": str(tmp_path / "gone")}]}
    assert word(**gone) != word(**gone), "what cannot be looked at may be new"
