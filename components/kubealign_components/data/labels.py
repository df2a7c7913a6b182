"""People's own verdicts: the pairs that they labelled.

A completion that was chosen in one comparison and rejected in another has no label (``import_prompts``
counts it), so a label never contradicts itself.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kubealign_components.data.seeds import Keys
from kubealign_components.data.segments import Bools, Ints, order_by, segments, within

CHOSEN, REJECTED = "chosen", "rejected"


def sides(labels: pa.Array) -> tuple[Bools, Bools]:
    """Which completions are labelled chosen, and which rejected; each shape (n,)."""
    chosen, rejected = (
        pc.fill_null(pc.equal(labels, side), False).to_numpy(zero_copy_only=False)
        for side in (CHOSEN, REJECTED)
    )
    return chosen, rejected


def labelled_pairs(row: Ints, chosen: Bools, key: Keys | None = None, most: int = 0) -> tuple[Ints, Ints]:
    """Positions of the chosen and of the rejected completions of the pairs, each shape (pairs,), by row.

    A prompt's i-th chosen completion stands against its i-th rejected one, in the order of the source,
    where a comparison's two sides lie side by side. Where there are more of one side, the other side's
    are taken in turn, so that every label is used.

    Args:
        row: shape (n,), ascending: the prompt of each labelled completion.
        chosen: shape (n,): labelled chosen, else rejected.
        key: shape (n,), by which pairs are kept where there are more than ``most``; None to keep all.
        most: pairs of a prompt.
    """
    rows = int(row[-1]) + 1 if len(row) else 0
    mine, theirs = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    count_c, count_r = (np.bincount(row[side], minlength=rows) for side in (mine, theirs))
    both = np.flatnonzero((count_c > 0) & (count_r > 0))
    turns = np.maximum(count_c, count_r)[both]
    of, turn = np.repeat(both, turns), within(turns)
    first = mine[_starts(count_c)[of] + turn % count_c[of]]
    second = theirs[_starts(count_r)[of] + turn % count_r[of]]
    if key is not None:
        order = order_by(of, key[first] + key[second])
        _, _, rank = segments(of[order])
        kept = np.sort(order[rank < most])
        first, second = first[kept], second[kept]
    return first, second


def _starts(counts: Ints) -> Ints:
    """Where each run begins, of runs with ``counts`` elements."""
    return np.asarray(np.cumsum(counts) - counts)
