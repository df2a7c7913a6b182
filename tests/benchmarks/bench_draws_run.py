"""A range of draws for real: the demo's prompts and reward, drawn as a run does, against 16 of each.

    python tests/benchmarks/bench_draws_run.py MODEL [NAME=VALUE ...] [--rows 220] [--first 4] [--to 16]

Two whole runs over one work prefix: one whose `sample_n` is a range, then one that draws as many of every
prompt, which takes over what is there. Parameters that are given come after the demo's. Next to nothing is
trained and evaluated; what is compared is what both selected and how many tokens were sampled for it. Then
the draws of the second run are replayed with this and other rewards of the same completions, and with
`within`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from bench_draws import HEAD, tell

from kubealign import Results, quickstart, run_local
from kubealign.runfile import load_run_file
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.segments import Floats

DEMO = Path(__file__).parents[2] / "pipelines/kubealign_pipelines/params/demo.yaml"
CHANGED = (
    "sample_engine=transformers",  # which starts at once, where vLLM compiles: there are six starts
    "train_options.max_steps=2",
    "evaluate_max_prompts=2",
    "evaluate_kl_prompts=0",
)
REWARDS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "as given": lambda c: c["reward"],
    "fewer tokens": lambda c: -float(c["num_tokens"]),
    "nearness to 200 characters": lambda c: -abs(len(c["messages"][-1]["content"]) - 200),
}
"""Of the same completions."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("parameters", nargs="*", help="parameters of the run, such as seed=1")
    parser.add_argument("--rows", type=int, default=220)
    parser.add_argument("--first", type=int, default=4)
    parser.add_argument("--to", type=int, default=16)
    parser.add_argument("--within", type=float, nargs="*", default=[0.0, 0.1, 0.25])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-draws-run-") as folder:
        drawn, every = (
            run(options.model, Path(folder), options.rows, name, [*options.parameters, f"sample_n={number}"])
            for name, number in (
                ("range", f"{{from: {options.first}, to: {options.to}}}"),
                ("all", str(options.to)),
            )
        )
        print(compared(drawn, every))
        print(f"{drawn.seconds:.0f} s for the range, {every.seconds:.0f} s for all that it left out")
        for line in HEAD:
            print(line)
        for name, reward in REWARDS.items():
            tell(name, rewards_of(every.datasets["rewards"], reward), options.first, options.within)


def run(model: Path, folder: Path, rows: int, name: str, parameters: list[str]) -> Results:
    """The demo as far as it selects."""
    prompts = quickstart.preferences() / "alpaca_en_demo.json"
    given = [f"policy={model}", f"sources.0.uri={prompts}", f"sources.0.max_rows={rows}"]
    given += [*CHANGED, *parameters]
    return run_local(load_run_file(DEMO).with_parameters(given), output=folder, name=name)


def compared(drawn: Results, every: Results) -> str:
    """How many tokens the range took, and how many of the pairs of all draws it has."""
    some, whole = drawn.datasets["join_draws-2"], every.datasets["rewards"]
    pairs, others = pairs_of(every.datasets["select"]), pairs_of(drawn.datasets["select"])
    alike = [others.get(prompt, ((), ()))[0] == pair for prompt, (pair, _) in pairs.items()]
    themselves = [others.get(prompt, ((), ()))[1] == ids for prompt, (_, ids) in pairs.items()]
    tokens = sampled_tokens(some) / sampled_tokens(whole)
    numbers = some.manifest.stats["numbers"]
    of_prompts = [f"{name} {value:g}" for name, value in numbers.items() if name.startswith("prompts_")]
    return (
        f"{whole.rows} prompts, {len(pairs)} with a pair in all draws: {tokens:.3f} of "
        f"{sampled_tokens(whole)} tokens (told: {numbers['share_of_tokens']:.3f}); same rewards in "
        f"{np.mean(alike):.3f} of the pairs (same completions, where several may tie: "
        f"{np.mean(themselves):.3f}); {', '.join(of_prompts)}"
    )


def pairs_of(selection: Dataset) -> dict[str, tuple[tuple[float, ...], tuple[str, ...]]]:
    """Of each prompt the rewards of its pair, and its completions."""
    made = {}
    for row in selection.iter_rows():
        [pair] = row["pairs"]
        both = [row["completions"][pair[side]] for side in ("chosen", "rejected")]
        made[row["prompt_id"]] = (
            tuple(c["reward"] for c in both),
            tuple(c["completion_id"] for c in both),
        )
    return made


def sampled_tokens(rewarded: Dataset) -> int:
    """Tokens of all sampled completions."""
    return sum(c["num_tokens"] for row in rewarded.iter_rows() for c in row["completions"] if c["reference"])


def rewards_of(rewarded: Dataset, reward: Callable[[Mapping[str, Any]], float]) -> Floats:
    """The ``reward`` of each draw of each prompt, shape (prompts, draws)."""
    rows = ([c for c in row["completions"] if c["reference"]] for row in rewarded)
    return np.array([[reward(c) for c in own] for own in rows], dtype=np.float64)


if __name__ == "__main__":
    main()
