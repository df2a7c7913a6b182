"""The bytes of a source's file, decompressed, and what a place in it can hold instead of a row."""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from kubealign_components.errors import DataError

BLOCK_BYTES = 2**20
MAX_ROW_BYTES = 64 * 2**20
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_NO_TEXT = {
    b"\x1f\x8b": "compressed by gzip; call it {name}.gz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; call it {name}.zst",
    b"PK\x03\x04": "a ZIP archive, as .xlsx files are; take the file of text out of it",
    b"PAR1": "a Parquet file; call it so",
}
"""How files begin that are no text, and what to do about them."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Where a row should be and is not: the reason to count it under, and what stands there."""

    reason: str
    text: str


Row = tuple[object, float]
"""What a file holds at one place, and the fraction of the file read so far (about)."""
Reader = Callable[[Path, str], Iterator[Row]]


@contextmanager
def opened(path: Path, name: str) -> Iterator[tuple[BinaryIO, Callable[[], float]]]:
    """The bytes of a text file, decompressed, and a function that says what fraction has been read.

    Raises:
        DataError: the file begins as one in UTF-16 does, or as one that is no text.
    """
    size = max(1, path.stat().st_size)
    compression = COMPRESSIONS.get(Path(name).suffix.lower())
    with path.open("rb") as raw:
        stream: io.BufferedIOBase | BinaryIO = raw
        if compression == "xz":
            stream = io.BufferedReader(cast("io.RawIOBase", lzma.open(raw)), BLOCK_BYTES)  # noqa: SIM115
        elif compression is not None:
            stream = io.BufferedReader(pa.CompressedInputStream(raw, compression), BLOCK_BYTES)
        file = cast("io.BufferedReader", stream)
        _refuse_others(file.peek(4)[:4], name)
        yield cast("BinaryIO", file), lambda: raw.tell() / size


def _refuse_others(head: bytes, name: str) -> None:
    for start, what in _NO_TEXT.items():
        if head.startswith(start):
            raise DataError(f"{name} is expected to be text, and is {what.format(name=name)}")
    # Text begins with an ASCII character more often than not: in UTF-16 every other byte of it is 0.
    mark = _MARKS.get(head[:2]) or ("UTF-16" if len(head) == 4 and head.count(0) == 2 else None)
    if mark is not None:
        raise DataError(
            f"{name} is {mark}, expected UTF-8; convert it first: iconv -f {mark} -t UTF-8 {name}"
        )
