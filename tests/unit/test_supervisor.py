"""A stage's process that dies is started again in its pod; what another attempt cannot mend is not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

    def start(
        self,
        retries: int = 2,
        pause: float = 0.05,
        stdout: int | None = None,
        arguments: Sequence[str] = ("--flag", "x"),
    ) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(self.folder), *sys.path])
        command = ["-m", "kubealign_components.supervisor", "--retries", str(retries)]
        return subprocess.Popen(
            # As KFP's executor is called: an option comes first.
            [sys.executable, *command, "-m", "a_stage", *arguments, str(self.folder / "attempts")],
            env=os.environ | {"PYTHONPATH": path, "KUBEALIGN_RETRY_SECONDS": str(pause)},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, retries: int = 2, pause: float = 0.05, **started: Any) -> tuple[int, str]:
        """Exit code, and what was written."""
        process = self.start(retries, pause, **started)
        text = process.communicate(timeout=300)[1]
        return process.returncode, text

    def attempts(self) -> list[str]:
        path = self.folder / "attempts"
        return [line.split(" ", 1)[1] for line in path.read_text().splitlines()] if path.exists() else []


def ended(process: subprocess.Popen[str]) -> int:
    """The exit code of ``process``; its pipes are closed."""
    with process:
        return process.wait(20)


@pytest.mark.parametrize(
    "death", ["raise ZeroDivisionError", "sys.exit(7)", "os.kill(os.getpid(), 11)", "os._exit(1)", "memory()"]
)
def test_a_dead_stage_is_started_again_with_its_arguments(tmp_path: Path, death: str) -> None:
    stage = Stage(tmp_path, death, death, "pass")
    code, text = stage.run()
    assert code == 0, text
    assert stage.attempts() == [f"{number} ['--flag', 'x']" for number in ("first", 1, 2)]
    assert "attempt 2 of 3 failed; the next one begins in 0.1 s" in text


@pytest.mark.parametrize("code", [0, 3, FINAL_CODE])
def test_a_program_that_is_no_stage_says_itself_how_it_ended(tmp_path: Path, code: int) -> None:
    """So does what the pods of a TrainJob run."""
    ended_with, text = Stage(tmp_path, f"sys.exit({code})").run(0)
    assert ended_with == code
    assert "Unexpected" not in text


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
        "errors.NotFinite('log-probability nan')",
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
    assert watch.killed() == (kills == 2) and expected in watch.text()


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
    assert ended(process) == 143 and len(stage.attempts()) == 1


def test_sigterm_ends_a_pause(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "raise ZeroDivisionError")
    process = stage.start(pause=60)
    assert process.stderr is not None
    while "next one begins" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ended(process) == 143 and len(stage.attempts()) == 1


def test_ctrl_c_is_not_tried_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "print('ready', file=sys.stderr)\ntime.sleep(60)")
    process = stage.start()
    assert process.stderr is not None and process.stderr.readline() == "ready\n"
    child = int((tmp_path / "attempts").read_text().split()[0])
    for pid in (process.pid, child):
        os.kill(pid, signal.SIGINT)
    assert ended(process) == 130 and len(stage.attempts()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child of its parent's death")
def test_a_stage_does_not_outlive_its_supervisor(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "print('ready', file=sys.stderr)\ntime.sleep(60)")
    process = stage.start()
    assert process.stderr is not None and process.stderr.readline() == "ready\n"
    child = int((tmp_path / "attempts").read_text().split()[0])
    with process:
        process.kill()
    assert is_gone(child)


def is_gone(process: int) -> bool:
    """Whether it ends in time; one that has ended and that nobody waits for counts."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        status = Path(f"/proc/{process}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_nor_whoever_started_it_and_read_what_it_wrote(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "print('ready', file=sys.stderr)\ntime.sleep(60)")
    process = stage.start(stdout=subprocess.PIPE)
    assert process.stderr is not None and process.stderr.readline() == "ready\n"
    assert process.stdout is not None
    process.stdout.close()
    assert ended(process) == 143 and len(stage.attempts()) == 1


