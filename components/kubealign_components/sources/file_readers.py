"""Files to rows, one at a time: JSON, JSON lines, CSV, text, Parquet and Arrow, compressed or not.

Readers yield what the file holds, whatever that is: a JSON line may be a number. What cannot be
read as a row is yielded as :class:`Unreadable` where reading can go on after it; a file that is
broken beyond that point is a :class:`DataError` that names it.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from kubealign_components.data.weight_files import is_lfs_pointer
from kubealign_components.errors import DataError
from kubealign_components.sources.arrow_files import read_arrow, read_parquet
from kubealign_components.sources.bytes_of import COMPRESSIONS, Reader, Row, Unreadable
from kubealign_components.sources.json_files import read_json, read_json_lines
from kubealign_components.sources.text_files import read_csv, read_lines, read_whole

__all__ = ["READERS", "UNTYPED", "Unreadable", "is_readable", "kind_of", "read_rows"]

_JSON = {".json": read_json, ".jsonl": read_json_lines, ".ndjson": read_json_lines}
READERS: dict[str, Reader] = {
    **_JSON,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_lines,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}
UNTYPED = (".csv", ".tsv")
"""Files whose cells are text, whatever was written: chats in them can only be JSON text."""


def read_rows(
    path: Path,
    name: str,
    *,
    whole_text: bool = False,
    columns: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Row]:
    """The rows of the file at ``path``, in bounded memory.

    Args:
        path: the file.
        name: what the source calls it; its suffix says how to read it.
        whole_text: a text file is one prompt, and not one a line.
        columns: what columns with names of the source's own mean, by name: what tells a row from a table.

    Raises:
        DataError: the file is damaged, or a pointer of Git LFS.
    """
    kind = kind_of(name)
    reader = read_whole if whole_text and kind == ".txt" else READERS[kind]
    if kind in _JSON:
        reader = partial(_JSON[kind], columns=columns)
    if is_lfs_pointer(path):
        raise DataError(
            f"{name} is a pointer of Git LFS and not the file itself; run git lfs pull in its folder, or "
            "download the dataset again"
        )
    try:
        yield from reader(path, name)
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 ({error}); convert it first") from error
    except (pa.ArrowException, OSError, EOFError, lzma.LZMAError, SystemError, ValueError) as error:
        raise DataError(f"{name} cannot be read as {kind[1:]}: {error}; fetch it again") from error


def kind_of(name: str) -> str:
    """The suffix that says how to read a file: of ``train.jsonl.gz`` it is ``.jsonl``."""
    suffixes = [s.lower() for s in Path(name).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_readable(name: str) -> bool:
    """Whether a file of this name holds rows."""
    return kind_of(name) in READERS
