"""Two policies on the same prompts, as charts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypedDict

import numpy as np
from markupsafe import Markup

from kubealign_components.data.schemas import Completion
from kubealign_components.reports.charts import counted, histogram, scatter

SIDES: tuple[Literal["reference"], Literal["aligned"]] = ("reference", "aligned")
BINS = 24


class SidesRow(TypedDict):
    """What charts read of a row of ``kubealign.evaluation/v1``."""

    reference: list[Completion]
    aligned: list[Completion]
    reward_difference: float | None


def sides_charts(rows: Sequence[SidesRow]) -> Iterator[Markup]:
    """What changed, and whether it is length.

    Args:
        rows: of ``kubealign.evaluation/v1``, at least one.
    """
    differences = [d for row in rows if (d := row["reward_difference"]) is not None]
    if len(differences) == len(rows):
        yield _before_and_after("Rewards before and after", rows, "reward", "reward")
        counts, low, high = counted(differences, BINS)
        yield histogram("Reward differences", {"prompts": counts}, low, high, x="aligned − reference")
        points = list(zip(map(length_change, rows), differences))
        yield scatter("Is it length?", points, x="length change (tokens)", y="reward difference", slope=True)
    yield _before_and_after("Lengths before and after", rows, "num_tokens", "tokens a completion")


def length_change(row: SidesRow) -> float:
    """Mean tokens of the aligned completions less those of the reference."""
    before, after = (float(np.mean([c["num_tokens"] for c in row[side]])) for side in SIDES)
    return after - before


def _before_and_after(
    title: str, rows: Sequence[SidesRow], column: Literal["reward", "num_tokens"], unit: str
) -> Markup:
    values: dict[str, list[float]] = {
        side: [value for row in rows for c in row[side] if (value := c[column]) is not None] for side in SIDES
    }
    _, low, high = counted([value for side in SIDES for value in values[side]], BINS)
    counts: dict[str, list[int]] = {
        side: np.histogram(values[side], BINS, (low, high))[0].tolist() for side in SIDES
    }
    return histogram(title, counts, low, high, x=unit)
