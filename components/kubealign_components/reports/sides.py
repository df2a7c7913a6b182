"""Two policies on the same prompts, as charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from kubealign_components.reports.charts import counted, histogram, scatter

SIDES = ("reference", "aligned")
BINS = 24


def sides_charts(rows: Sequence[Any]) -> Iterator[Markup]:
    """What changed, and whether it is length.

    Args:
        rows: of ``kubealign.evaluation/v1``, at least one.
    """
    differences = [row["reward_difference"] for row in rows]
    if None not in differences:
        yield _before_and_after("Rewards before and after", rows, "reward", "reward")
        counts, low, high = counted(differences, BINS)
        yield histogram("Reward differences", {"prompts": counts}, low, high, x="aligned − reference")
        points = list(zip(map(length_change, rows), differences))
        yield scatter("Is it length?", points, x="length change (tokens)", y="reward difference", slope=True)
    yield _before_and_after("Lengths before and after", rows, "num_tokens", "tokens a completion")


def length_change(row: Mapping[str, Any]) -> float:
    """Mean tokens of the aligned completions less those of the reference."""
    before, after = (float(np.mean([c["num_tokens"] for c in row[side]])) for side in SIDES)
    return after - before


def _before_and_after(title: str, rows: Sequence[Any], column: str, unit: str) -> Markup:
    values = {side: [c[column] for row in rows for c in row[side]] for side in SIDES}
    _, low, high = counted([value for side in SIDES for value in values[side]], BINS)
    counts = {side: np.histogram(values[side], BINS, (low, high))[0].tolist() for side in SIDES}
    return histogram(title, counts, low, high, x=unit)
