"""clean_pmp: human preferences to reward-model pairs, for preference-model pre-training.

Pairs come out in the order of their ids, which are content hashes, and a hash-based coin decides which
completion is shown first: neither the order of the rows nor the source's habit of naming the better
completion first is left in the dataset.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from kubealign_components.clean_pmp.pairs import PAIR_FORMATS, looks_like_pair, read_pair
from kubealign_components.config import execution, gate, require, require_choice
from kubealign_components.data.batches import batched
from kubealign_components.data.dataset import DatasetWriter
from kubealign_components.data.fingerprint import Provenance, canonical_json, derive
from kubealign_components.data.finished import OutputRequest, once
from kubealign_components.data.schemas import PREFERENCES
from kubealign_components.data.seeds import is_held_out, require_validation_fraction, unit_interval
from kubealign_components.data.stats import Stats
from kubealign_components.data.withdrawals import Withdrawal, read_withdrawal
from kubealign_components.json_types import JsonObject
from kubealign_components.progress import progress_bar
from kubealign_components.sources.external_sort import Entry, Spool
from kubealign_components.sources.prompt_writer import WRITE_ROWS, sample
from kubealign_components.sources.request import requested
from kubealign_components.sources.source import SourceReader, reading_bar, report_of, take_in
from kubealign_components.sources.source_settings import SourceSettings, named_sources, require_fraction
from kubealign_components.sources.withdrawn_rows import WithdrawnRows

if TYPE_CHECKING:
    from typing import NoReturn

    from tqdm import tqdm

VERSION = 9

Row = JsonObject


@dataclass(frozen=True, kw_only=True, slots=True)
class PmpSource(SourceSettings):
    """One source of human preferences."""

    format: str = "auto"
    """What rows look like: auto (by the columns of most rows), shp, or a format of import_prompts."""
    max_rows: int = 0
    """Most pairs to take, a seeded sample; 0 for all."""

    def __post_init__(self) -> None:
        SourceSettings.__post_init__(self)
        require_choice("sources.format", self.format, ["auto", *PAIR_FORMATS])
        require(self.max_rows >= 0, "sources.max_rows", self.max_rows, "a number of pairs, 0 for all")


@dataclass(frozen=True, kw_only=True, slots=True)
class CleanPmpConfig:
    """Settings of ``clean_pmp``."""

    sources: tuple[PmpSource, ...]
    """Where pairs come from; of a pair that several have, the first gives it its name."""
    min_score_ratio: float = 2.0
    """Rows with SHP's scores are kept when the better score is more than so many times the other."""
    max_rows: int = 0
    """Most pairs of all sources together, a seeded sample; 0 for all."""
    validation_fraction: float = 0.05
    """Share of prompts that are held out."""
    max_bad_fraction: float = gate(0.01)
    """Largest fraction of malformed rows in a source; more of them fail the stage."""
    seed: int = 0
    """Decides which completion is shown first, the split, and which pairs ``max_rows`` keeps."""
    withdrawn: str = execution("")
    """Path or URI of a withdrawal, of which nothing is taken: `kubealign withdraw` writes one."""
    work: str = execution("")
    """Work prefix: what was finished there before, with these settings on these rows, is taken."""

    def __post_init__(self) -> None:
        require(bool(self.sources), "sources", self.sources, "at least one source")
        object.__setattr__(self, "sources", named_sources(self.sources))
        require_fraction(self.max_bad_fraction)
        require(self.min_score_ratio >= 0, "min_score_ratio", self.min_score_ratio, "0 or more")
        require(self.max_rows >= 0, "max_rows", self.max_rows, "a number of pairs, 0 for all")
        require_validation_fraction(self.validation_fraction)


def run(config: CleanPmpConfig, *, output: str) -> Stats:
    """Write the pairs of all sources to ``output`` (``kubealign.preferences/v1``).

    A pair that stands in the sources several times is one pair; when they disagree on which completion
    is preferred, it is none.

    Args:
        config: the settings.
        output: URI of the dataset to make.

    Raises:
        ConfigError: no such withdrawal, or a source that is not there, is empty, or whose rows look like no
            known format.
        DataError: a damaged file, or a source with more malformed rows than ``max_bad_fraction``.
        StoreError: a source that cannot be fetched, or no room for the rows.
    """
    readers = [SourceReader(source) for source in config.sources]
    withdrawal = read_withdrawal(config.withdrawn)
    request = requested("clean_pmp", VERSION, config, readers, output=output, **withdrawal.request())
    return once(request, lambda: _make(config, readers, withdrawal, request))


