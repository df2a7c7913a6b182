"""From the spool to a dataset of prompts: one row a prompt, in the order of the prompt ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kubealign_components.data.batches import batched
from kubealign_components.data.dataset import DatasetWriter
from kubealign_components.data.fingerprint import Provenance
from kubealign_components.data.schemas import PROMPTS, PromptRow
from kubealign_components.data.seeds import id_keys
from kubealign_components.data.stats import Stats
from kubealign_components.progress import progress_bar
from kubealign_components.sources.external_sort import Spool
from kubealign_components.sources.prompt_rows import merge_rows

WRITE_ROWS = 256
ID_BATCH = 65536

Mask = NDArray[np.bool_]


def sample(spool: Spool, limits: Sequence[int], most: int, seed: int, purpose: str) -> Mask:
    """Which prompts to keep, in the order of the spool; shape (prompts,).

    The prompts of a source with the smallest keys are kept, then those of all sources together: a
    seeded sample that a row's place cannot influence, in 10 bytes of memory a prompt.

    Args:
        spool: sorted.
        limits: most prompts by the source's number in the spool; 0 for all.
        most: most prompts of all sources together; 0 for all.
        seed: the run's seed.
        purpose: the stage, so that stages draw independently.
    """
    keys: list[NDArray[np.uint64]] = []
    sources: list[NDArray[np.int16]] = []
    for batch in batched(spool.keys(), ID_BATCH):
        keys.append(id_keys(pa.array([name for name, _ in batch]), seed, purpose))
        sources.append(np.array([source for _, source in batch], dtype=np.int16))
    if not keys:
        return np.zeros(0, dtype=bool)
    key, source = np.concatenate(keys), np.concatenate(sources)
    keep = np.ones(len(key), dtype=bool)
    for number, limit in enumerate(limits):
        _limit(keep, source == number, key, limit)
    _limit(keep, keep.copy(), key, most)
    return keep


def write_prompts(
    spool: Spool,
    kept: Mask,
    output: str,
    provenance: Provenance,
    stats: Stats,
    *,
    over: str,
    extra: Callable[[], Mapping[str, object]],
    merge: Callable[[Sequence[PromptRow], Counter[str]], PromptRow] = merge_rows,
) -> None:
    """Publish the kept prompts of ``spool`` at ``output`` (``kubealign.prompts/v1``).

    Args:
        spool: sorted; its keys are prompt ids.
        kept: one flag a prompt, from :func:`sample`.
        output: URI of the dataset.
        provenance: of the dataset.
        stats: gets the rows out and the drops ``duplicate_prompt`` and ``over``.
        over: the name under which prompts that are not kept are counted.
        extra: what the manifest says beside the counts.
        merge: makes one row of all rows of a prompt.
    """
    stage = str(provenance.step["stage"])
    with (
        DatasetWriter(output, PROMPTS, provenance) as writer,
        progress_bar(len(kept), "prompts", f"{stage}: write") as bar,
    ):

        def rows() -> Iterator[PromptRow]:
            for keep, (name, group) in zip(kept, spool.groups(), strict=True):
                stats.drop("duplicate_prompt", len(group) - 1)
                if keep:
                    yield {"prompt_id": name, **merge([json.loads(body) for _, body in group], stats.counts)}
                else:
                    stats.drop(over)
                bar.update()

        for batch in batched(rows(), WRITE_ROWS):
            writer.write_rows(batch)
        stats.rows_out = writer.rows
        writer.commit(stats, extra=extra())


def _limit(keep: Mask, among: Mask, key: NDArray[np.uint64], most: int) -> None:
    """Keep only the ``most`` rows ``among`` these that have the smallest keys; 0 for all."""
    rows = np.flatnonzero(among)
    if 0 < most < len(rows):
        order = np.argsort(key[rows], kind="stable")
        keep[rows[order[most:]]] = False
