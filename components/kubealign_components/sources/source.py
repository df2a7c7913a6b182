"""A source as a stage reads it: where it is, what its files hold, its rows, and what was wrong with them."""

from __future__ import annotations

import reprlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kubealign_components.config import semantic_params
from kubealign_components.data.fingerprint import digest, file_digest
from kubealign_components.data.licenses import strictest
from kubealign_components.data.origins import note_origin
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.json_types import JsonObject
from kubealign_components.progress import progress_bar
from kubealign_components.sources.external_sort import Entry, Spool
from kubealign_components.sources.file_readers import UNTYPED, Unreadable, kind_of, read_rows
from kubealign_components.sources.locate import SourceFile, SourceFiles, find_files
from kubealign_components.sources.messages import turns_from_text
from kubealign_components.sources.refusals import ADVICE, shape_of
from kubealign_components.sources.scales import NoVerdicts, Scales
from kubealign_components.sources.source_settings import SourceSettings
from kubealign_components.sources.values import Malformed, from_json_text, list_from_text

if TYPE_CHECKING:
    from typing import NoReturn

    from tqdm import tqdm

T = TypeVar("T")

DETECTION_ROWS = 64
EXAMPLES = 5
MIXED = "+"
"""Between the formats of a source whose rows have several, the usual one first."""
NOTED_NAMES = 100
"""Different things that are counted by name in a source; the others are counted together."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring, _SHORT.maxother = 4, 8, 4, 120, 60


class Unwanted(Exception):
    """A sound row that the settings leave out; ``reason`` is the name it is counted under."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SourceReader:
    """The rows of one source, read once; knows afterwards what the source was.

    Args:
        config: which source.

    Raises:
        ConfigError: there is no such source.
    """

    def __init__(self, config: SourceSettings) -> None:
        self.config = config
        self.source = _find(config)
        self.digests: list[list[str]] = []
        """Kind and SHA-256 of every file."""
        self.format = ""
        self.other_formats: set[str] = set()
        """Of rows that were read in another than that."""
        self.misread = ""
        """The format that most rows turned out to have, where they were read in another one."""
        self.rows = 0
        self.malformed: Counter[str] = Counter()
        self.examples: list[dict[str, object]] = []
        self.notes: Counter[str] = Counter()
        """What rows hold and the dataset does not, by name."""
        self.scales = Scales()
        """Of its columns of verdicts."""
        self._columns: set[str] = set()
        self._content: list[list[str]] | None = None
        self._readings = 0

    @property
    def size(self) -> int:
        """Bytes of all its files, as far as a listing knows them."""
        return sum(file.size for file in self.source.files)

    def note(self, notes: Mapping[str, int]) -> None:
        """Count what a row holds and its example does not."""
        for name, count in notes.items():
            kept = name in self.notes or len(self.notes) < NOTED_NAMES
            plain = name[:80].encode(errors="replace").decode()
            self.notes[plain if kept else "others_not_kept"] += count

    def start_again(self) -> None:
        """Forget what was read, to read it once more in the format that most rows have."""
        self.format, self.misread, self.rows = self.misread, "", 0
        for read in (self.digests, self.other_formats, self.malformed, self.examples, self.notes):
            read.clear()
        self.scales.clear()

    def identity(self) -> dict[str, str]:
        """What the source's files hold: hub id and commit, or the digest of their bytes."""
        if self.source.hub is not None:
            note_origin(self.source.hub[1], *self.source.hub)
            return dict(zip(("hub", "commit"), self.source.hub))
        if len(self.digests) == 1:
            [(kind, content)] = self.digests
            note_origin(content, self.config.uri)
            return {"sha256": content, "kind": kind}
        content = digest(sorted(self.digests))
        note_origin(content, self.config.uri)
        return {"sha256": content}

    def content(self) -> list[list[str]]:
        """What tells the source's files from others before a row of them is read: hub id and commit, or of
        every file its name, and its digest or, of an object, its version."""
        if self.source.hub is not None:
            return [list(self.source.hub)]
        if self._content is None:
            self._content = sorted(
                [file.name, file.version or _digest_of(file)] for file in self.source.files
            )
        return self._content

    def settings(self) -> JsonObject:
        """The part of the recipe that is about this source; places are not in it."""
        formats = MIXED.join([self.format, *sorted(self.other_formats)])
        return self.own_settings() | {"content": self.identity()} | ({"format": formats} if formats else {})

    def own_settings(self) -> JsonObject:
        """The settings without the place; with the licence where there is one, the stricter of what the
        settings and the source's card say."""
        own = semantic_params(self.config)
        license = strictest(self.config.license, self.source.license)
        own = {name: value for name, value in own.items() if name not in ("uri", "revision", "license")}
        return own | ({"license": license} if license else {})

    def summary(self) -> dict[str, object]:
        """What a manifest says of the source."""
        return {
            "name": self.config.name,
            "format": self.format,
            "rows": self.rows,
            "malformed": self.malformed.total(),
            "noticed": dict(sorted(self.notes.items())),
            "files": len(self.source.files),
        } | ({"files_not_read": list(self.source.unread[:EXAMPLES])} if self.source.unread else {})

    def items(
        self,
        read: Callable[[object], T],
        stats: Stats,
        bar: tqdm[NoReturn],
        *,
        formats: Mapping[str, str] | None = None,
        row_format: str = "auto",
        looks_like: Callable[[object], str | None] | None = None,
    ) -> Iterator[tuple[int, T]]:
        """Number of the row and what ``read`` makes of it, for every usable row; the others are counted.

        Args:
            read: may raise :class:`Malformed` (the row is held against the source) or :class:`Unwanted`.
            stats: where rows in and drops are counted.
            bar: progress in kilobytes.
            formats: the formats that ``looks_like`` knows, and the columns that each is known by.
            row_format: the format by name, or auto: then the first rows say which it seems to be, and all of
                them whether it is; see :attr:`misread`.
            looks_like: says which format a row looks like; :attr:`format` is set before ``read`` is called.

        Raises:
            ConfigError: there are no rows, or they look like no format.
        """
        rows = self._raw_rows(bar)
        first = list(islice(rows, DETECTION_ROWS))
        self._check_columns()
        looked_at = looks_like if row_format == "auto" else None
        if self.source.unread:
            self.notes["files_not_read"] = len(self.source.unread)
        self._set_format([row for _, _, row in first], formats or {}, row_format, looked_at)
        looks: Counter[str] = Counter()
        for file, position, raw in chain(first, rows):
            self.rows += 1
            if looked_at is not None and (look := looked_at(raw)):
                looks[look] += 1
            try:
                if isinstance(raw, Unreadable):
                    raise Malformed(raw.reason)
                item = read(raw)
            except Malformed as problem:
                self._refuse(problem.reason, raw, file, position)
            except Unwanted as choice:
                stats.drop(choice.reason)
            else:
                yield self.rows, item
        stats.rows_in += self.rows
        stats.dropped.update(self.malformed)
        stats.counts.update(self.notes)
        usual = _most_frequent(looks, formats or {})
        self.misread = usual if usual and usual != self.format else ""

    def check(self, max_bad_fraction: float) -> None:
        """Raise :class:`DataError` with examples when more rows than allowed are malformed, and
        :class:`NoVerdicts` when all rows together say that a column of verdicts is on another scale than they
        were read on."""
        for column, why in self.scales.problems():
            raise NoVerdicts(
                f"source {self.config.name!r}: {column} cannot be read as verdicts: {why}. Name the better "
                "answer of two in a column choice, put 1 or 0 for a single one into label, or say what the "
                f"column is: columns: {{{column}: score}} for points, {{{column}: metadata}} for nothing"
            )
        bad = self.malformed.total()
        if bad <= max_bad_fraction * self.rows:
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.malformed.most_common())
        advice = [
            f"{reason}: {ADVICE[reason]}" for reason, _ in self.malformed.most_common() if reason in ADVICE
        ]
        examples = "\n".join(
            f"  {e['file']} row {e['row']} ({e['reason']}): {e['text']}" for e in self.examples[:5]
        )
        raise DataError(
            f"source {self.config.name!r} read as {self.format}: {bad} of {self.rows} rows are malformed "
            f"({reasons}), max_bad_fraction allows {max_bad_fraction:g}; correct them, name another format, "
            f"or raise max_bad_fraction (in import_options, for import_prompts). "
            f"{''.join(f'{sentence}. ' for sentence in advice[:2])}The first:\n{examples}"
        )

    def _set_format(
        self,
        rows: Sequence[object],
        formats: Mapping[str, str],
        row_format: str,
        looks_like: Callable[[object], str | None] | None,
    ) -> None:
        """Go by what the first ``rows`` look like, where nothing is known of all of them yet."""
        if not rows:
            raise ConfigError(
                f"sources.{self.config.name}.uri",
                self.config.uri,
                "rows; the file is empty, or all files are",
            )
        if looks_like is None:
            self.format = row_format
            return
        looks = Counter(look for row in rows if (look := looks_like(row)))
        self.format = self.format or _most_frequent(looks, formats)
        if not self.format:
            shape = next((shape_of(row) for row in rows if isinstance(row, Mapping)), None)
            wants = "; ".join(f"{name}: {columns}" for name, columns in formats.items())
            advice = f"What formats are known by: {wants}. Name yours in columns: {{yours: prompt, …}}"
            if shape:
                advice = f"{ADVICE[shape][0].upper()}{ADVICE[shape][1:]}"
            raise ConfigError(
                f"sources.{self.config.name}.format",
                "auto",
                f"rows of a known format; the first {len(rows)} rows have {_columns_text(rows)}. {advice}",
            )

    def _check_columns(self) -> None:
        """Raise :class:`ConfigError` for a mapped column that no row has so far."""
        for column in self.config.columns if self._columns else ():
            if column not in self._columns:
                raise ConfigError(
                    f"sources.{self.config.name}.columns",
                    column,
                    f"a column; the rows have the columns {', '.join(sorted(self._columns)[:24])}",
                )

    def _raw_rows(self, bar: tqdm[NoReturn]) -> Iterator[tuple[str, int, object]]:
        """File name, row number in the file (from 1) and row, of every file of the source."""
        self._readings += 1
        if self._readings > 1:  # the bar has come to the end of it once
            bar.total = (bar.total or 0) + _kilobytes(self.size)
        for file in self.source.files:
            with tempfile.TemporaryDirectory(prefix="kubealign-source-") as folder:
                path = file.fetch(Path(folder))
                size, shown = _kilobytes(path.stat().st_size), 0
                bar.total = (
                    (bar.total or 0) + size - _kilobytes(file.size)
                )  # a listing does not always know sizes
                if self.source.hub is None:
                    self.digests.append([kind_of(file.name), file_digest(path)])
                whole = self.config.text == "file"
                rows = read_rows(path, file.name, whole_text=whole, columns=self.config.columns)
                for number, (row, done) in enumerate(rows, start=1):
                    yield file.name, number, self._prepared(row, file.name)
                    now = int(size * min(1.0, done))
                    if now > shown:
                        bar.update(now - shown)
                        shown = now
                bar.update(size - shown)

    def _prepared(self, row: object, file: str) -> object:
        """The row with its columns named by what they mean, and JSON text parsed where it is no text."""
        if not isinstance(row, Mapping):
            return row
        config = self.config
        if kind_of(file) in UNTYPED:
            row = {key: _parsed(value, config.role_names) for key, value in row.items()}
        if config.json_columns:
            row = {k: from_json_text(v) if k in config.json_columns else v for k, v in row.items()}
        if config.columns:
            self._columns.update(map(str, row))
            self._refuse_two_meanings(row)
        return config.renamed(row)

    def _refuse_two_meanings(self, row: Mapping[object, object]) -> None:
        for column, meaning in self.config.columns.items():
            if meaning in row and meaning not in self.config.columns and column in row:
                raise ConfigError(
                    f"sources.{self.config.name}.columns",
                    column,
                    f"no second {meaning}: the rows have a column of that name, too; map that one "
                    "as well, to metadata if it shall mean nothing",
                )

    def _refuse(self, reason: str, row: object, file: str, number: int) -> None:
        """Count a malformed row and keep it as an example if it is among the first of its kind."""
        self.malformed[reason] += 1
        if self.malformed[reason] <= EXAMPLES:
            text = row.text[:400] if isinstance(row, Unreadable) else _SHORT.repr(row)[:400]
            self.examples.append(
                {"source": self.config.name, "file": file, "row": number, "reason": reason}
                | {"text": text.encode(errors="replace").decode()}
            )


