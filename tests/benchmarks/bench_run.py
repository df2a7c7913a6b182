"""Where the time of `make demo` goes, model work and engine starts or everything else, and of the same again.

    python tests/benchmarks/bench_run.py MODEL [NAME=VALUE ...]

Runs the demo whole, with its own parameters and those that are given. The stages that load a model do
model work; what one of their tasks costs beyond it (a process, KFP's executor, opening and writing
datasets) is taken to be what the tasks of the other stages cost. Everything outside tasks counts as not
model work, too. Then the identical run is repeated below the same folder, where every stage finds what
it made.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from pathlib import Path
from statistics import median

from kubealign import Results, quickstart, run_local
from kubealign.runfile import load_run_file

DEMO = Path(__file__).parents[2] / "pipelines/kubealign_pipelines/params/demo.yaml"
MODEL_STAGES = frozenset({"sample", "logprobs", "train", "evaluate"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("parameters", nargs="*", help="parameters of the run, such as sample_n=2")
    options = parser.parse_args()
    prompts = quickstart.preferences() / "alpaca_en_demo.json"
    given = [f"policy={options.model}", f"sources.0.uri={prompts}", *options.parameters]
    run = load_run_file(DEMO).with_parameters(given)
    with tempfile.TemporaryDirectory(prefix="bench-run-") as folder:
        results = run_local(run, output=Path(folder))
        first = _processor_seconds()
        repeated = run_local(run, output=Path(folder))
        again = _processor_seconds() - first
        require_reuse(results, repeated)
    for stage, same in zip(results.stages, repeated.stages, strict=True):
        print(f"{stage.stage:16s} {stage.seconds:6.1f} s, again {same.seconds:6.1f} s")
    task = median(s.seconds for s in results.stages if s.stage not in MODEL_STAGES)
    model = sum(s.seconds - task for s in results.stages if s.stage in MODEL_STAGES)
    print(f"{results.seconds:.0f} s in all, {model:.0f} s of them model work; {task:.1f} s a task beside it")
    print(f"ratio run_outside_model_work {1 - model / results.seconds:.3f}")
    print(
        f"{repeated.seconds:.0f} s for the identical run again; processor {first:.0f} s, again {again:.0f} s"
    )
    print(f"ratio run_again {results.seconds / repeated.seconds:.2f}")
    print(f"ratio run_again_processor {first / again:.2f}")


def _processor_seconds() -> float:
    """What this process and the tasks that it waited for have used so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def require_reuse(first: Results, again: Results) -> None:
    """Raise SystemExit unless ``again`` made nothing: it has the files of ``first``, and reused every row."""
    if first.model is None or again.model is None or first.last is None or again.last is None:
        raise SystemExit("a run left no model")
    weights = [Path(results.model) / "model.safetensors" for results in (first, again) if results.model]
    computed = [row.stage for row in again.stages if row.reused is not None and row.reused < row.rows_out]
    if computed or not weights[0].samefile(weights[1]) or first.last.fingerprint != again.last.fingerprint:
        raise SystemExit(f"the identical run computed again: {computed or weights}")


if __name__ == "__main__":
    main()
