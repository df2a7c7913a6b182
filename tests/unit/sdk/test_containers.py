"""What a container of a local run is given of this machine, and what is refused."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from kubealign.local.docker import LABEL, named, remove_left
from kubealign.local.runner import run_checked
from kubealign.local.runs import LOCK
from kubealign.runfile import LocalSettings, RunFile
from kubealign_components.engines.reward_functions import LoadedFunction, RewardFunctionSpec
from kubealign_components.engines.reward_input import RewardInput
from kubealign_components.errors import ConfigError


def test_files_and_folders_in_parameters_are_found_wherever_they_stand(tmp_path: Path) -> None:
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    model.mkdir()
    rows.touch()
    parameters = {
        "policy": str(model),
        "sources": [{"name": "rows", "uri": f"file://{rows}", "columns": {"prompt": "question"}}],
        "options": {"seed": 1, "template": "a\0b", "long": "x" * 5000, "root": "/", "here": "."},
        "bucket": "gs://bucket/rows.jsonl",
        "hub": "HuggingFaceTB/SmolLM2-135M-Instruct",
    }
    assert named(parameters) == [(str(model), model), (str(rows), rows)]


def test_relative_paths_lie_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert named({"uri": "data"}) == [("/tmp/data", tmp_path / "data")]
    with pytest.raises(ConfigError, match=r"'\.\./.*expected an absolute path"):
        named({"uri": f"../{tmp_path.name}/data"})


def test_functions_of_files_are_put_where_containers_see_them(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-engine-here")
    code, rows = tmp_path / "rewards.py", tmp_path / "rows.jsonl"
    code.write_text("def short(item): return -len(item.text)\n")
    rows.write_text('{"prompt": "Hi"}\n')
    run = RunFile(
        parameters={
            "policy": str(tiny_model),
            "sources": [{"uri": str(rows)}],
            "reward_functions": [f"{code}:short"],
        },
        local=LocalSettings(runner="docker"),
    )
    with pytest.raises(ConfigError, match="a Docker Engine that answers"):
        run_checked(run, output=tmp_path / "runs")
    [bundle] = (tmp_path / "runs/work/code").iterdir()
    code.unlink()
    found = LoadedFunction(RewardFunctionSpec(function="rewards.py:short", source=str(bundle)))
    assert found(RewardInput(messages=[], completion=[], text="abc")) == -3.0
    found.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"runner": "podman"}, "runner='podman'", id="unknown runner"),
        pytest.param({"container": {"user": "1"}}, "runner: docker beside it", id="container without docker"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LocalSettings(**settings)
    assert RunFile(local=LocalSettings(runner="docker")).for_local_run().local.runner == "docker"


class Left:
    """A container that the engine still has."""

    def __init__(self, run: Path) -> None:
        self.labels = {LABEL: str(run)}
        self.removed = False

    def remove(self, **how: bool) -> None:
        self.removed = True


class Engine:
    """What is asked of a Docker Engine, which lists ``left``."""

    def __init__(self, *left: Left) -> None:
        self.containers = self
        self.left = left

    def list(self, **asked: object) -> list[Left]:
        return list(self.left)


def test_only_containers_of_runs_that_have_certainly_ended_are_removed(tmp_path: Path) -> None:
    """One Docker Engine has containers of several users, into whose folders the others cannot look."""
    names = ("own", "dead", "running", "gone", "n" * 300)
    own, dead, running, gone, hidden = (Left(tmp_path / name) for name in names)
    for name in names[1:3]:
        (tmp_path / name).mkdir()
        (tmp_path / name / LOCK).touch()
    with (tmp_path / "running" / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="too long"):
            (tmp_path / names[-1] / LOCK).is_file()
        remove_left(Engine(own, dead, running, gone, hidden), tmp_path / "own")
    assert [left.removed for left in (own, dead, running, gone, hidden)] == [True, True, False, False, False]