def take_in(
    spool: Spool,
    readers: Sequence[SourceReader],
    entries: Callable[[int, SourceReader, Stats], Iterable[Entry]],
    stats: Stats,
    max_bad_fraction: float,
) -> None:
    """Bring the rows of all sources into ``spool``.

    A source is read once more where its first rows had another format than most of them: what it gives must
    not depend on which of its rows or files come first.

    Args:
        spool: where they go.
        readers: of the sources.
        entries: the usable rows of the source of that number; the others are counted.
        stats: where rows are counted.
        max_bad_fraction: see :meth:`SourceReader.check`.
    """
    for number, reader in enumerate(readers):
        seen = Stats()
        spool.add(entries(number, reader, seen))
        if reader.misread:
            spool.forget(number)
            reader.start_again()
            seen = Stats()
            spool.add(entries(number, reader, seen))
        reader.check(max_bad_fraction)
        stats.add(seen)


def reading_bar(readers: Sequence[SourceReader], stage: str) -> tqdm[NoReturn]:
    """A progress bar over the kilobytes of all sources."""
    sizes = sum(reader.size for reader in readers)
    return progress_bar(_kilobytes(sizes), "kB", f"{stage}: read")


def report_of(readers: Sequence[SourceReader]) -> dict[str, object]:
    """What a manifest says of its sources, with examples of malformed rows."""
    return {
        "sources": [reader.summary() for reader in readers],
        "malformed": [example for reader in readers for example in reader.examples],
    }


