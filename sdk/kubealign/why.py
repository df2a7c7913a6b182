"""Where a prompt, a source or a text went: which datasets of which runs hold it, and which models."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from kubealign.lineage import standing
from kubealign.local.runs import DONE, RunInfo
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.manifest import MANIFEST, Manifest
from kubealign_components.data.sampled import FACTS
from kubealign_components.data.schemas import MODEL, ROWS
from kubealign_components.data.withdrawals import Withdrawal, may_hold

_ID = re.compile(r"[0-9a-f]{8,64}")
_LISTS = ("completions", "reference", "aligned")
"""Columns with completions."""
_TEXTS = ("messages", "metadata", "tools")
"""Columns of texts in JSON: what was said, and what the source says of it, such as who annotated it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A dataset or model, and how much of what was asked for it holds."""

    run: str
    stage: str
    """That made it."""
    uri: str
    fingerprint: str
    rows: int | None
    """Rows that hold it; of a model, rows of what it was trained on, None where that is gone."""
    of: int
    """All its rows; of a model those that it was trained on."""
    model: bool
    deleted: int
    """Rows that it does not hold and that stand deleted in its shards, whatever they are of."""


class RowsOf:
    """Rows that a withdrawal takes back, and rows with completions that may be of sources that it takes back.

    Args:
        withdrawal: of prompts and sources.
    """

    def __init__(self, withdrawal: Withdrawal) -> None:
        self._withdrawal = withdrawal
        self._prompts: set[str] = set()
        self._beside: frozenset[str] = frozenset()

    def start(self, manifest: Manifest) -> list[str]:
        """Turn to the rows of another dataset: the columns of it that are looked at."""
        self._beside = frozenset(self._withdrawal.beside(manifest.recipe, manifest.fingerprint))
        names = ROWS[manifest.schema].names
        looked_at = [name for name in ("prompt_id", "source") if name in names]
        may = self._beside and {"source", "completions"} <= set(names)
        return [*looked_at, *(FACTS if may else [])]

    def masks(self, batch: pa.RecordBatch) -> Iterator[pa.BooleanArray]:
        """For each way in which a row may be meant, whether it is."""
        yield self._withdrawal.mask(batch)
        if "completions" in batch.schema.names:
            yield may_hold(self._beside, batch)
        if "source" in batch.schema.names:
            own = pc.is_in(batch.column("source"), value_set=_texts(self._withdrawal.sources))
            self._prompts.update(batch.column("prompt_id").filter(own).to_pylist())
        else:
            yield pc.is_in(batch.column("prompt_id"), value_set=_texts(self._prompts))


class RowsWith:
    """Rows that hold one thing.

    Args:
        what: the id of a prompt or completion or eight or more of its first digits, the name of a source,
            or a text within a message or what its source says of it.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._prompts: set[str] = set()
        """Of the source of that name, by which rows are known that do not say of which source they are."""

    def start(self, manifest: Manifest) -> list[str]:
        """Turn to the rows of another dataset: the columns of it that are looked at."""
        names = ROWS[manifest.schema].names
        leaves = [
            f"{name}.list.element.{leaf}"
            for name in _LISTS
            if name in names
            for leaf in ("completion_id", "messages")
        ]
        return [*(name for name in ("prompt_id", "source", *_TEXTS) if name in names), *leaves]

    def masks(self, batch: pa.RecordBatch) -> Iterator[pa.BooleanArray]:
        """For each way in which a row may hold it, whether it does."""
        names, what = batch.schema.names, self._what
        if "source" in names:
            own = pc.equal(batch.column("source"), what)
            self._prompts.update(batch.column("prompt_id").filter(own).to_pylist())
            yield own
        else:
            yield pc.is_in(batch.column("prompt_id"), value_set=_texts(self._prompts))
        if _ID.fullmatch(what):
            yield pc.starts_with(batch.column("prompt_id"), what)
            yield from _in_lists(batch, "completion_id", partial(pc.starts_with, pattern=what))
        for form in {json.dumps(what)[1:-1], json.dumps(what, ensure_ascii=False)[1:-1]}:
            for name in _TEXTS:
                if name in names:
                    yield pc.match_substring(batch.column(name), form)
            yield from _in_lists(batch, "messages", partial(pc.match_substring, pattern=form))


def holders(rows_of: RowsOf | RowsWith, runs: Sequence[RunInfo]) -> Iterator[Holder]:
    """Every dataset and model of ``runs``, in the order of making, with the rows that are looked for.

    Args:
        rows_of: says of a row whether it is one.
        runs: where to look, oldest first.
    """
    counted: dict[str, tuple[int | None, int]] = {}
    for run in runs:
        for dataset in standing(_made(run)):
            manifest = dataset.manifest
            is_model = manifest.schema == MODEL
            if is_model:
                rows, of = _trained_on(dataset, counted)
            else:
                rows, of = _count(dataset, rows_of), manifest.rows
            counted[manifest.fingerprint] = rows, of
            yield Holder(
                run=run.name,
                stage=str(manifest.provenance.step["stage"]),
                uri=dataset.uri,
                fingerprint=manifest.fingerprint,
                rows=rows,
                of=of,
                model=is_model,
                deleted=sum(shard.rows_in_file - shard.rows for shard in manifest.shards),
            )


def _made(run: RunInfo) -> list[Path]:
    """Folders of the datasets and models of ``run`` in the order of making; where it has not ended well,
    those as well that its results, if there are any, do not list."""
    if run.state == DONE:
        return run.made
    listed = {path.resolve() for path in run.made}
    manifests = sorted(run.folder.path.glob(f"artifacts/**/{MANIFEST}"), key=lambda m: m.stat().st_mtime_ns)
    return [*run.made, *(m.parent for m in manifests if m.parent.resolve() not in listed)]


def _trained_on(model: Dataset, counted: dict[str, tuple[int | None, int]]) -> tuple[int | None, int]:
    """Over all that the model was made from, models that it started from included."""
    parents = [counted.get(parent["fingerprint"], (None, 0)) for parent in model.manifest.parents]
    counts = [rows for rows, _ in parents if rows is not None]
    return sum(counts) if len(counts) == len(parents) else None, sum(of for _, of in parents)


def _count(dataset: Dataset, rows_of: RowsOf | RowsWith) -> int:
    """Rows that are looked for."""
    total = 0
    for batch in dataset.batches(rows_of.start(dataset.manifest), batch_rows=None):
        masks = list(rows_of.masks(batch))
        total += sum(any(of_row) for of_row in zip(*(mask.to_pylist() for mask in masks)))
    return total


def _in_lists(
    batch: pa.RecordBatch, leaf: str, test: Callable[[pa.Array], pa.Array]
) -> Iterator[pa.BooleanArray]:
    """Of each column of completions, whether one of a row's passes ``test``."""
    for name in _LISTS:
        if name in batch.schema.names:
            lists = batch.column(name)
            passed = pc.fill_null(test(lists.flatten().field(leaf)), False)
            rows = pc.list_parent_indices(lists).filter(passed)
            yield pc.is_in(pa.array(range(batch.num_rows), pa.int64()), value_set=pc.unique(rows))


def _texts(values: Iterable[str]) -> pa.StringArray:
    return pa.array(sorted(values), pa.string())
