"""A stage's process that dies is started again in its pod; what another attempt cannot mend is not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kubealign_components.errors import FINAL_CODE
from kubealign_components.memory import MemoryWatch
from kubealign_components.supervisor import supervised

STAGE = """
import os, signal, sys, time
from pathlib import Path
from kubealign_components import errors
attempts = Path(sys.argv[3])
number = len(attempts.read_text().splitlines()) if attempts.exists() else 0
with attempts.open("a") as file:
    file.write(f"{os.getpid()} {os.environ.get('KUBEALIGN_RESTART', 'first')} {sys.argv[1:3]}\\n")
def memory():
    held = bytearray(80 << 20)
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Stage:
    """A module that does in each attempt what the next of ``acts`` says; the last one again and again."""

    def __init__(self, folder: Path, *acts: str) -> None:
        self.folder = folder
        (folder / "a_stage.py").write_text(
            f"{STAGE}\nacts = {acts!r}\nexec(acts[min(number, len(acts) - 1)])\n"
        )

    def start(self, retries: int = 2, pause: float = 0.05) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(self.folder), *sys.path])
        command = ["-m", "kubealign_components.supervisor", "--retries", str(retries)]
        return subprocess.Popen(
            # As KFP's executor is called: an option comes first.
            [sys.executable, *command, "-m", "a_stage", "--flag", "x", str(self.folder / "attempts")],
            env=os.environ | {"PYTHONPATH": path, "KUBEALIGN_RETRY_SECONDS": str(pause)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, retries: int = 2, pause: float = 0.05) -> tuple[int, str]:
        """Exit code, and what was written."""
        process = self.start(retries, pause)
        text = process.communicate(timeout=60)[1]
        return process.returncode, text

    def attempts(self) -> list[str]:
        path = self.folder / "attempts"
        return [line.split(" ", 1)[1] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    "death", ["raise ZeroDivisionError", "sys.exit(7)", "os.kill(os.getpid(), 11)", "os._exit(1)", "memory()"]
)
def test_a_dead_stage_is_started_again_with_its_arguments(tmp_path: Path, death: str) -> None:
    stage = Stage(tmp_path, death, death, "pass")
    code, text = stage.run()
    assert code == 0, text
    assert stage.attempts() == [f"{number} ['--flag', 'x']" for number in ("first", 1, 2)]
    assert "attempt 2 of 3 failed; the next one begins in 0.1 s" in text


def test_after_the_last_retry_its_end_is_the_end(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "raise errors.EngineError('no GPU')")
    code, text = stage.run(retries=1)
    assert code == 1 and len(stage.attempts()) == 2
    assert text.count("EngineError: no GPU") == 2 and "next one" not in text.rsplit("EngineError", 1)[1]


@pytest.mark.parametrize(
    "error",
    [
        "errors.ConfigError('beta', -1, 'a positive number')",
        "errors.CorruptDataset('3 bytes too few')",
        "errors.SchemaMismatch('another kind')",
        "errors.DriftError('too far')",
        "errors.GateError('accuracy 0.3')",
    ],
)
def test_what_comes_again_is_not_tried_again(tmp_path: Path, error: str) -> None:
    stage = Stage(tmp_path, f"raise {error}")
    code, text = stage.run()
    assert code == FINAL_CODE and len(stage.attempts()) == 1
    assert re.search(r"kubealign_components\.errors\.\w+: ", text.splitlines()[-1])


def test_what_killed_it_is_said_with_what_it_had(tmp_path: Path) -> None:
    code, text = Stage(tmp_path, "memory()").run(retries=0)
    assert code == 137
    told = re.search(r"was killed \(SIGKILL\); it had up to (\d+) MiB\. .*memory", text)
    assert told and int(told[1]) >= 80, text


@pytest.mark.parametrize(
    ("kills", "expected"),
    [
        (2, "The kernel killed it for memory (its limit is 400 MiB, its peak was 399 MiB)"),
        (1, "That most often is for memory"),
    ],
)
def test_the_control_group_says_whether_memory_killed(tmp_path: Path, kills: int, expected: str) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n")
    (tmp_path / "memory.max").write_text(f"{400 << 20}\n")
    (tmp_path / "memory.peak").write_text(f"{399 << 20}\n")
    watch = MemoryWatch(tmp_path)
    events.write_text(f"low 0\nhigh 0\nmax 12\noom 1\noom_kill {kills}\noom_group_kill 0\n")
    assert watch.killed() == (kills == 2) and expected in watch.told()


def until_started(stage: Stage) -> None:
    end = time.monotonic() + 30
    while not stage.attempts() and time.monotonic() < end:
        time.sleep(0.02)


def test_sigterm_reaches_the_stage_and_nothing_begins_after_it(tmp_path: Path) -> None:
    orderly = "signal.signal(15, lambda *_: sys.exit(143))\nprint('ready', file=sys.stderr)\ntime.sleep(60)"
    stage = Stage(tmp_path, orderly)
    process = stage.start()
    assert process.stderr is not None and process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143 and len(stage.attempts()) == 1


def test_sigterm_ends_a_pause(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "raise ZeroDivisionError")
    process = stage.start(pause=60)
    assert process.stderr is not None
    while "next one begins" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143 and len(stage.attempts()) == 1


def test_ctrl_c_is_not_tried_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "print('ready', file=sys.stderr)\ntime.sleep(60)")
    process = stage.start()
    assert process.stderr is not None and process.stderr.readline() == "ready\n"
    child = int((tmp_path / "attempts").read_text().split()[0])
    for pid in (process.pid, child):
        os.kill(pid, signal.SIGINT)
    assert process.wait(20) == 130 and len(stage.attempts()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child of its parent's death")
def test_a_stage_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "print('ready', file=sys.stderr)\ntime.sleep(60)")
    process = stage.start()
    assert process.stderr is not None and process.stderr.readline() == "ready\n"
    process.kill()
    assert process.stderr.read() == ""  # the stage held the other end


def test_the_executor_of_a_component_is_what_is_supervised() -> None:
    command = ["sh", "-ec", "_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main   --a b", "def f(): pass"]
    made = supervised(command, 3)
    assert (
        "python3 -m kubealign_components.supervisor --retries 3 -m kfp.dsl.executor_main   --a b" in made[2]
    )
    assert [made[0], made[1], made[3]] == [command[0], command[1], command[3]]
