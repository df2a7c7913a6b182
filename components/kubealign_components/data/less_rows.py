"""What a stage that works row by row makes of a dataset of which rows are deleted, without working again.

The output for the dataset as it was with those rows is finished somewhere: its shards are taken over with a
deletion vector, and only the deleted rows are worked on, to take what they counted from the statistics. The
fingerprint is the one that the whole work gives, since the rows are the same in the same order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import Provenance, digest
from kubealign_components.data.finished import (
    OutputRequest,
    finished_elsewhere,
    output_request,
    record_finished,
)
from kubealign_components.data.segments import Bools
from kubealign_components.data.stats import Stats
from kubealign_components.errors import CorruptDataset, NotFound, StoreError
from kubealign_components.json_types import JsonObject

if TYPE_CHECKING:
    from kubealign_components.data.finished import WorkConfig

log = logging.getLogger(__name__)

MOST_DELETED = 0.5
"""Share of an output's rows that may be deleted in its shards; where it is more they are written anew."""


def undeleted_provenance(provenance: Provenance, inputs: Iterable[Dataset]) -> Provenance | None:
    """``provenance`` of what is made of ``inputs``, as it would be with the rows that they have deleted; None
    where no input has any."""
    whole = {one.manifest.fingerprint: one.manifest.undeleted for one in inputs if one.manifest.undeleted}
    if not whole:
        return None
    step = provenance.step
    named = {name: whole.get(fingerprint, fingerprint) for name, fingerprint in step["inputs"].items()}
    step = {**step, "inputs": named}
    return replace(provenance, fingerprint=digest(step), recipe={digest(step): step})


def output_less_rows(
    config: WorkConfig,
    request: OutputRequest,
    inputs: Mapping[str, Dataset],
    count: Callable[[Dataset, Sequence[Bools]], Stats | None],
    extra: Callable[[Dataset, Stats, Collection[str]], JsonObject | None],
    always: Collection[str] = (),
) -> Stats | None:
    """Publish what was finished for ``inputs`` with their deleted rows, without what came of these; None
    where all has to be made anew, which is logged.

    Args:
        config: settings of the stage.
        request: for the output, of known provenance.
        inputs: by role.
        count: what the stage counted of the deleted rows alone, given the finished output and for each of its
            shards which rows are of these; None where that cannot be told.
        extra: what the manifest says beside the counts, given the finished output, the counts that are left
            and the ids of the deleted prompts; None where other rows would be there without these.
        always: names of counts that stand there when they are 0, too.
    """
    assert request.provenance is not None
    whole = undeleted_provenance(request.provenance, inputs.values())
    if whole is None:
        return None
    undiminished = output_request(config, whole, request.output)
    output = finished_elsewhere(undiminished)
    if output is None or any(shard.deleted for shard in output.manifest.shards):
        return whole_work(request, "what was made with the rows that are gone is not there")
    for one in (output, *inputs.values()):
        one.keep_files()  # read for their ids, and by ``count``
    try:
        columns = [
            b.column("prompt_id") for one in inputs.values() for b in one.deleted_batches(["prompt_id"])
        ]
        prompt_ids = pc.unique(pa.chunked_array(columns, pa.string()))
        if len(inputs) > 1 and any(_holds(one, prompt_ids) for one in inputs.values()):
            return whole_work(request, "other rows are of the prompts that are gone, too")
        marked = rows_of(output, prompt_ids)
        counted = count(output, marked)
        if counted is None or counted.rows_out != sum(int(flags.sum()) for flags in marked):
            return whole_work(
                request, f"{output.uri} does not tell what was counted of the rows that are gone"
            )
        left = Stats.from_json(output.manifest.stats).less(counted, always)
        note = extra(output, left, frozenset(prompt_ids.to_pylist()))
        if note is None:
            return whole_work(request, "which rows there are depends on those that are gone")
        return publish_less_rows(request, undiminished, request.provenance, output, marked, left, note)
    except (CorruptDataset, NotFound, StoreError) as error:
        return whole_work(request, f"{output.uri} cannot be taken ({error})")


def publish_less_rows(
    request: OutputRequest,
    undiminished: OutputRequest,
    provenance: Provenance,
    output: Dataset,
    masks: Sequence[Bools],
    left: Stats,
    note: JsonObject,
) -> Stats | None:
    """Publish ``output`` without some rows; None where too few are left, which is logged.

    Args:
        request: for what is published.
        undiminished: for ``output``, under which that is recorded, too.
        provenance: of what is published.
        output: of which no row is deleted.
        masks: for each shard which rows are gone, shape (rows,).
        left: the counts.
        note: what the manifest says beside them.
    """
    gone = sum(int(mask.sum()) for mask in masks)
    if gone > MOST_DELETED * output.rows:
        return whole_work(request, "too few rows are left to share their shards")
    with DatasetWriter(request.output, output.manifest.schema, provenance) as writer:
        writer.adopt_less(output, masks)
        writer.commit(left, note)
    record_finished(undiminished)
    log.info(
        "%s: %d rows share the shards of %s, %d are gone", request.stage, left.rows_out, output.uri, gone
    )
    return left


def whole_work(request: OutputRequest, why: str) -> Stats | None:
    """Say ``why`` a stage does all of its work again; None."""
    log.info("%s reads all rows and writes them anew: %s", request.stage, why)
    return None


def rows_of(dataset: Dataset, prompt_ids: pa.Array) -> list[Bools]:
    """For each shard of ``dataset``, of which no row is deleted, which rows are of one of ``prompt_ids``."""
    ids = [batch.column("prompt_id") for batch in dataset.batches(["prompt_id"], batch_rows=None)]
    held: Bools = pc.is_in(pa.chunked_array(ids, pa.string()), value_set=prompt_ids).to_numpy()
    return dataset.by_shard(held)


def _holds(dataset: Dataset, prompt_ids: pa.Array) -> bool:
    """Whether a row of ``dataset`` that is not deleted is of one of ``prompt_ids``."""
    batches = dataset.batches(["prompt_id"], batch_rows=None)
    return any(pc.any(pc.is_in(batch.column("prompt_id"), value_set=prompt_ids)).as_py() for batch in batches)
