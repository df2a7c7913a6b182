"""Where the time of `make demo` goes: model work and engine starts, or everything else.

    python tests/benchmarks/bench_run.py MODEL

Runs the demo whole, with its own parameters. The stages that load a model do model work; what one of their
tasks costs beyond it (a process, KFP's executor, opening and writing datasets) is taken to be what the
tasks of the other stages cost. Everything outside tasks counts as not model work, too.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

from kubealign import quickstart, run_local
from kubealign.runfile import load_run_file

DEMO = Path(__file__).parents[2] / "pipelines/kubealign_pipelines/params/demo.yaml"
MODEL_STAGES = frozenset({"sample", "logprobs", "train", "evaluate"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    options = parser.parse_args()
    prompts = quickstart.preferences() / "alpaca_en_demo.json"
    run = load_run_file(DEMO).with_parameters([f"policy={options.model}", f"sources.0.uri={prompts}"])
    with tempfile.TemporaryDirectory(prefix="bench-run-") as folder:
        results = run_local(run, output=Path(folder))
    for stage in results.stages:
        print(f"{stage.stage:16s} {stage.seconds:6.1f} s")
    task = median(s.seconds for s in results.stages if s.stage not in MODEL_STAGES)
    model = sum(s.seconds - task for s in results.stages if s.stage in MODEL_STAGES)
    print(f"{results.seconds:.0f} s in all, {model:.0f} s of them model work; {task:.1f} s a task beside it")
    print(f"ratio run_outside_model_work {1 - model / results.seconds:.3f}")


if __name__ == "__main__":
    main()
