"""Whole runs that are killed, stopped and fail: what they leave, and that they go on to the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from kubealign.local.stopping import descendants
from support.small_run import small_run

KILLS, KILLING = 10, 80.0
"""How often a run is ended at a random moment, and the seconds after which that is enough."""
LIFE = 0.12
"""Of the time of a whole run what one has on average until it is ended: some end at once, some
in training."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """``kubealign run`` under the name ``x``, in a process group of its own."""
    command = [sys.executable, "-m", "kubealign.cli.main", "run", "-f", str(folder / "run.yaml")]
    return subprocess.Popen(
        [*command, "-o", str(folder / "out"), "--name", "x", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def made(folder: Path) -> dict[str, str]:
    """Digests of what a run made, by the names in its folder: rows and weights."""
    digests: dict[str, str] = {}
    for manifest in sorted((folder / "out" / "runs" / "x").glob("*/manifest.json")):
        name, read = manifest.parent.name, json.loads(manifest.read_text())
        weights = manifest.with_name("model.safetensors")
        digests[name] = read["fingerprint"]
        if weights.exists():
            digests[f"{name} weights"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        else:
            digests |= {f"{name} rows {i}": shard["sha256"] for i, shard in enumerate(read["shards"])}
    return digests


def two_folders(tiny_model: Path, base: Path, **changes: object) -> tuple[Path, Path]:
    """Two folders below ``base`` with the same run in them."""
    rows = [{"prompt": f"Question {i}, please?"} for i in range(24)]
    options = {"batch_size": 4, "max_steps": 6, "save_every": 2}
    parameters = small_run(tiny_model, base / "prompts.jsonl", rows, train_options=options, **changes)
    written = yaml.safe_dump({"pipeline": "offline_alignment", "parameters": parameters})
    both = (base / "undisturbed", base / "killed")
    for folder in both:
        folder.mkdir()
        (folder / "run.yaml").write_text(written)
    return both


def end(run: subprocess.Popen[str], number: int, after: float) -> str:
    """End ``run`` by the signal ``number`` once it has lived so long, and see that nothing of it lives on;
    gives what it said."""
    with suppress(subprocess.TimeoutExpired):
        return run.communicate(timeout=after)[0]
    below = descendants(run.pid)
    run.send_signal(number)
    said, _ = run.communicate(timeout=120)
    if number != signal.SIGKILL and run.returncode:
        assert run.returncode in (128 + number, -number), said
        assert "Traceback" not in said or run.returncode < 0  # Python itself was not there yet
    deadline = time.monotonic() + 30
    while any(map(lives, below)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in below if lives(child)], said
    return said


def lives(process: int) -> bool:
    """Whether a process runs; one that has ended and waits to be counted does not."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def end_at_random_moments(undisturbed: Path, killed: Path) -> None:
    """Run the one to its end, and end the other again and again."""
    began = time.monotonic()
    whole = start(undisturbed)
    said, _ = whole.communicate(timeout=1200)
    assert whole.returncode == 0, said
    life = LIFE * (time.monotonic() - began)
    draw, began = random.Random(4), time.monotonic()
    ends: Counter[str] = Counter()
    while ends.total() < KILLS and time.monotonic() - began < KILLING:
        chosen = SIGNALS[ends.total() % len(SIGNALS)]
        run = start(killed)
        end(run, chosen, 0.1 + draw.expovariate(1 / life))
        ends["ended well" if run.returncode == 0 else chosen.name] += 1
    print(f"{ends} in {time.monotonic() - began:.0f} s")
    assert ends.total() - ends["ended well"] >= KILLS // 2


@pytest.mark.timeout(3000)
def test_two_rounds_that_are_ended_at_random_moments_end_with_the_same_bytes(
    tiny_model: Path, tmp_path: Path
) -> None:
    undisturbed, killed = two_folders(tiny_model, tmp_path, rounds=2)
    end_at_random_moments(undisturbed, killed)
    said, _ = (last := start(killed)).communicate(timeout=1200)
    assert last.returncode == 0, said
    assert {"model weights", "model-2 weights"} <= set(made(killed))
    assert made(killed) == made(undisturbed)


@pytest.mark.timeout(3000)
def test_a_run_that_is_ended_at_random_moments_ends_with_the_same_bytes(
    tiny_model: Path, tmp_path: Path
) -> None:
    undisturbed, killed = two_folders(tiny_model, tmp_path)
    end_at_random_moments(undisturbed, killed)
    failing = start(killed, "--set", "evaluate_options={min_gain: 100}")
    said, _ = failing.communicate(timeout=1200)
    assert failing.returncode == 1, said
    left = killed / "out" / "runs" / "x"
    assert "min_gain" in json.loads((left / "results.json").read_text())["failed"]
    assert (left / "model" / "model.safetensors").is_file()
    assert "did not finish" in (left / "summary.html").read_text()
    again = start(killed)
    said, _ = again.communicate(timeout=1200)
    assert again.returncode == 0, said
    assert made(killed) == made(undisturbed)
    assert "failed" not in json.loads((left / "results.json").read_text())
    (killed / "out" / "runs" / "x").rename(killed / "moved")
    model = json.loads((killed / "moved" / "results.json").read_text())["model"]
    assert (killed / "moved" / model / "model.safetensors").is_file()


def test_two_processes_do_not_run_under_one_name(tiny_model: Path, tmp_path: Path) -> None:
    folder, _ = two_folders(tiny_model, tmp_path)
    first = start(folder)
    lock = folder / "out" / "runs" / "x" / ".lock"
    while not lock.exists() and first.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    second = start(folder)
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 2
    assert "a run that is not under way in another process" in said
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=120)
