"""People's own verdicts: which completion they preferred to which, and what they said of one by itself.

The comparisons of a prompt have numbers, and a completion says in which it won and in which it lost, so that
it may win one and lose another (A over B, B over C). Its label is what it was called by itself, or was in
every comparison; one that won and lost has none. Numbers and labels stay with a completion whatever
becomes of the others: when one side of a comparison is dropped, the other is left in none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kubealign_components.data.schemas import COMPLETION
from kubealign_components.data.seeds import Keys
from kubealign_components.data.segments import Bools, Ints, order_by, segments, within

CHOSEN, REJECTED = "chosen", "rejected"
VERDICTS = pa.struct([COMPLETION.field(name) for name in ("label", "wins", "losses")])
"""What of a completion is a verdict."""


def verdicts_of(completions: Sequence[Mapping[str, object]]) -> pa.StructArray:
    """The verdicts on completions that are rows of Python, for :func:`preferred_pairs`."""
    return pa.array([{field.name: c[field.name] for field in VERDICTS} for c in completions], VERDICTS)


def sides(labels: pa.Array) -> tuple[Bools, Bools]:
    """Which completions are labelled chosen, and which rejected; each shape (n,)."""
    chosen, rejected = (
        pc.fill_null(pc.equal(labels, side), False).to_numpy(zero_copy_only=False)
        for side in (CHOSEN, REJECTED)
    )
    return chosen, rejected


def compared(completions: pa.StructArray) -> Bools:
    """Which completions were in a comparison, whether or not its other side is still there; shape (n,)."""
    wins, losses = (_lengths(completions.field(name)) for name in ("wins", "losses"))
    return np.asarray(wins + losses > 0)


def preferred_pairs(completions: pa.StructArray, row: Ints) -> tuple[Ints, Ints]:
    """Positions of the chosen and of the rejected completions of all pairs, each shape (pairs,), by row.

    These are the comparisons that people made, by number, and after them what they said of completions
    one by one: of those, a prompt's i-th chosen stands against its i-th rejected (:func:`in_turn`).

    Args:
        completions: shape (n,), with the fields of :data:`VERDICTS`.
        row: shape (n,), ascending: the prompt of each completion.
    """
    won, lost = _comparisons(completions, row)
    chosen, rejected = sides(completions.field("label"))
    single = np.flatnonzero((chosen | rejected) & ~compared(completions))
    first, second = in_turn(row[single], chosen[single])
    won, lost = np.concatenate([won, single[first]]), np.concatenate([lost, single[second]])
    order = np.argsort(row[won], kind="stable")
    return won[order], lost[order]


def in_turn(row: Ints, chosen: Bools) -> tuple[Ints, Ints]:
    """Positions of the chosen and of the rejected completions of pairs, each shape (pairs,), by row.

    A prompt's i-th chosen completion stands against its i-th rejected one, in the order of the source. Where
    there are more of one side, the other side's are taken in turn, so that every verdict is used.

    Args:
        row: shape (n,), ascending: the prompt of each labelled completion.
        chosen: shape (n,): labelled chosen, else rejected.
    """
    rows = int(row[-1]) + 1 if len(row) else 0
    mine, theirs = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    count_c, count_r = (np.bincount(row[side], minlength=rows) for side in (mine, theirs))
    both = np.flatnonzero((count_c > 0) & (count_r > 0))
    turns = np.maximum(count_c, count_r)[both]
    of, turn = np.repeat(both, turns), within(turns)
    first = mine[_starts(count_c)[of] + turn % count_c[of]]
    second = theirs[_starts(count_r)[of] + turn % count_r[of]]
    return first, second


def fewer(first: Ints, second: Ints, row: Ints, key: Keys, most: int) -> tuple[Ints, Ints]:
    """At most ``most`` pairs of each row, in their order.

    Args:
        first: positions of one side, shape (pairs,), by row.
        second: of the other.
        row: shape (n,): the prompt of each completion.
        key: shape (n,), random and fixed for the completion: by it pairs are kept.
        most: pairs of a prompt.
    """
    of = row[first]
    order = order_by(of, key[first] + key[second])
    _, _, rank = segments(of[order])
    kept = np.sort(order[rank < most])
    return first[kept], second[kept]


def _comparisons(completions: pa.StructArray, row: Ints) -> tuple[Ints, Ints]:
    """Positions of winner and loser of every comparison of which both are there, by row and number."""
    (winner, won), (loser, lost) = (_numbers(completions.field(name)) for name in ("wins", "losses"))
    width = int(max(won.max(initial=0), lost.max(initial=0))) + 1
    _, first, second = np.intersect1d(
        row[winner] * width + won, row[loser] * width + lost, return_indices=True
    )
    return winner[first], loser[second]


def _numbers(lists: pa.ListArray) -> tuple[Ints, Ints]:
    """Position of the completion and number, for each number in ``lists``."""
    return _ints(pc.list_parent_indices(lists)), _ints(pc.list_flatten(lists))


def _lengths(lists: pa.ListArray) -> Ints:
    return _ints(pc.fill_null(pc.list_value_length(lists), 0))


def _ints(array: pa.Array) -> Ints:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.int64)


def _starts(counts: Ints) -> Ints:
    """Where each run begins, of runs with ``counts`` elements."""
    return np.asarray(np.cumsum(counts) - counts)
