"""How a job reaches its processes, and how their errors come back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kubealign_components.errors import FINAL_CODE, ConfigError, DriftError, EngineError, KubeAlignError
from kubealign_components.train.config import TrainConfig
from kubealign_components.training.launch import ERROR_FILE, launch, pinned, run_process, run_program

PROGRAM = "unit.training.test_launch:program"


def program(*, numbers: list[int], target: str, fail: str = "") -> None:
    """A training program."""
    if fail == "config":
        raise ConfigError("lora_r", 7, "an even number")
    if fail == "drift":
        raise DriftError("too far")
    if fail:
        raise ZeroDivisionError
    Path(target).write_text(str(sum(numbers)))


def here(job: str) -> None:
    """A launcher: this process is the only one."""
    if run_process(job):
        raise EngineError("it failed")


def run(place: Path, job: Mapping[str, Any], launcher: Any = here) -> None:
    run_program(PROGRAM, job, str(place), nodes=2, processes=1, sharded=True, launcher=launcher)


def test_a_job_finds_its_program_and_nothing_else(tmp_path: Path) -> None:
    run(tmp_path / "work", {"numbers": [1, 2, 4], "target": str(tmp_path / "sum")})
    assert (tmp_path / "sum").read_text() == "7"


def test_the_same_job_has_the_same_uri_and_another_one_another(tmp_path: Path) -> None:
    uris: list[str] = []
    job = {"numbers": [1], "target": "t"}
    for each in (job, dict(reversed(job.items())), job | {"numbers": [2]}):
        run(tmp_path, each, launcher=uris.append)
    assert uris[0] == uris[1] != uris[2]
    assert [json.loads(Path(uri).read_text())["job"]["numbers"] for uri in uris] == [[1], [1], [2]]


@pytest.mark.parametrize(
    ("fail", "kind", "message"),
    [("config", ConfigError, "lora_r=7: expected an even number"), ("drift", DriftError, "too far")],
)
def test_an_error_of_a_process_is_the_launchers(
    tmp_path: Path, fail: str, kind: type[KubeAlignError], message: str
) -> None:
    with pytest.raises(kind) as error:
        run(tmp_path, {"numbers": [], "target": "t", "fail": fail})
    assert str(error.value) == message


def test_the_first_error_counts_and_one_of_an_attempt_before_does_not(tmp_path: Path) -> None:
    job = {"numbers": [], "target": "t"}

    def twice(uri: str) -> None:
        for fail in ("drift", "config"):
            (tmp_path / "x" / "job.json").write_text(
                json.dumps({"program": PROGRAM, "job": job | {"fail": fail}})
            )
            assert run_process(uri) == FINAL_CODE
        raise EngineError("both failed")

    def without_a_word(uri: str) -> None:
        raise EngineError("a node was lost")

    with pytest.raises(DriftError):
        launch(PROGRAM, job, str(tmp_path / "x"), twice)
    assert (tmp_path / "x" / ERROR_FILE).exists()
    with pytest.raises(EngineError, match="a node was lost"):
        launch(PROGRAM, job, str(tmp_path / "x"), without_a_word)


def test_a_bug_is_not_reported_as_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, {"numbers": [], "target": "t", "fail": "bug"})
    assert not list(tmp_path.rglob(ERROR_FILE))


def test_a_hub_policy_is_pinned_to_its_commit(tmp_path: Path) -> None:
    config = TrainConfig(policy="org/name")
    assert pinned(config, tmp_path / "models--org--name" / "snapshots" / "abc123").revision == "abc123"
    assert pinned(config, tmp_path / "name") == config
