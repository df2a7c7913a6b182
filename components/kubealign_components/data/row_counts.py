"""What a stage counted of single rows: enough to know the counts without some of them.

For each name the numbers of the rows that counted, each as often as it did: sorted, and the differences
compressed. Most rows count nothing, so that this is small, however many rows there are.
"""

from __future__ import annotations

import base64
import zlib
from array import array
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kubealign_components.errors import CorruptDataset

if TYPE_CHECKING:
    from kubealign_components.data.segments import Bools, Ints

ROW_COUNTS = "row_counts"
"""Member of what a manifest says beside the counts."""
_MOST_BYTES = 2**28
"""Of the numbers of one name that are not compressed."""


class RowCounts:
    """Numbers of rows, by what was counted of them."""

    def __init__(self) -> None:
        self._rows: dict[str, array[int]] = {}

    def note(self, name: str, row: int, times: int = 1) -> None:
        """Note that row number ``row`` counted so often."""
        self._rows.setdefault(name, array("I")).extend([row] * times)

    def to_json(self) -> dict[str, dict[str, str]]:
        """The member of a manifest; empty where no row counted."""
        import numpy as np

        def text(rows: array[int]) -> str:
            steps = np.diff(np.sort(np.array(rows, dtype="<u4")), prepend=np.uint32(0))
            return base64.b64encode(zlib.compress(steps.tobytes())).decode("ascii")

        texts = {name: text(rows) for name, rows in sorted(self._rows.items())}
        return {ROW_COUNTS: texts} if texts else {}


def counts_among(
    extra: Mapping[str, object], counted: Mapping[str, int], among: Bools
) -> Counter[str] | None:
    """What was counted of the rows ``among`` all; None where a manifest does not tell it.

    Args:
        extra: what the manifest says beside the counts.
        counted: of all rows, by name: all that counted anything.
        among: shape (rows,).

    Raises:
        CorruptDataset: there are numbers of other rows.
    """
    counts: Counter[str] = Counter()
    for name, count in counted.items():
        rows = noted_rows(extra, name, len(among))
        if len(rows) != count:
            return None
        counts[name] = int(among[rows].sum())
    return counts


def noted_rows(extra: Mapping[str, object], name: str, most: int) -> Ints:
    """Numbers of the rows that counted as ``name``, each as often as it did, ascending; shape (count,).

    Args:
        extra: what the manifest says beside the counts.
        name: of the count.
        most: rows that there are.

    Raises:
        CorruptDataset: there are numbers of other rows.
    """
    import numpy as np

    noted = extra.get(ROW_COUNTS)
    text = noted.get(name) if isinstance(noted, Mapping) else None
    if not isinstance(text, str):
        return np.empty(0, np.int64)
    try:
        steps = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), _MOST_BYTES)
        rows: Ints = np.cumsum(np.frombuffer(steps, dtype="<u4"), dtype=np.int64)
    except (ValueError, zlib.error) as error:
        raise CorruptDataset(f"{ROW_COUNTS}.{name} holds no numbers of rows ({error})") from error
    if len(rows) and rows[-1] >= most:
        raise CorruptDataset(f"{ROW_COUNTS}.{name} has row {rows[-1]}, expected {most} rows")
    return rows
