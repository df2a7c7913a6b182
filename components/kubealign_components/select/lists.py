"""Lists of completions from flat arrays, and what the number of references means, in words."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from kubealign_components.data.segments import Floats, Ints
from kubealign_components.data.stats import Stats
from kubealign_components.training.config import INCLUSIVE


def note_on_references(stats: Stats, quantile: str) -> str:
    """What the number of references does to the quantiles, in words."""
    total, rows = stats.sums.get("references", (0.0, 0))
    if not rows:
        return "no prompt is left"
    n = total / rows
    text = f"{n:.1f} reference rewards a prompt, so quantile rewards come in steps of about 1/{n:.0f}"
    if quantile != INCLUSIVE:
        return text
    return (
        f"{text}; inclusive ones of reference completions average {(n + 1) / (2 * n):.2f} or more where "
        "0.50 is exact (mid_rank and leave_one_out have no such bias)"
    )


def finite(values: Floats) -> list[float]:
    """Those of ``values`` that are finite."""
    kept: list[float] = values[np.isfinite(values)].tolist()
    return kept


def offsets_of(counts: Ints) -> Ints:
    """Where lists of these lengths begin, shape (n + 1,)."""
    return np.concatenate(([0], np.cumsum(counts)))


def lists_of(offsets: Ints, values: pa.Array) -> pa.ListArray:
    """Lists that begin at ``offsets`` of ``values``."""
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
