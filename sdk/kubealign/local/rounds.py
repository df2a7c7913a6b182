"""The rounds of a run side by side: what each gained over the first policy, and whose samples it chose."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kubealign.local.results import Results
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.sampled import round_of_model
from kubealign_components.reports.rounds import COLUMNS as SHOWN
from kubealign_components.reports.rounds import lines_of

COLUMNS = [*SHOWN, "chosen from rounds"]
_READ = ["completions.list.element.model", "pairs"]


def rounds_of(results: Results) -> list[list[str]]:
    """A line of :data:`COLUMNS` for each round that was evaluated, with a word on the chosen one; none where
    there was one alone, or where what was evaluated are variants of a sweep."""
    evaluated = [row for row in results.stages if row.stage == "evaluate"]
    if len(evaluated) < 2 or any(row.iteration for row in evaluated):
        return []
    selected = [made for name, made in results.datasets.items() if re.fullmatch(r"select(-\d+)?", name)]
    shares = [_shares(made) for made in selected]
    lines = lines_of([row.numbers for row in evaluated if row.numbers])  # of those that were not ended early
    for line in lines:
        line[0] += ", chosen" if line[0] == str(results.chosen_round) else ""
    return [[*line, of] for line, of in zip(lines, shares)]


def why_stopped(results: Results) -> str:
    """Why no further round was sampled or trained; empty where all were."""
    begun = [made for name, made in results.datasets.items() if name.startswith("next_round")]
    return next((made.ended_early for made in begun if made.ended_early), "")


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


def _shares(selection: Dataset) -> str:
    chosen = chosen_by_round(selection)
    return ", ".join(f"{n}: {count / chosen.total():.0%}" for n, count in sorted(chosen.items()))
