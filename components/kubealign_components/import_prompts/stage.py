"""import_prompts: prompts and offline completions of any number of sources, as one dataset.

Rows come out in the order of their prompt ids, which are content hashes: neither the order of the
sources nor of the rows in them changes the dataset, and every chunk of it is a fair mixture.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubealign_components.config import execution, require, require_choice, semantic_params
from kubealign_components.data.dataset import DatasetWriter
from kubealign_components.data.fingerprint import Provenance, derive, digest
from kubealign_components.data.schemas import PROMPTS
from kubealign_components.data.seeds import id_keys
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.import_prompts.formats import FORMATS, detect, parse
from kubealign_components.import_prompts.places import Place, find_files
from kubealign_components.import_prompts.readers import Unreadable, kind_of, read_rows
from kubealign_components.import_prompts.rows import merge_rows, to_row
from kubealign_components.import_prompts.spool import Entry, Spool
from kubealign_components.import_prompts.turns import Malformed
from kubealign_components.progress import progress_bar

VERSION = 1
DETECTION_ROWS = 64
EXAMPLES = 5
WRITE_ROWS = 256
ID_BATCH = 65536

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring, _SHORT.maxother = 4, 8, 4, 120, 60


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One source of prompts."""

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
    format: str = "auto"
    """What rows look like: auto (by the columns of the first rows) or one of the formats by name."""
    weight: float = 1.0
    """Relative weight of the source, for ``mix``."""
    max_rows: int = 0
    """Most prompts to take, a seeded sample; 0 for all."""

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "sources.name", self.name, "a name for the source")
        require(bool(self.uri.strip()), "sources.uri", self.uri, "a path, gs:// or s3:// URI, or hub id")
        require_choice("sources.format", self.format, ["auto", *FORMATS])
        require(
            math.isfinite(self.weight) and self.weight > 0, "sources.weight", self.weight, "a positive number"
        )
        require(self.max_rows >= 0, "sources.max_rows", self.max_rows, "a number of prompts, 0 for all")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """Settings of ``import_prompts``."""

    sources: tuple[SourceConfig, ...]
    """Where prompts come from; of a prompt that several have, the first gives it its name."""
    max_bad_fraction: float = execution(0.01)
    """Largest fraction of malformed rows in a source; more of them fail the stage."""
    max_rows: int = 0
    """Most prompts of all sources together, a seeded sample; 0 for all."""
    seed: int = 0
    """Decides which prompts ``max_rows`` keeps."""

    def __post_init__(self) -> None:
        require(bool(self.sources), "sources", self.sources, "at least one source")
        names = Counter(source.name for source in self.sources)
        double = [name for name, count in names.items() if count > 1]
        require(not double, "sources", double, "a different name for every source")
        require(
            0 <= self.max_bad_fraction <= 1,
            "max_bad_fraction",
            self.max_bad_fraction,
            "a fraction from 0 to 1",
        )
        require(self.max_rows >= 0, "max_rows", self.max_rows, "a number of prompts, 0 for all")


@dataclass(kw_only=True, slots=True)
class SourceReport:
    """What was found in one source."""

    config: SourceConfig
    place: Place
    digests: list[list[str]] = field(default_factory=list)
    """Kind and SHA-256 of every file, in order."""
    format: str = ""
    rows: int = 0
    malformed: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

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

    def refuse(self, reason: str, row: object, file: str, number: int) -> None:
        """Count a malformed row and keep it as an example if it is among the first of its kind."""
        self.malformed[reason] += 1
        if self.malformed[reason] <= EXAMPLES:
            text = row.text[:400] if isinstance(row, Unreadable) else _SHORT.repr(row)[:400]
            self.examples.append(
                {"source": self.config.name, "file": file, "row": number, "reason": reason}
                | {"text": text.encode(errors="replace").decode()}
            )


