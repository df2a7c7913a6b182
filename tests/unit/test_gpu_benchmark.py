"""The program that a card is measured with, rehearsed: minutes on a card are not spent on its mistakes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu

ROOT = Path(__file__).parents[2]
ABSENT = ("datasets", "deepspeed", "kfp", "kubealign", "kubealign_pipelines", "trl", "vllm")
"""What a machine with a card need not have."""
WITHOUT = f"""
import runpy, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT!r} else super().find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.skipif(gpu.CUDA, reason="on a card make gpu runs all of it")
def test_the_rehearsal_runs_every_part_without_the_other_packages() -> None:
    program = ROOT / "tests/benchmarks/gpu.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "components"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT, str(program), "--rehearse"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("all parts ran\n")
    for name in gpu.PARTS:
        assert re.search(rf"^{name}: done in ", result.stdout, re.MULTILINE)
    assert result.stdout.count("|log-ratio| 0 nats per token, loss 0.6931472") == 2
    assert "completions one by one differ by 0 nats" in result.stdout
    saved = [float(size) for size in re.findall(r"([\d.]+) MiB of checkpoint", result.stdout)]
    assert len(saved) == 2 and min(saved) > 0


def test_a_part_that_fails_or_takes_too_long_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: gpu.Sizes) -> None:
        raise ValueError("no such kernel")

    parts = {"broken": (fail, 5), "slow": (lambda _: time.sleep(30), 1), "good": (lambda _: None, 5)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert [gpu.done(name, gpu.REHEARSAL) for name in parts] == [False, False, True]
    said = capsys.readouterr().out
    assert "broken: FAILED, ValueError: no such kernel" in said
    assert "slow: NOT FINISHED in 1 s" in said
    assert "good: done in " in said


def test_all_parts_fit_into_eight_minutes() -> None:
    assert sum(seconds for _, seconds in gpu.PARTS.values()) <= 480