@pytest.mark.parametrize(
    ("act", "kind", "words"),
    [
        ("open('/no/such/file')", "StoreError", "'/no/such/file': No such file or directory; see that"),
        ("open('/proc/self/mem', 'rb').read()", "StoreError", "sample: Input/output error; look after"),
        (
            "raise OSError(28, 'full', 'shard.parquet')",
            "StoreError",
            "'shard.parquet': No space left on device; free",
        ),
        ("raise OSError(30, 'x', '/data/out')", "StoreError", "'/data/out': Read-only file system; change"),
        ("raise MemoryError", "EngineError", "sample: out of memory"),
        ("[].pop()", "Unexpected", "sample: IndexError: pop from empty list; the traceback in the log"),
        ("int('9' * 5000)", "Unexpected", "sample: ValueError: Exceeds the limit"),
        ("def f(): f()\nf()", "Unexpected", "sample: RecursionError: maximum recursion depth"),
        ("raise UnicodeError", "Unexpected", "sample: UnicodeError: no reason given"),
        ("sys.exit(0)", "Unexpected", "sample: something that it runs called sys.exit(0)"),
        ("sys.exit('enough')", "Unexpected", "called sys.exit('enough')"),
        ("raise TimeoutError('no answer')", "Unexpected", "sample: TimeoutError: no answer"),
    ],
)
def test_whatever_reaches_the_end_is_named_with_stage_file_and_remedy(
    tmp_path: Path, act: str, kind: str, words: str
) -> None:
    code, text = Stage(tmp_path, act).run(0, arguments=("--function_to_execute", "sample"))
    assert code == 1
    *_, last, supervisors = text.splitlines()
    assert last.startswith(f"kubealign_components.errors.{kind}: sample: ") and words in last
    assert "Traceback" in text or "SystemExit" in text
    assert supervisors == "supervisor: the stage's process ended with exit code 1, as said above"


def test_no_secret_and_no_control_character_gets_into_a_pod_s_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hush-hush-hush")
    below = "import os; print('below', os.environ['HF_TOKEN'], flush=True)"
    stage = Stage(
        tmp_path,
        "print('stdout', os.environ['HF_TOKEN'], flush=True)\n"
        "import subprocess\n"
        f"subprocess.run([sys.executable, '-c', {below!r}])\n"
        "os.write(2, 's3://AKIA:key@bucket é\\n10%\\r20%\\r'.encode())\n"
        "os.write(2, b'\\x1b]0;title\\x07 \\x1b[31mred\\x1b[0m')\n"
        "raise ValueError('s3://a:' + os.environ['HF_TOKEN'] + '@b')",
    )
    process = stage.start(0, stdout=subprocess.PIPE)
    stdout, stderr = process.communicate(timeout=300)
    assert stdout.split("\n") == ["stdout …", "below …", ""]
    assert "s3://…@bucket é\n" in stderr
    assert "hush" not in stderr and "\x1b" not in stderr and "\\x1b]0;title\\x07 red" in stderr
    assert "Unexpected: the stage: ValueError: s3://…@b" in stderr


def test_what_is_written_is_passed_on_whole(tmp_path: Path) -> None:
    stage = Stage(
        tmp_path, "for n in range(30000): print(f'line {n} ' + 'x' * (n % 90))\nprint('end', end='')"
    )
    process = stage.start(0, stdout=subprocess.PIPE)
    stdout, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert stdout == "".join(f"line {n} {'x' * (n % 90)}\n" for n in range(30000)) + "end"


def test_one_that_lives_on_does_not_hold_up_the_end(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "import subprocess\nsubprocess.Popen(['sleep', '30'])")
    process = stage.start(0)
    began = time.monotonic()
    assert ended(process) == 0
    assert time.monotonic() - began < 15


def test_the_executor_of_a_component_is_what_is_supervised() -> None:
    command = ["sh", "-ec", "_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main   --a b", "def f(): pass"]
    made = supervised(command, 3)
    assert (
        "python3 -m kubealign_components.supervisor --retries 3 -m kfp.dsl.executor_main   --a b" in made[2]
    )
    assert [made[0], made[1], made[3]] == [command[0], command[1], command[3]]