def run(config: ImportConfig, *, output: str) -> Stats:
    """Write the prompts of all sources to ``output`` (``kubealign.prompts/v1``).

    Args:
        config: the settings.
        output: URI of the dataset to make.

    Raises:
        ConfigError: a source that is not there, is empty, or whose rows look like no known format.
        DataError: a damaged file, or a source with more malformed rows than ``max_bad_fraction``.
        StoreError: a source that cannot be fetched, or no room for the rows.
    """
    reports = [SourceReport(config=source, place=_find(source)) for source in config.sources]
    stats = Stats()
    with Spool() as spool:
        sizes = sum(file.size for report in reports for file in report.place.files)
        with progress_bar(_kilobytes(sizes), "kB", "import_prompts: read") as bar:
            for number, report in enumerate(reports):
                spool.add(_entries(report, number, stats, bar))
                _check(report, config.max_bad_fraction)
        spool.sort()
        _write(config, reports, spool, stats, output)
    return stats


def _find(source: SourceConfig) -> Place:
    try:
        return find_files(source.uri, split=source.split, revision=source.revision, subset=source.subset)
    except ConfigError as error:
        raise ConfigError(f"sources.{source.name}.{error.field}", error.value, error.expected) from error


def _entries(report: SourceReport, number: int, stats: Stats, bar: Any) -> Iterator[Entry]:
    """The usable rows of one source for the spool; the others are counted."""
    rows = _raw_rows(report, bar)
    first = list(islice(rows, DETECTION_ROWS))
    report.format = _format_of(report.config, [row for _, _, row in first])
    for file, position, raw in chain(first, rows):
        report.rows += 1
        try:
            row = _read(raw, report, stats)
        except Malformed as problem:
            report.refuse(problem.reason, raw, file, position)
        else:
            yield row.pop("prompt_id"), number, report.rows, json.dumps(row, ensure_ascii=False)
    stats.rows_in += report.rows
    stats.dropped.update(report.malformed)


def _read(raw: object, report: SourceReport, stats: Stats) -> dict[str, Any]:
    if isinstance(raw, Unreadable):
        raise Malformed(raw.reason)
    example = parse(raw, FORMATS[report.format])
    row = to_row(example, report.config.name, report.config.weight)
    for reason, count in example.refused.items():
        stats.counts[f"completions_dropped_{reason}"] += count
    return row


def _raw_rows(report: SourceReport, bar: Any) -> Iterator[tuple[str, int, object]]:
    """File name, row number in the file (from 1) and row, of every file of a source."""
    for file in report.place.files:
        with tempfile.TemporaryDirectory(prefix="kubealign-source-") as folder:
            path = file.fetch(Path(folder))
            size, shown = _kilobytes(path.stat().st_size), 0
            bar.total += size - _kilobytes(file.size)  # a listing does not always know sizes
            if report.place.hub is None:
                report.digests.append([kind_of(file.name), _sha256(path)])
            for number, (row, done) in enumerate(read_rows(path, file.name), start=1):
                yield file.name, number, row
                now = int(size * min(1.0, done))
                if now > shown:
                    bar.update(now - shown)
                    shown = now
            bar.update(size - shown)


def _format_of(source: SourceConfig, rows: Sequence[object]) -> str:
    """The format by name, or that of the first rows.

    Raises:
        ConfigError: there are no rows, or they look like no format.
    """
    if not rows:
        raise ConfigError(
            f"sources.{source.name}.uri", source.uri, "rows; the file is empty, or all files are"
        )
    if source.format != "auto":
        return source.format
    found = detect(rows)
    if found is None:
        columns = sorted({str(key) for row in rows if isinstance(row, dict) for key in row})
        raise ConfigError(
            f"sources.{source.name}.format",
            "auto",
            f"rows of a known format ({', '.join(FORMATS)}); the first {len(rows)} rows have "
            f"{'columns ' + ', '.join(columns[:12]) if columns else 'no columns: ' + _SHORT.repr(rows[0])}",
        )
    return found


