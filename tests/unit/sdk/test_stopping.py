"""A run that is told to stop ends in time, whatever it is at, and leaves nobody behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kubealign.local import stopping

RUN = """
import os, signal, subprocess, sys, time
from unittest.mock import Mock
from kubealign.local import stopping

stopping.STAGE_SECONDS, stopping.RUN_SECONDS = 0.5, 1.5
elsewhere = lambda number: print("elsewhere:", int(number), flush=True)
{before}
stop = stopping.Stopping(Mock(), lambda text: print(text, flush=True), elsewhere)
with stop.handled():
    {body}
print("wrote its results", flush=True)
sys.exit(128 + stop.signal)
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
BEFORE = f"deaf = [sys.executable, '-c', {DEAF!r}]"
STAGE = """child = subprocess.Popen(deaf, stdout=subprocess.PIPE)
    child.stdout.readline()
    print("runs", child.pid, flush=True)
    child.wait()"""
ITSELF = """print("runs", 0, flush=True)
    while True:
        time.sleep(0.1)"""
SHELL = """shell = ["sh", "-c", '"$@"; true', "sh", *deaf]
    child = subprocess.Popen(shell, stdout=subprocess.PIPE)
    child.stdout.readline()
    print("runs", *stopping.descendants(child.pid), flush=True)
    child.wait()
    while True:
        time.sleep(0.1)"""
FULL = """child = subprocess.Popen(deaf, stdout=subprocess.PIPE)
    child.stdout.readline()
    print("runs", child.pid, flush=True)
    while True:
        subprocess.run(deaf, stdout=subprocess.DEVNULL)"""


def ended(body: str, *, signals: int = 1) -> tuple[str, int, float]:
    """Output, exit code and seconds from the first of ``signals`` of a run that is at ``body``."""
    words = [sys.executable, "-c", RUN.format(before=BEFORE, body=body)]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    child = int(run.stdout.readline().split()[1])
    began = time.monotonic()
    for _ in range(signals):
        run.send_signal(signal.SIGINT)
        time.sleep(0.2)
    said, _ = run.communicate(timeout=30)
    seconds = time.monotonic() - began
    assert not child or is_dead(child)
    return said, run.returncode, seconds


def is_dead(process: int) -> bool:
    """Whether it has gone, or waits as a zombie for who adopted it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_stage_that_does_not_hear_is_killed_and_the_run_ends_as_its_own() -> None:
    said, code, _ = ended(STAGE)
    assert code == 130
    assert "Stopping:" in said and "wrote its results" in said


@pytest.mark.parametrize("body", [ITSELF, FULL], ids=["itself", "starts others"])
def test_a_run_that_goes_on_by_itself_is_ended(body: str) -> None:
    said, code, seconds = ended(body)
    assert code == 130
    assert "Killed: the run had not ended" in said and "wrote its results" not in said
    assert said.index("elsewhere: 15") < said.index("elsewhere: 9") < said.index("Killed:")
    assert seconds < 10


def test_what_a_dead_shell_leaves_is_ended_with_the_run() -> None:
    """A terminal's Ctrl-C reaches the shell before a stage as well, which dies of it."""
    said, code, _ = ended(SHELL)
    assert code == 130
    assert "Killed: the run had not ended" in said


def test_a_second_signal_kills_at_once() -> None:
    said, code, seconds = ended(STAGE, signals=2)
    assert code == 130
    assert "Killed." in said and "wrote its results" not in said
    assert seconds < 5


def test_all_that_is_waited_for_is_less_than_ten_seconds() -> None:
    assert stopping.STAGE_SECONDS + 2 <= stopping.RUN_SECONDS < 10
