"""How a CPU stage scales over chunk workers, and what a chunk costs beyond its work.

    python tests/benchmarks/bench_fan_out.py MODEL [--prompts 40] [--seconds 10] [--rounds 5]

A worker is a fresh process that runs the ``rewards`` component's function on one chunk, as KFP's executor
does. The reward function is plain Python that computes for a fixed number of steps, so the work of a chunk
is its share of the completions. The peer is the machine itself: the same steps in bare processes, one and
then one a core, because two cores of a machine seldom do twice the work of one.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from prepared import tokenized
from timing import alternate

from kubealign_components.data.chunks import Part, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.engines.rewards import RewardInput
from kubealign_components.merge.stage import run as run_merge

WORKER = """
import json, sys
from kubealign_components.rewards.component import rewards
print(rewards.python_func(**json.load(sys.stdin)))
"""
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=10.0, help="work of one worker alone")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    workers = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="bench-fan-out-") as folder:
        dataset = tokenized(options.model, Path(folder), rows=options.prompts)
        completions = sum(len(row["completions"]) for row in dataset.iter_rows())
        steps = int(steps_a_second() * options.seconds / completions)
        ways: dict[str, Callable[[], object]] = {
            "bare, one process": lambda: bare(1, steps * completions),
            f"bare, {workers} processes": lambda: bare(workers, steps * completions // workers),
            "one worker": lambda: fan_out(dataset, Path(folder), 1, steps),
            f"{workers} workers": lambda: fan_out(dataset, Path(folder), workers, steps),
            "a chunk without work": lambda: fan_out(dataset, Path(folder), 1, 0),
        }
        seconds, results = alternate(ways, options.rounds)
    rewards = [results["one worker"], results[f"{workers} workers"]]
    assert rewards[0] == rewards[1], "chunking changed the rows"
    for name, taken in seconds.items():
        print(f"{name:20s} {taken:6.2f} s")
    alone, parallel, one, many, empty = seconds.values()
    print(f"bare processes: {alone / parallel:.2f} times as fast on {workers} cores")
    print(f"chunk workers:  {one / many:.2f} times as fast on {workers} cores")
    print(f"ratio fan_out_speedup_to_the_machines {one / many / (alone / parallel):.3f}")
    print(f"ratio fan_out_wall_to_one_nth {many * workers / one:.3f}")
    print(f"ratio chunk_overhead_seconds {empty:.2f}")


def constant(item: RewardInput, *, steps: int) -> float:
    """A reward that takes a while, and is the length of the text."""
    add_up(steps)
    return float(len(item.text))


def add_up(steps: int) -> float:
    """Plain Python work."""
    total = 0.0
    for i in range(steps):
        total += i * 0.5
    return total


def steps_a_second() -> float:
    """How fast this machine adds up."""
    start = time.perf_counter()
    add_up(5_000_000)
    return 5_000_000 / (time.perf_counter() - start)


def bare(processes: int, steps: int) -> None:
    """``processes`` at once that each do ``steps``."""
    program = f"import json, sys\n{inspect.getsource(add_up)}\nadd_up(json.load(sys.stdin)['steps'])"
    run_all(program, [{"steps": steps}] * processes)


def fan_out(dataset: Dataset, folder: Path, chunks: int, steps: int) -> list[list[float]]:
    """The rewards of ``dataset``: planned, a worker process a chunk at once, merged."""
    function = {"function": "bench_fan_out:constant", "settings": {"steps": steps}}
    with tempfile.TemporaryDirectory(dir=folder) as work:
        planned = plan(dataset, work=work, chunks=chunks)
        arguments = [{"chunk": chunk.to_json(), "reward_functions": [function]} for chunk in planned]
        parts = [Part.from_json(text) for text in run_all(WORKER, arguments)]
        merged = run_merge(parts=parts, chunks=planned, output=str(Path(work) / "merged"))
        return [[c["reward"] for c in row["completions"]] for row in merged.iter_rows()]


def run_all(program: str, inputs: Sequence[dict[str, object]]) -> list[str]:
    """The last lines that processes print which run ``program`` at once, one for each of ``inputs``."""
    environment = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in inputs
    ]
    for process, given in zip(started, inputs, strict=True):
        assert process.stdin
        process.stdin.write(json.dumps(given))
        process.stdin.close()
    printed = [process.stdout.read() if process.stdout else "" for process in started]
    assert all(process.wait() == 0 for process in started), "a worker failed"
    return [text.strip().rsplit("\n", 1)[-1] for text in printed]


if __name__ == "__main__":
    main()
