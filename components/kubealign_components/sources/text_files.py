"""CSV and plain text: files without types."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from kubealign_components.errors import DataError
from kubealign_components.sources.bytes_of import BLOCK_BYTES, MAX_ROW_BYTES, Row, Unreadable, opened

_MISSING = ("", "NaN", "nan")
_HEADER_WORD = re.compile(r"#?[\w.-]+")
_DELIMITERS = ",;\t|"


def read_csv(path: Path, name: str) -> Iterator[Row]:
    """Rows as objects of strings; an empty cell is null, and so is pandas' NaN.

    Lines before the header that begin with ``#``, or say ``sep=;`` as Excel's do, are no rows. Cells are
    separated by what separates most of them in the header: comma, semicolon, tab or bar.

    Raises:
        DataError: a column stands twice in the header.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    with opened(path, name) as (file, done):
        lines = io.TextIOWrapper(file, "utf-8-sig", newline="")
        preamble = _preamble(lines)
        rows = csv.reader(_again(preamble, lines), delimiter=_delimiter(preamble[-1:], name), strict=True)
        try:
            header = _header(next(rows, []), name)
            for cells in rows:
                if cells:
                    yield _csv_row(header, cells), done()
        except csv.Error as error:
            raise DataError(
                f"{name} is damaged at line {rows.line_num}: {error}. In a quoted cell a quote is written "
                'twice (""); Spark writes a backslash before it, unless its option escape is a quote'
            ) from error


def read_lines(path: Path, name: str) -> Iterator[Row]:
    """One prompt a line; empty lines are none."""
    with opened(path, name) as (file, done):
        for line in iter(lambda: file.readline(MAX_ROW_BYTES), b""):
            text = line.decode("utf-8-sig").strip()
            if text:
                yield {"prompt": text}, done()


def read_whole(path: Path, name: str) -> Iterator[Row]:
    """The whole file as one prompt."""
    with opened(path, name) as (file, _):
        data = file.read(MAX_ROW_BYTES + 1)
    if len(data) > MAX_ROW_BYTES:
        yield Unreadable("too_long", data[:BLOCK_BYTES].decode(errors="replace")), 1.0
    elif text := data.decode("utf-8-sig").strip():
        yield {"prompt": text}, 1.0


def _preamble(lines: io.TextIOWrapper) -> list[str]:
    """The first lines: the header, last, without the comments before it."""
    comments: list[str] = []
    for line in lines:
        plain = line.strip()
        if plain and not plain.startswith("#") and not plain.lower().startswith("sep="):
            return _with_marked_header(comments, line)
        comments.append(line)
    return comments[-1:]


def _with_marked_header(comments: list[str], line: str) -> list[str]:
    """``line``, after a header that begins with ``#`` itself: single words, as many as the line has cells."""
    before = comments[-1] if comments else ""
    delimiter = _delimiter([line], "")
    words, cells = (next(csv.reader([text], delimiter=delimiter), []) for text in (before, line))
    named = len(words) == len(cells) > 1 and all(_HEADER_WORD.fullmatch(word.strip()) for word in words)
    return [before, line] if before.startswith("#") and named else [line]


def _again(first: Sequence[str], lines: io.TextIOWrapper) -> Iterator[str]:
    yield from first
    yield from lines


def _delimiter(header: Sequence[str], name: str) -> str:
    usual = "\t" if ".tsv" in name.lower() else ","
    text = header[0] if header else ""
    widths = {mark: len(next(csv.reader([text], delimiter=mark), [])) for mark in _DELIMITERS}
    return usual if widths[usual] > 1 else max(widths, key=lambda mark: (widths[mark], mark == usual))


def _header(cells: list[str], name: str) -> list[str]:
    named = [cell.strip().lstrip("#").strip() or f"column_{i}" for i, cell in enumerate(cells, start=1)]
    double = [cell for cell, count in Counter(named).items() if count > 1]
    if double:
        raise DataError(f"{name} has the column {double[0]!r} twice; rename one of the two")
    return named


def _csv_row(header: list[str], cells: list[str]) -> object:
    if len(cells) != len(header):
        return Unreadable("bad_csv", f"{len(cells)} cells under {len(header)} columns: {cells[:4]}")
    return {key: None if cell in _MISSING else cell for key, cell in zip(header, cells)}
