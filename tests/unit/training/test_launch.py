"""How a job reaches its processes, which code it can name, and how their errors come back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from kubealign_components.errors import (
    FINAL_CODE,
    ConfigError,
    DriftError,
    EngineError,
    KubeAlignError,
    StoreError,
)
from kubealign_components.train.config import TrainConfig
from kubealign_components.training.__main__ import PROGRAMS
from kubealign_components.training.launch import ERROR_FILE, JOB_FILE, Where, launch, pinned, run_somewhere
from kubealign_components.training.program import Job, Program, Run, Trained, run_process, run_program


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of the program."""

    numbers: tuple[int, ...] = ()
    fail: str = ""


def train(run: Run[Config]) -> Trained | None:
    """A training program that adds numbers up."""
    if run.config.fail == "config":
        raise ConfigError("lora_r", 7, "an even number")
    if run.config.fail == "drift":
        raise DriftError("too far")
    if run.config.fail == "engine":
        raise EngineError("no device")
    if run.config.fail == "file":
        Path("/no/such/rows").read_bytes()
    if run.config.fail:
        raise ZeroDivisionError("division by zero")
    Path(run.job.output).write_text(str(sum(run.config.numbers)))
    return None


PROGRAM = Program(stage="adding", config=Config, train=train)


def here(uri: str) -> None:
    """A launcher: this process is the only one."""
    if run_process(uri, {"adding": lambda: PROGRAM}):
        raise EngineError("it failed")


def job(target: object = "t", **config: Any) -> dict[str, Any]:
    return asdict(Job(stage="adding", config=config, inputs={}, output=str(target), provenance={}))


def run(place: Path, request: Mapping[str, Any], launcher: Callable[[str], None] = here) -> None:
    def never() -> None:
        raise AssertionError("there is a launcher")

    where = Where(nodes=2, processes=1, sharded=True)
    run_somewhere(never, request, str(place), where=where, launcher=launcher)


def test_a_job_finds_its_program_and_nothing_else(tmp_path: Path) -> None:
    run(tmp_path / "work", job(tmp_path / "sum", numbers=[1, 2, 4]))
    assert (tmp_path / "sum").read_text() == "7"


def test_one_process_on_this_machine_writes_no_job(tmp_path: Path) -> None:
    request = Job(**job(tmp_path / "sum", numbers=[1, 2]))
    where = Where(nodes=1, processes=1, sharded=False)
    place = str(tmp_path / "work")
    run_somewhere(lambda: run_program(PROGRAM, request), asdict(request), place, where=where, launcher=None)
    assert (tmp_path / "sum").read_text() == "3" and not (tmp_path / "work").exists()


def test_the_same_job_has_the_same_uri_and_another_one_another(tmp_path: Path) -> None:
    uris: list[str] = []
    request = job(numbers=[1])
    for each in (request, dict(reversed(request.items())), job(numbers=[2])):
        run(tmp_path, each, launcher=uris.append)
    assert uris[0] == uris[1] != uris[2]
    assert [json.loads(Path(uri).read_text())["config"]["numbers"] for uri in uris] == [[1], [1], [2]]


@pytest.mark.parametrize(
    "body",
    [
        {"program": "os:system", "job": {"command": "touch pwned"}},
        job() | {"stage": "os:system"},
        job() | {"stage": "kubealign_components.train.program:PROGRAM"},
        [1, 2],
    ],
)
def test_a_job_names_a_training_stage_and_no_other_code(
    tmp_path: Path, body: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / JOB_FILE).write_text(json.dumps(body))
    assert run_process(str(tmp_path / JOB_FILE), PROGRAMS) == FINAL_CODE
    assert not (tmp_path / "pwned").exists()
    assert json.loads((tmp_path / ERROR_FILE).read_text())["kind"] == "ConfigError"


def test_every_training_stage_has_its_program() -> None:
    assert {name: program().stage for name, program in PROGRAMS.items()} == {n: n for n in PROGRAMS}


@pytest.mark.parametrize(
    ("fail", "kind", "message"),
    [("config", ConfigError, "lora_r=7: expected an even number"), ("drift", DriftError, "too far")],
)
def test_an_error_of_a_process_is_the_launchers(
    tmp_path: Path, fail: str, kind: type[KubeAlignError], message: str
) -> None:
    with pytest.raises(kind) as error:
        run(tmp_path, job(fail=fail))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("fails", "kind"), [(("drift", "config"), DriftError), (("engine", "config"), ConfigError)]
)
def test_the_first_error_counts_unless_another_attempt_would_mend_it_alone(
    tmp_path: Path, fails: tuple[str, str], kind: type[KubeAlignError]
) -> None:
    place = tmp_path / "x"

    def twice(uri: str) -> None:
        for fail in fails:
            (place / JOB_FILE).write_text(json.dumps(job(fail=fail)))
            assert run_process(uri, {"adding": lambda: PROGRAM})
        raise EngineError("both failed")

    def without_a_word(uri: str) -> None:
        raise EngineError("a node was lost")

    with pytest.raises(kind):
        launch(job(), str(place), twice)
    assert (place / ERROR_FILE).exists()
    with pytest.raises(EngineError, match="a node was lost"):
        launch(job(), str(place), without_a_word)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"kind": "SystemExit", "arguments": []}', '{"kind": "ConfigError", "arguments": 1}'],
)
def test_an_error_file_of_another_form_is_named(tmp_path: Path, text: str) -> None:
    def launcher(uri: str) -> None:
        (tmp_path / ERROR_FILE).write_text(text)
        raise EngineError("it failed")

    with pytest.raises(EngineError, match=rf"{ERROR_FILE} cannot be read"):
        launch(job(), str(tmp_path), launcher)


def test_an_error_that_nobody_foresaw_is_named_and_its_traceback_is_in_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(
        EngineError, match="training process 3: ZeroDivisionError: division by zero; the trace"
    ):
        run(tmp_path, job(fail="bug"))
    assert "Traceback (most recent call last)" in capfd.readouterr().err


def test_a_file_that_the_system_refuses_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match="training process 0: '/no/such/rows': No such file or directory; see"
    ):
        run(tmp_path, job(fail="file"))


@pytest.mark.parametrize("order", [("bug", "engine"), ("engine", "bug")])
def test_what_nobody_foresaw_hides_no_other_error(order: tuple[str, str], tmp_path: Path) -> None:
    """A process whose neighbour has gone raises what the library that connects them raises."""
    folder = tmp_path / "x"

    def launcher(uri: str) -> None:
        for fail in order:
            (folder / JOB_FILE).write_text(json.dumps(job(fail=fail)))
            run_process(uri, {"adding": lambda: PROGRAM})
        raise EngineError("both failed")

    with pytest.raises(EngineError, match=r"^no device$"):
        launch(job(), str(folder), launcher)


def test_a_hub_policy_is_pinned_to_its_commit(tmp_path: Path) -> None:
    config = TrainConfig(policy="org/name")
    assert pinned(config, tmp_path / "models--org--name" / "snapshots" / "abc123").revision == "abc123"
    assert pinned(config, tmp_path / "name") == config
