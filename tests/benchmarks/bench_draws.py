"""A range of draws against all draws of every prompt: the same pairs, and the tokens that they take.

    python tests/benchmarks/bench_draws.py MODEL [--recorded REWARDED ...] [--first 4] [--to 16] [--rows 2000]

Nothing is sampled, and MODEL is not read: rewards are planted, or those of datasets that a run recorded
(``kubealign.rewarded/v1``), and draws are taken of them as ``draw_more`` takes them of a policy. Of recorded
rewards there are as many draws as were sampled, and ``--first`` is half of them.
"""

from __future__ import annotations

import argparse

import numpy as np

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import REWARDED
from kubealign_components.data.segments import Floats
from kubealign_components.draw_more.stage import draws_of
from support.draws import PLANTED, replay

HEAD = (
    "| rewards | within | tokens | same pairs | pairs within | mean gap | draws |",
    "|---|---|---|---|---|---|---|",
)
"""Of the table whose lines :func:`tell` prints."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--recorded", nargs="*", default=[], metavar="REWARDED")
    parser.add_argument("--first", type=int, default=4)
    parser.add_argument("--to", type=int, default=16)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--within", type=float, nargs="*", default=[0.0, 0.1, 0.25])
    options = parser.parse_args()
    for line in HEAD:
        print(line)
    for name, plant in PLANTED.items():
        rewards = plant(np.random.default_rng(0), options.rows, options.to)
        tell(name, rewards, options.first, options.within)
    for uri in options.recorded:
        rewards = recorded(uri)
        tell(uri.rstrip("/").rpartition("/")[2], rewards, max(2, rewards.shape[1] // 2), options.within)


def tell(name: str, rewards: Floats, first: int, withins: list[float]) -> None:
    """A line for each of ``withins``; of rewards of few values, which these do not change, one."""
    seen = set()
    for within in withins:
        made = replay(rewards, first, within=within)
        draws = ", ".join(f"{k}: {share:.2f}" for k, share in made.stopped.items())
        line = f"{made.tokens:.2f} | {made.same:.3f} | {made.near:.3f} | {made.gap:.3f} | {draws} |"
        if line not in seen:
            print(f"| {name}, {len(rewards)} prompts | {within:g} | {line}")
        seen.add(line)


def recorded(uri: str) -> Floats:
    """The rewards of the prompts of ``uri`` that have as many samples as most have, shape (prompts, n)."""
    _, draws = draws_of(Dataset.open(uri, REWARDED))
    n = int(np.bincount(draws.number).argmax())
    return draws.reward[(draws.number == n)[draws.row]].reshape(-1, n)


if __name__ == "__main__":
    main()