def _check(report: SourceReport, max_bad_fraction: float) -> None:
    bad = report.malformed.total()
    if bad <= max_bad_fraction * report.rows:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in report.malformed.most_common())
    examples = "\n".join(
        f"  {e['file']} row {e['row']} ({e['reason']}): {e['text']}" for e in report.examples[:5]
    )
    raise DataError(
        f"source {report.config.name!r} read as {report.format}: {bad} of {report.rows} rows are malformed "
        f"({reasons}), max_bad_fraction allows {max_bad_fraction:g}; correct them, name another format or "
        f"allow more. The first:\n{examples}"
    )


def _write(
    config: ImportConfig, reports: Sequence[SourceReport], spool: Spool, stats: Stats, output: str
) -> None:
    """One row a prompt, in the order of the prompt ids."""
    kept = _sample(config, spool)
    with (
        DatasetWriter(output, PROMPTS, _provenance(config, reports)) as writer,
        progress_bar(len(kept), "prompts", "import_prompts: write") as bar,
    ):
        pending: list[dict[str, Any]] = []
        for keep, (name, group) in zip(kept, spool.groups(), strict=True):
            stats.drop("duplicate_prompt", len(group) - 1)
            if keep:
                pending.append(_row(name, group, stats))
            else:
                stats.drop("over_max_rows")
            if len(pending) == WRITE_ROWS:
                writer.write_rows(pending)
                pending = []
            bar.update()
        writer.write_rows(pending)
        stats.rows_out = writer.rows
        writer.commit(stats, extra=_extra(reports))


def _row(name: str, group: Sequence[tuple[int, str]], stats: Stats) -> dict[str, Any]:
    merged = merge_rows([json.loads(body) for _, body in group], stats.counts)
    stats.counts["completions"] += len(merged["completions"])
    return {"prompt_id": name, **merged}


def _sample(config: ImportConfig, spool: Spool) -> NDArray[np.bool_]:
    """Which prompts to keep, in the order of the spool; shape (prompts,).

    The prompts of a source with the smallest keys are kept, then those of all sources together: a
    seeded sample that a row's place cannot influence, in 10 bytes of memory a prompt.
    """
    keys: list[NDArray[np.uint64]] = []
    sources: list[NDArray[np.int16]] = []
    prompts = spool.prompts()
    while batch := list(islice(prompts, ID_BATCH)):
        keys.append(id_keys(pa.array([name for name, _ in batch]), config.seed, "import_prompts"))
        sources.append(np.array([source for _, source in batch], dtype=np.int16))
    if not keys:
        return np.zeros(0, dtype=bool)
    key, source = np.concatenate(keys), np.concatenate(sources)
    keep = np.ones(len(key), dtype=bool)
    for number, settings in enumerate(config.sources):
        _limit(keep, source == number, key, settings.max_rows)
    _limit(keep, keep.copy(), key, config.max_rows)
    return keep


def _limit(keep: NDArray[np.bool_], among: NDArray[np.bool_], key: NDArray[np.uint64], most: int) -> None:
    """Keep only the ``most`` rows ``among`` these that have the smallest keys; 0 for all."""
    rows = np.flatnonzero(among)
    if 0 < most < len(rows):
        order = np.argsort(key[rows], kind="stable")
        keep[rows[order[most:]]] = False


def _provenance(config: ImportConfig, reports: Sequence[SourceReport]) -> Provenance:
    sampled = config.max_rows or any(source.max_rows for source in config.sources)
    params = {
        "sources": [report.settings() for report in reports],
        "max_rows": config.max_rows,
        "seed": config.seed if sampled else None,
    }
    return derive("import_prompts", VERSION, params, slug=[source.name for source in config.sources])


def _extra(reports: Sequence[SourceReport]) -> dict[str, Any]:
    sources = [
        {"name": r.config.name, "format": r.format, "rows": r.rows, "malformed": r.malformed.total()}
        | {"files": len(r.place.files)}
        for r in reports
    ]
    return {"sources": sources, "malformed": [example for report in reports for example in report.examples]}


def _kilobytes(size: int) -> int:
    return -(-size // 1000)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
