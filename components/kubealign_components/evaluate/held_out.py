"""The held-out prompts of a dataset, of which only those that are compared become Python objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import compress

import pyarrow as pa
import pyarrow.compute as pc

from kubealign_components.data.arrow_take import keep
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import TokenizedRow
from kubealign_components.data.seeds import VALIDATION, held_out, unit_interval
from kubealign_components.data.stats import Stats
from kubealign_components.errors import DataError

LEAST = 2
"""Held-out prompts that are compared."""


def held_out_rows(
    dataset: Dataset, *, fraction: float, seed: int, most: int, stats: Stats
) -> list[TokenizedRow]:
    """Rows of the held-out prompts of ``dataset``, ordered by hash.

    Args:
        dataset: of prompts, of any kind.
        fraction: share of prompts that is held out.
        seed: of the split.
        most: most rows; the same first ones, whatever the dataset grows to.
        stats: counts what is left out and why.
    """
    ids = dataset.table(["prompt_id"]).column("prompt_id").to_pylist()
    held = list(compress(ids, held_out(ids, fraction, seed)))
    order = sorted(held, key=lambda i: (unit_interval(seed, VALIDATION, i), i))[:most]
    stats.drop("not_held_out", len(ids) - len(held))
    stats.drop("over_max_prompts", len(held) - len(order))
    rows = {row["prompt_id"]: row for row in _rows_of(dataset, order)}
    return [rows[i] for i in order]


def _rows_of(dataset: Dataset, prompt_ids: Sequence[str]) -> Iterator[TokenizedRow]:
    """The rows of ``prompt_ids``, in the order of ``dataset``."""
    ids = pa.array(prompt_ids, pa.string())
    for batch in dataset.batches(batch_rows=None):
        chosen = pc.is_in(batch["prompt_id"], value_set=ids)
        yield from keep(batch, chosen.to_numpy(zero_copy_only=False)).to_pylist()


def require_enough(rows: int, where: str, stats: Stats) -> None:
    """Raise :class:`DataError` where fewer than :data:`LEAST` prompts of ``where`` are left."""
    if rows < LEAST:
        raise DataError(too_few(rows, where, stats))


def too_few(rows: int, where: str, stats: Stats) -> str:
    """Why nothing can be compared: so many ``rows`` of ``where`` are left, the others were dropped for what
    ``stats`` count."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in stats.dropped.items())
    return (
        f"{where}: {rows} held-out prompts to compare, expected {LEAST} or more ({reasons}); raise "
        "validation_fraction here and in `mix`, or import more prompts"
    )
