"""Prompts of several rows: merged to one, and noted, so that it is known what is left without some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from kubealign_components.data.row_counts import ROW_COUNTS, RowCounts, counts_among, noted_rows
from kubealign_components.data.schemas import PromptRow
from kubealign_components.data.stats import Stats
from kubealign_components.sources.prompt_rows import merge_rows

if TYPE_CHECKING:
    from kubealign_components.data.segments import Bools

DUPLICATE = "duplicate_prompt"
"""What all rows of a prompt but one are counted under."""
REFUSED = "refused"
"""Member of a row in the spool: completions that were left out of it, by reason."""
_OF_ROWS = (DUPLICATE, "completions_", "comparisons_of_equals", "comparisons_contradicted")
"""How the counts begin that prompts do not show, and are noted of them."""
_ROWS_OF = "rows_of_"
"""Before the name of a source: under this the rows are noted that were merged."""


class Merger:
    """Makes one row of all rows of a prompt, and notes what it counted of which."""

    def __init__(self) -> None:
        self.noted = RowCounts()
        self._prompts = 0

    def __call__(self, rows: Sequence[PromptRow], counts: Counter[str]) -> PromptRow:
        own: Counter[str] = Counter()
        noted: Counter[str] = Counter()
        for row in rows:
            left_out = cast("dict[str, dict[str, int]]", row).pop(REFUSED, {})
            noted.update({f"completions_dropped_{reason}": count for reason, count in left_out.items()})
        if len(rows) > 1:
            noted.update(f"{_ROWS_OF}{row['source']}" for row in rows)
            noted[DUPLICATE] = len(rows) - 1
        merged = merge_rows(rows, own)
        for name, count in (noted + own).items():
            self.noted.note(name, self._prompts, count)
        self._prompts += 1
        counts.update(own)
        counts["completions"] += len(merged["completions"])
        return merged


def count_noted(extra: Mapping[str, object], before: Stats, gone: Bools) -> Stats | None:
    """What was counted of the prompts that are ``gone``, beside what they show; None where it is not noted.

    Args:
        extra: what the manifest says beside the counts.
        before: the counts of all.
        gone: shape (prompts,).
    """
    noted = [
        counts_among(extra, {n: c for n, c in counts.items() if c and n.startswith(_OF_ROWS)}, gone)
        for counts in (before.dropped, before.counts)
    ]
    if None in noted:
        return None
    dropped, counts = (counter or Counter() for counter in noted)
    return Stats(dropped=dropped, counts=counts)


def merged_sources(extra: Mapping[str, object], prompts: int) -> Iterator[tuple[str, Bools]]:
    """Sources whose rows were merged with others, and a flag for each prompt that has some."""
    noted = cast("Mapping[str, str]", extra.get(ROW_COUNTS, {}))
    for name in noted:
        if name.startswith(_ROWS_OF):
            having = np.zeros(prompts, np.bool_)
            having[noted_rows(extra, name, prompts)] = True
            yield name.removeprefix(_ROWS_OF), having


def changed(having: Mapping[str, Bools], sources: Collection[str], by_id: Bools) -> bool:
    """Whether a prompt stays, with other completions, when ``sources`` go.

    Args:
        having: as :func:`merged_sources` gives it.
        sources: by name.
        by_id: prompts that go for their ids, shape (prompts,).
    """
    some, others = np.zeros_like(by_id), np.zeros_like(by_id)
    for name, flags in having.items():
        if name in sources:
            some |= flags
        else:
            others |= flags
    return bool((some & others & ~by_id).any())
