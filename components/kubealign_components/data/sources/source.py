"""A source as a stage reads it: where it is, what its files hold, its rows, and what was wrong with them."""

from __future__ import annotations

import math
import reprlib
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from kubealign_components.config import require, semantic_params
from kubealign_components.data.fingerprint import digest, file_digest
from kubealign_components.data.sources.file_readers import Unreadable, kind_of, read_rows
from kubealign_components.data.sources.locate import Place, find_files
from kubealign_components.data.sources.messages import Malformed
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.progress import progress_bar

T = TypeVar("T")

DETECTION_ROWS = 64
EXAMPLES = 5

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring, _SHORT.maxother = 4, 8, 4, 120, 60


class Unwanted(Exception):
    """A sound row that the settings leave out; ``reason`` is the name it is counted under."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSettings:
    """Where the rows of one source are; stages add what they need to know of it."""

    name: str
    """What its rows are called in the ``source`` column; ``mix`` weighs by it."""
    uri: str
    """A file or folder (local, ``gs://``, ``s3://``), a folder that ``save_to_disk`` wrote, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; the commit it stands for is recorded."""
    split: str = "train"
    """Which split of a folder, saved dataset or hub dataset."""
    subset: str | None = None
    """Which configuration of the dataset card, when it has several."""

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "sources.name", self.name, "a name for the source")
        require(bool(self.uri.strip()), "sources.uri", self.uri, "a path, gs:// or s3:// URI, or hub id")


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedSource(SourceSettings):
    """A source of prompts, which ``mix`` weighs."""

    weight: float = 1.0
    """Relative weight of the source, for ``mix``."""

    def __post_init__(self) -> None:
        SourceSettings.__post_init__(self)
        require(
            math.isfinite(self.weight) and self.weight > 0, "sources.weight", self.weight, "a positive number"
        )


def require_sources(sources: Sequence[SourceSettings]) -> None:
    """Raise :class:`ConfigError` when two sources have one name."""
    names = Counter(source.name for source in sources)
    double = [name for name, count in names.items() if count > 1]
    require(not double, "sources", double, "a different name for every source")


def require_fraction(value: float) -> None:
    """Raise :class:`ConfigError` unless ``max_bad_fraction`` is one."""
    require(0 <= value <= 1, "max_bad_fraction", value, "a fraction from 0 to 1")


