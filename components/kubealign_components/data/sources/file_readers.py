"""Files to rows, one at a time: JSON, JSON lines, CSV, Parquet and Arrow, compressed or not.

Readers yield what the file holds, whatever that is: a JSON line may be a number. What cannot be
read as a row is yielded as :class:`Unreadable` where reading can go on after it; a file that is
broken beyond that point is a :class:`DataError` that names it.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from kubealign_components.errors import DataError

BLOCK_BYTES = 2**20
MAX_ROW_BYTES = 64 * 2**20
BATCH_ROWS = 256
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}

_TRUNCATED = re.compile(r"Unterminated string|Invalid \\u")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Where a row should be and is not: the reason to count it under, and what stands there."""

    reason: str
    text: str


Row = tuple[object, float]
"""What a file holds at one place, and the fraction of the file read so far (about)."""
Reader = Callable[[Path, str], Iterator[Row]]


def read_rows(path: Path, name: str) -> Iterator[Row]:
    """The rows of the file at ``path``, in bounded memory.

    Args:
        path: the file.
        name: what the source calls it; its suffix says how to read it.

    Raises:
        DataError: the file is damaged.
    """
    try:
        yield from READERS[kind_of(name)](path, name)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, EOFError) as error:
        raise DataError(f"{name} cannot be read as {kind_of(name)[1:]}: {error}; fetch it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 ({error}); convert it first") from error


def kind_of(name: str) -> str:
    """The suffix that says how to read a file: of ``train.jsonl.gz`` it is ``.jsonl``."""
    suffixes = [s.lower() for s in Path(name).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_readable(name: str) -> bool:
    """Whether a file of this name holds rows."""
    return kind_of(name) in READERS


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[BinaryIO, Callable[[], float]]]:
    """The bytes of a file, decompressed, and a function that says what fraction has been read."""
    size = max(1, path.stat().st_size)
    compression = COMPRESSIONS.get(Path(name).suffix.lower())
    with path.open("rb") as raw:
        if compression is None:
            yield raw, lambda: raw.tell() / size
            return
        with pa.CompressedInputStream(raw, compression) as stream:
            yield io.BufferedReader(stream, BLOCK_BYTES), lambda: raw.tell() / size


def _read_json(path: Path, name: str) -> Iterator[Row]:
    """A list of rows, or one row a line: files of either kind are called ``.json``."""
    with _opened(path, name) as (file, _):
        head = file.read(BLOCK_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
    yield from (_read_json_list if head.startswith(b"[") else _read_json_lines)(path, name)


def _read_json_lines(path: Path, name: str) -> Iterator[Row]:
    with _opened(path, name) as (file, done):
        for number, line in enumerate(iter(lambda: file.readline(MAX_ROW_BYTES), b"")):
            if number == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _json_line(line), done()


def _json_line(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # ValueError: not JSON, not UTF-8, or a number too long
        return Unreadable("bad_json", line[:BLOCK_BYTES].decode(errors="replace").strip())


def _read_json_list(path: Path, name: str) -> Iterator[Row]:
    """The items of a JSON list, parsed one by one as the file is read."""
    with _opened(path, name) as (file, done):
        text = _Text(io.TextIOWrapper(file, "utf-8-sig"), name)
        text.expect("[")
        if text.peek() == "]":
            return
        while True:
            yield text.item(), done()
            if text.expect(",]") == "]":
                return


class _Text:
    """A window on JSON text that grows until what is asked for lies in it whole."""

    def __init__(self, file: io.TextIOBase, name: str) -> None:
        self._file, self._name = file, name
        self._window, self._at, self._before, self._ended = "", 0, 0, False
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            self._at = self._skip()
            if self._at < len(self._window) or not self._more():
                return self._window[self._at : self._at + 1]

    def expect(self, characters: str) -> str:
        """The next character that is no space, which must be one of ``characters``."""
        found = self.peek()
        if not found or found not in characters:
            raise self._damaged(f"expected one of {characters!r}, found {found or 'the end of the file'!r}")
        self._at += 1
        return found

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
            except (ValueError, RecursionError) as error:
                raise self._damaged(str(error)) from error
            else:
                # A number that ends with the window may go on after it.
                if end < len(self._window) or not self._more():
                    self._at = end
                    return value

    def _skip(self) -> int:
        space = _SPACE.match(self._window, self._at)
        return space.end() if space else self._at

    def _more(self) -> bool:
        """Read on; False at the end of the file."""
        rest = self._window[self._at :]
        if len(rest) > MAX_ROW_BYTES:
            raise self._damaged(f"an item of more than {MAX_ROW_BYTES} characters")
        # Doubling keeps the work linear in the size of an item.
        block = self._file.read(max(BLOCK_BYTES, len(rest)))
        self._before += self._at
        self._window, self._at = rest + block, 0
        return bool(block)

    def _damaged(self, problem: str) -> DataError:
        where = self._before + self._at
        return DataError(
            f"{self._name} is damaged in the item at character {where}: {problem}; fetch it again"
        )


def _read_csv(path: Path, name: str) -> Iterator[Row]:
    """Rows as objects of strings; an empty cell is null."""
    csv.field_size_limit(MAX_ROW_BYTES)
    with _opened(path, name) as (file, done):
        lines = io.TextIOWrapper(file, "utf-8-sig", newline="")
        rows = csv.reader(lines, delimiter="\t" if kind_of(name) == ".tsv" else ",")
        try:
            header = next(rows, [])
            for cells in rows:
                if cells:
                    yield _csv_row(header, cells), done()
        except csv.Error as error:
            raise DataError(f"{name} is damaged at line {rows.line_num}: {error}") from error


def _csv_row(header: list[str], cells: list[str]) -> object:
    if len(cells) != len(header):
        return Unreadable("bad_csv", f"{len(cells)} cells under {len(header)} columns: {cells[:4]}")
    return {key: cell or None for key, cell in zip(header, cells)}


def _read_parquet(path: Path, _name: str) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        total, seen = max(1, file.metadata.num_rows), 0
        for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
            for row in batch.to_pylist():
                seen += 1
                yield row, seen / total


def _read_arrow(path: Path, _name: str) -> Iterator[Row]:
    """The Arrow streams that ``save_to_disk`` writes, or Arrow files."""
    with pa.memory_map(str(path)) as file:
        size = max(1, file.size())
        for batch in _arrow_batches(file):
            for start in range(0, batch.num_rows, BATCH_ROWS):
                for row in batch.slice(start, BATCH_ROWS).to_pylist():
                    yield row, file.tell() / size


def _arrow_batches(file: Any) -> Iterator[pa.RecordBatch]:
    if file.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(file)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        file.seek(0)
        yield from pa.ipc.open_stream(file)


READERS: dict[str, Reader] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
