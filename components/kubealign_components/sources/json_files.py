"""JSON: one row a line, lists of rows, rows over several lines, and tables; read row by row."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType

from kubealign_components.errors import DataError
from kubealign_components.sources.bytes_of import BLOCK_BYTES, MAX_ROW_BYTES, Row, Unreadable, opened
from kubealign_components.sources.json_tables import rows_in

_TRUNCATED = re.compile(r"Unterminated string|Invalid \\u")
_SPACE = re.compile(r"\s*")


class _KeyTwice(ValueError):
    """An object has a key twice: one of its values would be passed over."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _KeyTwice
    return members


def _number(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


# NaN and infinities, which JSON has not, are missing values.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=lambda _: None)


_NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


class _TooLong(DataError):
    """A value is longer than a row may be."""


def read_json(path: Path, name: str, columns: Mapping[str, str] = _NO_COLUMNS) -> Iterator[Row]:
    """Lists of rows, or what :func:`read_json_lines` reads: files of either kind are called ``.json``."""
    with opened(path, name) as (file, _):
        head = file.read(BLOCK_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"["):
        yield from _read_values(path, name)
    else:
        yield from read_json_lines(path, name, columns)


def read_json_lines(path: Path, name: str, columns: Mapping[str, str] = _NO_COLUMNS) -> Iterator[Row]:
    """One row a line, or over several lines each; the only value of a file may be a table of rows.

    A line that is no JSON is :class:`Unreadable`. ``columns`` are what rows' own columns mean, by name.
    """
    rows = (_read_values if _spans_lines(path, name) else _read_lines)(path, name)
    first = list(islice(rows, 2))
    if len(first) == 1:
        ((value, _),) = first
        yield from ((row, 1.0) for row in rows_in(value, columns))
    else:
        yield from chain(first, rows)


def _spans_lines(path: Path, name: str) -> bool:
    """Whether the first value of a file goes on after its first line.

    Raises:
        DataError: it is too long.
    """
    with opened(path, name) as (file, _):
        lines = iter(lambda: file.readline(MAX_ROW_BYTES).removeprefix(b"\xef\xbb\xbf"), b"")
        line = next((line for line in lines if line.strip()), b"")
    if not line.lstrip().startswith((b"{", b"[")) or not isinstance(_json_line(line), Unreadable):
        return False
    try:
        next(_read_values(path, name), None)
    except _TooLong:
        raise
    except (DataError, UnicodeDecodeError):
        return False
    return True


def _read_values(path: Path, name: str) -> Iterator[Row]:
    """The values of a file, one after another; a list is its items."""
    with opened(path, name) as (file, done):
        text = _Text(io.TextIOWrapper(file, "utf-8-sig"), name)
        while start := text.peek():
            yield from text.items(done) if start == "[" else ((text.item(), done()),)


def _read_lines(path: Path, name: str) -> Iterator[Row]:
    with opened(path, name) as (file, done):
        for number, line in enumerate(iter(lambda: file.readline(MAX_ROW_BYTES), b"")):
            if number == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _json_line(line), done()


def _json_line(line: bytes) -> object:
    try:
        return _DECODER.decode(line.decode())
    except UnicodeDecodeError:
        reason = "not_utf8"
    except _KeyTwice:
        reason = "key_twice"
    except (ValueError, RecursionError):  # ValueError: not JSON, or a number too long
        reason = "bad_json"
    return Unreadable(reason, line[:BLOCK_BYTES].decode(errors="replace").strip())


class _Text:
    """A window on JSON text that grows until what is asked for lies in it whole."""

    def __init__(self, file: io.TextIOBase, name: str) -> None:
        self._file, self._name = file, name
        self._window, self._at, self._before, self._ended = "", 0, 0, False
        self._decode = _DECODER.raw_decode

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            self._at = self._skip()
            if self._at < len(self._window) or not self._more():
                return self._window[self._at : self._at + 1]

    def expect(self, characters: str) -> str:
        """The next character that is no space, which must be one of ``characters``."""
        character = self.peek()
        if not character or character not in characters:
            raise self._damaged(
                f"expected one of {characters!r}, found {character or 'the end of the file'!r}"
            )
        self._at += 1
        return character

    def items(self, done: Callable[[], float]) -> Iterator[Row]:
        """The items of the list that begins here, parsed one by one as the file is read."""
        self.expect("[")
        if self.peek() == "]":
            self.expect("]")
            return
        while True:
            yield self.item(), done()
            if self.expect(",]") == "]":
                return

    def item(self) -> object:
        """The next JSON value."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._window, self._at)
            except json.JSONDecodeError as error:
                cut = _TRUNCATED.match(error.msg) or error.pos >= len(self._window) - 16
                if not cut or not self._more():
                    raise self._damaged(error.msg) from error
            except _KeyTwice as error:
                raise self._damaged("an object has a key twice") from error
            except (ValueError, RecursionError) as error:
                raise self._damaged(str(error)) from error
            else:
                length = end - self._at
                if length > MAX_ROW_BYTES:
                    raise self._too_long()
                # A number that ends near the end of the window may go on after it: "1.0e+" of 1.0e+16.
                if end + 2 < len(self._window) or not self._more():
                    self._at += length
                    return value

    def _skip(self) -> int:
        space = _SPACE.match(self._window, self._at)
        return space.end() if space else self._at

    def _more(self) -> bool:
        """Read on; False at the end of the file."""
        rest = self._window[self._at :]
        if len(rest) > MAX_ROW_BYTES:
            raise self._too_long()
        # Doubling keeps the work linear in the size of an item.
        block = self._file.read(max(BLOCK_BYTES, len(rest)))
        self._before += self._at
        self._window, self._at = rest + block, 0
        return bool(block)

    def _too_long(self) -> DataError:
        return _TooLong(
            f"{self._name} has an item of more than {MAX_ROW_BYTES} characters; write one row a line "
            "(JSON lines), or a list of rows"
        )

    def _damaged(self, problem: str) -> DataError:
        where = self._before + self._at
        return DataError(
            f"{self._name} is damaged in the item at character {where}: {problem}; fetch it again"
        )