def _make(
    config: CleanPmpConfig, readers: Sequence[SourceReader], withdrawal: Withdrawal, request: OutputRequest
) -> Stats:
    stats, dropped = Stats(), WithdrawnRows(withdrawal)
    with Spool() as spool:
        with reading_bar(readers, "clean_pmp") as bar:
            take_in(spool, readers, partial(_entries, config, dropped, bar), stats, config.max_bad_fraction)
        spool.sort()
        _write(config, _provenance(config, readers, dropped), readers, spool, stats, request)
    return stats


def _entries(
    config: CleanPmpConfig,
    dropped: WithdrawnRows,
    bar: tqdm[NoReturn],
    number: int,
    reader: SourceReader,
    stats: Stats,
) -> Iterator[Entry]:
    source = config.sources[number]
    dropped.forget(number)  # what was dropped of it when it was read in another format

    def read(raw: object) -> Row:
        row = read_pair(
            raw,
            reader.format,
            source.name,
            config.min_score_ratio,
            roles=source.role_names,
            note=reader.note,
            scales=reader.scales,
        )
        dropped.check(number, row["prompt_id"], source.name)
        return row

    items = reader.items(
        read, stats, bar, formats=PAIR_FORMATS, row_format=source.format, looks_like=looks_like_pair
    )
    for position, row in items:
        yield row.pop("pair_id"), number, position, json.dumps(row, ensure_ascii=False)


def _write(
    config: CleanPmpConfig,
    provenance: Provenance,
    readers: Sequence[SourceReader],
    spool: Spool,
    stats: Stats,
    request: OutputRequest,
) -> None:
    limits = [source.max_rows for source in config.sources]
    kept = sample(spool, limits, config.max_rows, config.seed, "clean_pmp")
    with (
        DatasetWriter(request.output, PREFERENCES, provenance) as writer,
        progress_bar(len(kept), "pairs", "clean_pmp: write") as bar,
    ):

        def rows() -> Iterator[Row]:
            for keep, (name, group) in zip(kept, spool.groups(), strict=True):
                row = _united([json.loads(body) for _, body in group], stats)
                if row is not None and keep:
                    yield _shown(config, name, row, stats)
                elif row is not None:
                    stats.drop("over_max_rows")
                bar.update()

        for batch in batched(rows(), WRITE_ROWS):
            writer.write_rows(batch)
        stats.rows_out = writer.rows
        writer.commit(stats, extra=report_of(readers) | request.note)


def _united(rows: Sequence[Row], stats: Stats) -> Row | None:
    """The first of the rows of one pair; None, counted, when they contradict each other."""
    if len({row["preferred"] for row in rows}) > 1:
        stats.drop("conflicting_labels", len(rows))
        return None
    stats.drop("duplicate_pair", len(rows) - 1)
    return rows[0]


def _shown(config: CleanPmpConfig, name: str, row: Row, stats: Stats) -> Row:
    """The row as it is written: in presentation order."""
    swapped = unit_interval(config.seed, "clean_pmp", name) < 0.5
    held_out = is_held_out(row["prompt_id"], config.validation_fraction, config.seed)
    completions = row["completions"][::-1] if swapped else row["completions"]
    stats.counts["margin_contradicts_label"] += row.pop("contradicted")
    stats.counts["swapped"] += swapped
    facts = {
        "swapped": swapped,
        "scores": [completion["score"] for completion in completions],
        "source": json.loads(row["metadata"]) if row["metadata"] else {},
    }
    return row | {
        "pair_id": name,
        "split": "validation" if held_out else "train",
        "completions": completions,
        "preferred": 1 - row["preferred"] if swapped else row["preferred"],
        "principles": [],
        "metadata": canonical_json(facts),
    }


def _provenance(
    config: CleanPmpConfig, readers: Sequence[SourceReader], dropped: WithdrawnRows
) -> Provenance:
    params = {
        "sources": [reader.settings() for reader in readers],
        "min_score_ratio": config.min_score_ratio,
        "max_rows": config.max_rows,
        "validation_fraction": config.validation_fraction,
        "seed": config.seed,
        **dropped.withdrawal.params(config.withdrawn),
    }
    return derive("clean_pmp", VERSION, params, slug=[source.name for source in config.sources])