class SourceReader:
    """The rows of one source, read once; knows afterwards what the source was.

    Args:
        config: which source.

    Raises:
        ConfigError: there is no such source.
    """

    def __init__(self, config: SourceSettings) -> None:
        self.config = config
        self.place = _find(config)
        self.digests: list[list[str]] = []
        """Kind and SHA-256 of every file, in order."""
        self.format = ""
        self.rows = 0
        self.malformed: Counter[str] = Counter()
        self.examples: list[dict[str, Any]] = []

    def identity(self) -> dict[str, str]:
        """What the source's files hold: hub id and commit, or the digest of their bytes."""
        if self.place.hub is not None:
            return dict(zip(("hub", "commit"), self.place.hub))
        return {"sha256": self.digests[0][1] if len(self.digests) == 1 else digest(self.digests)}

    def settings(self) -> dict[str, Any]:
        """The part of the recipe that is about this source; places are not in it."""
        params = semantic_params(self.config)
        return {k: v for k, v in params.items() if k not in ("uri", "revision")} | {
            "content": self.identity()
        }

    def summary(self) -> dict[str, Any]:
        """What a manifest says of the source."""
        return {
            "name": self.config.name,
            "format": self.format,
            "rows": self.rows,
            "malformed": self.malformed.total(),
            "files": len(self.place.files),
        }

    def items(
        self,
        read: Callable[[object], T],
        stats: Stats,
        bar: Any,
        *,
        formats: Collection[str] = (),
        wanted: str = "auto",
        detect: Callable[[Iterable[object]], str | None] | None = None,
    ) -> Iterator[tuple[int, T]]:
        """Number of the row and what ``read`` makes of it, for every usable row; the others are counted.

        Args:
            read: may raise :class:`Malformed` (the row is held against the source) or :class:`Unwanted`.
            stats: where rows in and drops are counted.
            bar: progress in kilobytes.
            formats: names of the formats that ``detect`` knows.
            wanted: the format by name, or auto.
            detect: says which format the first rows look like; sets :attr:`format` before ``read`` is called.

        Raises:
            ConfigError: there are no rows, or they look like no format.
        """
        rows = self._raw_rows(bar)
        first = list(islice(rows, DETECTION_ROWS))
        self._set_format([row for _, _, row in first], formats, wanted, detect)
        for file, position, raw in chain(first, rows):
            self.rows += 1
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

    def check(self, max_bad_fraction: float) -> None:
        """Raise :class:`DataError` with examples when more rows than allowed are malformed."""
        bad = self.malformed.total()
        if bad <= max_bad_fraction * self.rows:
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.malformed.most_common())
        examples = "\n".join(
            f"  {e['file']} row {e['row']} ({e['reason']}): {e['text']}" for e in self.examples[:5]
        )
        raise DataError(
            f"source {self.config.name!r} read as {self.format}: {bad} of {self.rows} rows are malformed "
            f"({reasons}), max_bad_fraction allows {max_bad_fraction:g}; correct them, name another format "
            f"or allow more. The first:\n{examples}"
        )

    def _set_format(
        self,
        rows: Sequence[object],
        formats: Collection[str],
        wanted: str,
        detect: Callable[[Iterable[object]], str | None] | None,
    ) -> None:
        if not rows:
            raise ConfigError(
                f"sources.{self.config.name}.uri",
                self.config.uri,
                "rows; the file is empty, or all files are",
            )
        found = detect(rows) if wanted == "auto" and detect is not None else wanted
        if found is None:
            columns = sorted({str(key) for row in rows if isinstance(row, dict) for key in row})
            shown = f"columns {', '.join(columns[:12])}" if columns else f"no columns: {_SHORT.repr(rows[0])}"
            raise ConfigError(
                f"sources.{self.config.name}.format",
                "auto",
                f"rows of a known format ({', '.join(formats)}); the first {len(rows)} rows have {shown}",
            )
        self.format = found

    def _raw_rows(self, bar: Any) -> Iterator[tuple[str, int, object]]:
        """File name, row number in the file (from 1) and row, of every file of the source."""
        for file in self.place.files:
            with tempfile.TemporaryDirectory(prefix="kubealign-source-") as folder:
                path = file.fetch(Path(folder))
                size, shown = _kilobytes(path.stat().st_size), 0
                bar.total += size - _kilobytes(file.size)  # a listing does not always know sizes
                if self.place.hub is None:
                    self.digests.append([kind_of(file.name), file_digest(path)])
                for number, (row, done) in enumerate(read_rows(path, file.name), start=1):
                    yield file.name, number, row
                    now = int(size * min(1.0, done))
                    if now > shown:
                        bar.update(now - shown)
                        shown = now
                bar.update(size - shown)

    def _refuse(self, reason: str, row: object, file: str, number: int) -> None:
        """Count a malformed row and keep it as an example if it is among the first of its kind."""
        self.malformed[reason] += 1
        if self.malformed[reason] <= EXAMPLES:
            text = row.text[:400] if isinstance(row, Unreadable) else _SHORT.repr(row)[:400]
            self.examples.append(
                {"source": self.config.name, "file": file, "row": number, "reason": reason}
                | {"text": text.encode(errors="replace").decode()}
            )


def reading_bar(readers: Sequence[SourceReader], stage: str) -> Any:
    """A progress bar over the kilobytes of all sources."""
    sizes = sum(file.size for reader in readers for file in reader.place.files)
    return progress_bar(_kilobytes(sizes), "kB", f"{stage}: read")


def report_of(readers: Sequence[SourceReader]) -> dict[str, Any]:
    """What a manifest says of its sources, with examples of malformed rows."""
    return {
        "sources": [reader.summary() for reader in readers],
        "malformed": [example for reader in readers for example in reader.examples],
    }


def _find(source: SourceSettings) -> Place:
    try:
        return find_files(source.uri, split=source.split, revision=source.revision, subset=source.subset)
    except ConfigError as error:
        raise ConfigError(f"sources.{source.name}.{error.field}", error.value, error.expected) from error


def _kilobytes(size: int) -> int:
    return -(-size // 1000)
