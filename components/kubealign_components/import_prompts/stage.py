"""import_prompts: prompts and offline completions of any number of sources, as one dataset.

Rows come out in the order of their prompt ids, which are content hashes: neither the order of the
sources nor of the rows in them changes the dataset, and every chunk of it is a fair mixture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from kubealign_components.config import execution, gate, require, require_choice
from kubealign_components.data.fingerprint import Provenance, derive
from kubealign_components.data.finished import OutputRequest, finished_elsewhere, once
from kubealign_components.data.less_rows import publish_less_rows, whole_work
from kubealign_components.data.schemas import PromptRow
from kubealign_components.data.shard_rows import completion_columns
from kubealign_components.data.stats import Stats
from kubealign_components.data.withdrawals import WITHDRAWN, Withdrawal, read_withdrawal
from kubealign_components.errors import CorruptDataset, NotFound, StoreError
from kubealign_components.import_prompts.merged import (
    DUPLICATE,
    REFUSED,
    Merger,
    changed,
    count_noted,
    merged_sources,
)
from kubealign_components.sources.external_sort import Entry, Spool
from kubealign_components.sources.messages import with_suffix
from kubealign_components.sources.prompt_rows import spooled, to_row
from kubealign_components.sources.prompt_writer import sample, write_prompts
from kubealign_components.sources.request import requested
from kubealign_components.sources.row_formats import FORMATS, WANTED, format_of, looks_like, parse
from kubealign_components.sources.source import SourceReader, reading_bar, report_of, take_in
from kubealign_components.sources.source_settings import WeightedSource, named_sources, require_fraction
from kubealign_components.sources.withdrawn_rows import WithdrawnRows

if TYPE_CHECKING:
    from typing import NoReturn

    from tqdm import tqdm

    from kubealign_components.data.dataset import Dataset
    from kubealign_components.data.segments import Bools

VERSION = 12

_LOOKED_AT = ("prompt_id", "source", *completion_columns("label"))
"""Columns by which withdrawn rows are found and their completions counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig(WeightedSource):
    """One source of prompts."""

    format: str = "auto"
    """What rows look like: auto (by the columns of most rows) or one of the formats by name."""
    max_rows: int = 0
    """Most prompts to take, a seeded sample; 0 for all."""
    prompt_suffix: str = ""
    """A line to put behind every prompt's last user turn, such as an instruction that the reward checks:
    ``End with a line "Answer:" and the number.``"""

    def __post_init__(self) -> None:
        WeightedSource.__post_init__(self)
        require_choice("sources.format", self.format, ["auto", *FORMATS])
        require(self.max_rows >= 0, "sources.max_rows", self.max_rows, "a number of prompts, 0 for all")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """Settings of ``import_prompts``."""

    sources: tuple[SourceConfig, ...]
    """Where prompts come from; of a prompt that several have, the first gives it its name."""
    max_bad_fraction: float = gate(0.01)
    """Largest fraction of malformed rows in a source; more of them fail the stage."""
    max_rows: int = 0
    """Most prompts of all sources together, a seeded sample; 0 for all."""
    seed: int = 0
    """Decides which prompts ``max_rows`` keeps."""
    withdrawn: str = execution("")
    """Path or URI of a withdrawal, of which nothing is taken: `kubealign withdraw` writes one."""
    work: str = execution("")
    """Work prefix: what was finished there before, with these settings on these rows, is taken."""

    def __post_init__(self) -> None:
        require(bool(self.sources), "sources", self.sources, "at least one source")
        object.__setattr__(self, "sources", named_sources(self.sources))
        require_fraction(self.max_bad_fraction)
        require(self.max_rows >= 0, "max_rows", self.max_rows, "a number of prompts, 0 for all")


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
    readers = [SourceReader(source) for source in config.sources]
    withdrawal = read_withdrawal(config.withdrawn)
    request = requested("import_prompts", VERSION, config, readers, output=output, **withdrawal.request())
    less = partial(_less, config, readers, withdrawal, request)
    return once(request, lambda: _make(config, readers, withdrawal, request), less)


def _less(
    config: ImportConfig, readers: Sequence[SourceReader], withdrawal: Withdrawal, request: OutputRequest
) -> Stats | None:
    """Publish what was imported without a withdrawal less its rows; None where it has to be read again."""
    if not withdrawal:
        return None
    undiminished = requested("import_prompts", VERSION, config, readers, output=request.output)
    imported = finished_elsewhere(undiminished)
    if imported is None:
        return whole_work(request, "what was imported without the withdrawal is not there")
    if _sampled(config):
        return whole_work(request, "max_rows is set")
    try:
        return _publish_less(config, withdrawal, request, undiminished, imported)
    except (CorruptDataset, NotFound, StoreError) as error:
        return whole_work(request, f"{imported.uri} cannot be taken ({error})")


