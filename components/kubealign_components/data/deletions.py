"""Deletion vectors: which rows of a shard are no rows of the dataset any more (Delta Lake's term).

A shard never changes. A dataset that holds all rows of another but some takes its shards over as they are,
and its manifest says of each which rows are deleted: a bit for every row that the file has, compressed.
"""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubealign_components.data.segments import Bools

_MOST_BYTES = 2**28
"""Of a vector that is not compressed: two thousand million rows."""


def packed(deleted: Bools) -> str:
    """The text of a deletion vector; empty where nothing is deleted.

    Args:
        deleted: a flag for each row of the file, of shape (rows,).
    """
    import numpy as np

    if not deleted.any():
        return ""
    bits = np.packbits(deleted, bitorder="little").tobytes()
    return base64.b64encode(zlib.compress(bits, 9)).decode("ascii")


def unpacked_deletions(text: str, rows: int) -> Bools:
    """A flag for each of the ``rows`` rows of a file, of shape (rows,): whether it is deleted."""
    import numpy as np

    if not text:
        return np.zeros(rows, dtype=np.bool_)
    bits = np.frombuffer(_bits(text), dtype=np.uint8)
    return np.unpackbits(bits, count=rows, bitorder="little").astype(np.bool_)


def count_deletions(text: str) -> int:
    """How many rows the deletion vector ``text`` deletes."""
    return int.from_bytes(_bits(text), "little").bit_count() if text else 0


def is_deletions(text: object, rows: int) -> bool:
    """Whether ``text`` is a deletion vector, as :func:`packed` gives it, that leaves ``rows`` rows."""
    if not isinstance(text, str) or not text:
        return False
    try:
        bits = _bits(text)
    except (ValueError, zlib.error):
        return False
    number = int.from_bytes(bits, "little")
    held = rows + number.bit_count()
    return number.bit_count() > 0 and number.bit_length() <= held and len(bits) == -(-held // 8)


def _bits(text: str) -> bytes:
    reader = zlib.decompressobj()
    bits = reader.decompress(base64.b64decode(text, validate=True), _MOST_BYTES)
    if not reader.eof or reader.unused_data:
        raise ValueError("no deletion vector")
    return bits