def _most_frequent(looks: Mapping[str, int], formats: Iterable[str]) -> str:
    """Of several that are as frequent, the first in ``formats``; empty where there is none."""
    return max(formats, key=lambda name: looks.get(name, 0), default="") if any(looks.values()) else ""


def _digest_of(file: SourceFile) -> str:
    with tempfile.TemporaryDirectory(prefix="kubealign-read-") as folder:
        return file_digest(file.fetch(Path(folder)))


def _columns_text(rows: Sequence[object]) -> str:
    """What stands in the first rows, for an error."""
    columns = sorted({str(key) for row in rows if isinstance(row, Mapping) for key in row})
    if columns:
        more = f" and {len(columns) - 24} more" if len(columns) > 24 else ""
        return f"the columns {', '.join(columns[:24])}{more}"
    first = rows[0]
    if isinstance(first, Unreadable):
        return f"no row that can be read ({first.reason}): {first.text[:120]!r}"
    return f"no columns: {_SHORT.repr(first)}"


def _parsed(cell: object, roles: Mapping[str, str]) -> object:
    """What a cell without a type says: a chat or a list of texts in JSON, else its text."""
    value = turns_from_text(cell, roles)
    return list_from_text(value) if isinstance(value, str) else value


def _find(source: SourceSettings) -> SourceFiles:
    try:
        return find_files(source.uri, split=source.split, revision=source.revision, subset=source.subset)
    except ConfigError as error:
        raise ConfigError(f"sources.{source.name}.{error.field}", error.value, error.expected) from error


def _kilobytes(size: int) -> int:
    return -(-size // 1000)
