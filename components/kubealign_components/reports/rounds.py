"""Rounds of alignment side by side: what the evaluation of each showed, and whose samples it trained on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.sampled import round_of_model

GAIN = ("reward_gain_low", "reward_gain_high")
NUMBERS = ("reward_aligned", "reward_gain", *GAIN, "kl_per_completion", "length_ratio")
"""Of an evaluation: what a line is made of, beside the shares of rounds."""
COLUMNS = ("round", "reward", "gain", "95 % interval", "KL, nats", "length ratio", "chosen from rounds")
_SHARE = re.compile(r"chosen_from_round_(\d+)")
_FIRST = {"chosen_from_round_1": 1.0}
_READ = ["completions.list.element.model", "pairs"]


def lines_of(rounds: Sequence[Mapping[str, float]]) -> list[list[str]]:
    """A line of :data:`COLUMNS` for the numbers of each round, the first one's first; an empty cell where an
    evaluation has no such number. All that the first round trained on is its own."""
    first = [{**_FIRST, **numbers} for numbers in rounds[:1]]
    return [
        [str(position), *_cells(numbers)] for position, numbers in enumerate([*first, *rounds[1:]], start=1)
    ]


def shown_of(numbers: Mapping[str, float]) -> dict[str, float]:
    """Those of an evaluation's ``numbers`` that a line is made of."""
    return {name: value for name, value in numbers.items() if name in NUMBERS or _SHARE.fullmatch(name)}


def shares_of_rounds(selection: Dataset) -> dict[str, float]:
    """Of what is trained on of ``selection``, the share that each round brought, by the name of a number:
    ``chosen_from_round_1`` is that of pairs whose chosen completion was sampled in the first round, or that
    a source had; of a selection without pairs, that of completions.

    Args:
        selection: ``kubealign.selection/v1``.
    """
    chosen = chosen_by_round(selection)
    return {f"chosen_from_round_{n}": count / chosen.total() for n, count in sorted(chosen.items())}


def chosen_by_round(selection: Dataset) -> Counter[int]:
    """Pairs of ``selection`` by the round that their chosen completion was sampled in; of a selection without
    pairs, completions."""
    chosen: Counter[int] = Counter()
    for batch in selection.batches(_READ):
        lists, pairs = batch.column("completions"), batch.column("pairs")
        models = lists.flatten().field("model")
        first = lists.offsets.to_numpy()[:-1] - lists.offsets[0].as_py()
        counts = pc.list_value_length(pairs).to_numpy(zero_copy_only=False)
        positions = pairs.flatten().field("chosen").to_numpy(zero_copy_only=False)
        index = np.repeat(first, counts) + positions
        of_pairs = models.take(pa.array(index, pa.int64())) if len(index) else models
        for one in pc.value_counts(of_pairs).to_pylist():
            chosen[round_of_model(one["values"])] += one["counts"]
    return chosen


def _cells(numbers: Mapping[str, float]) -> list[str]:
    cells = {name: f"{numbers[name]:.4g}" if name in numbers else "" for name in NUMBERS}
    low, high = (cells.pop(name) for name in GAIN)
    reward, gain, kl, length = cells.values()
    shares = {
        int(of_round[1]): share for name, share in numbers.items() if (of_round := _SHARE.fullmatch(name))
    }
    of_rounds = ", ".join(f"{number}: {share:.0%}" for number, share in sorted(shares.items()))
    return [reward, gain, f"{low} to {high}" if low else "", kl, length, of_rounds]