def _publish_less(
    config: ImportConfig,
    withdrawal: Withdrawal,
    request: OutputRequest,
    undiminished: OutputRequest,
    imported: Dataset,
) -> Stats | None:
    """Publish ``imported`` less the rows of ``withdrawal``; None where others depend on these."""
    manifest, before = imported.manifest, Stats.from_json(imported.manifest.stats)
    stats, part = Stats(), WithdrawnRows(withdrawal)
    nobody = np.zeros(0, np.bool_)
    by_id, by_source = [nobody], [nobody]
    for batch in imported.batches(_LOOKED_AT, batch_rows=None):
        by_id.append(withdrawal.mask(batch.select(["prompt_id"])).to_numpy(zero_copy_only=False))
        by_source.append(withdrawal.mask(batch).to_numpy(zero_copy_only=False))
        rows = batch.filter(pa.array(by_source[-1]))
        stats.counts["completions"] += len(rows.column("completions").flatten())
        part.note(0, rows.column("prompt_id").to_pylist(), rows.column("source").to_pylist())
    gone: Bools = np.concatenate(by_source)
    noted = count_noted(manifest.extra, before, gone)
    if noted is None:
        return whole_work(request, f"{imported.uri} does not tell which rows were merged or left out")
    having = dict(merged_sources(manifest.extra, len(gone)))
    if changed(having, withdrawal.sources, np.concatenate(by_id)):
        return whole_work(request, "prompts of the sources that are gone have completions of others, too")
    part.note(0, (), (name for name, flags in having.items() if (flags & gone).any()))
    stats.add(noted)
    stats.rows_out = int(gone.sum())
    stats.dropped[WITHDRAWN] = -stats.rows_out - stats.dropped[DUPLICATE]
    params = manifest.provenance.step["params"] | part.withdrawal.params(config.withdrawn)
    provenance = derive("import_prompts", VERSION, params, slug=[source.name for source in config.sources])
    origin = manifest.origins.get(manifest.fingerprint, {"places": {}})
    made = provenance.origins[provenance.fingerprint]
    made["places"] = origin["places"] | made["places"]
    left = before.less(stats, ["completions"])
    extra = manifest.extra | request.note
    return publish_less_rows(
        request, undiminished, provenance, imported, imported.by_shard(gone), left, extra
    )


def _make(
    config: ImportConfig, readers: Sequence[SourceReader], withdrawal: Withdrawal, request: OutputRequest
) -> Stats:
    stats, dropped, merger = Stats(), WithdrawnRows(withdrawal), Merger()
    with Spool() as spool:
        with reading_bar(readers, "import_prompts") as bar:
            take_in(spool, readers, partial(_entries, config, dropped, bar), stats, config.max_bad_fraction)
        spool.sort()
        kept = sample(
            spool, [s.max_rows for s in config.sources], config.max_rows, config.seed, "import_prompts"
        )
        write_prompts(
            spool,
            kept,
            request.output,
            _provenance(config, readers, dropped),
            stats,
            over="over_max_rows",
            extra=lambda: report_of(readers) | request.note | merger.noted.to_json(),
            merge=merger,
        )
    return stats


def _entries(
    config: ImportConfig,
    dropped: WithdrawnRows,
    bar: tqdm[NoReturn],
    number: int,
    reader: SourceReader,
    stats: Stats,
) -> Iterator[Entry]:
    """The usable rows of one source for the spool; the others are counted."""
    source = config.sources[number]
    dropped.forget(number)  # what was dropped of it when it was read in another format

    def read(raw: object) -> tuple[PromptRow, dict[str, int]]:
        form = reader.format if source.format != "auto" else format_of(raw, reader.format)
        if form != reader.format:
            reader.other_formats.add(form)
        example = parse(raw, FORMATS[form], source.role_names, reader.scales)
        if form != reader.format:
            example.notes[f"rows_read_as_{form}"] += 1
        reader.note(example.notes)
        if source.prompt_suffix:
            example.messages = with_suffix(example.messages, source.prompt_suffix)
        row = to_row(example, source.name, source.weight)
        dropped.check(number, row["prompt_id"], row["source"])
        for reason, count in example.refused.items():
            stats.counts[f"completions_dropped_{reason}"] += count
        return row, dict(example.refused)

    items = reader.items(read, stats, bar, formats=WANTED, row_format=source.format, looks_like=looks_like)
    for position, (row, refused) in items:
        name, body = spooled(row, **({REFUSED: refused} if refused else {}))
        yield name, number, position, body


def _provenance(config: ImportConfig, readers: Sequence[SourceReader], dropped: WithdrawnRows) -> Provenance:
    params = {
        "sources": [reader.settings() for reader in readers],
        "max_rows": config.max_rows,
        "seed": config.seed if _sampled(config) else None,
        **dropped.withdrawal.params(config.withdrawn),
    }
    return derive("import_prompts", VERSION, params, slug=[source.name for source in config.sources])


def _sampled(config: ImportConfig) -> bool:
    """Whether prompts stay by how many there are."""
    return bool(config.max_rows or any(source.max_rows for source in config.sources))
