"""Two datasets of rewarded completions of the same prompts, read at one pace for what is made of both."""

from __future__ import annotations

from collections.abc import Iterator

from kubealign_components.config import require
from kubealign_components.data.batches import batched
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import Provenance
from kubealign_components.data.schemas import REWARDED, RewardedRow
from kubealign_components.data.stats import Stats
from kubealign_components.errors import DataError
from kubealign_components.progress import progress_bar
from kubealign_components.training.regime import nearest_steps

_ROWS_AT_ONCE = 256


def require_rewarded_alike(earlier: Dataset, later: Dataset) -> None:
    """Raise :class:`ConfigError` unless all rewards of both are of one kind."""
    ways = [
        (step["params"], step["models"])
        for dataset in (earlier, later)
        for step in nearest_steps("rewards", dataset.manifest.fingerprint, dataset.manifest.recipe)
    ]
    same = all(way == ways[0] for way in ways)
    require(same, "later", later.uri, f"a dataset with rewards of the same kind as those of {earlier.uri}")


def abreast(earlier: Dataset, later: Dataset) -> Iterator[tuple[RewardedRow, RewardedRow | None]]:
    """Each prompt of ``earlier`` in its order, with what ``later`` has of it; None where it has nothing.

    Args:
        earlier: ``kubealign.rewarded/v1``.
        later: ``kubealign.rewarded/v1``, on the same prompts or some of them.

    Raises:
        DataError: ``later`` has a prompt that ``earlier`` has not, or has them in another order.
    """
    own = set(earlier.table(["prompt_id"]).column("prompt_id").to_pylist())
    ids = later.table(["prompt_id"]).column("prompt_id").to_pylist()
    asked = set(ids)
    if unknown := [name for name in ids if name not in own]:
        raise DataError(
            f"{later.uri} has {len(unknown)} prompts that {earlier.uri} has not, first {unknown[0]}: a round "
            "samples for prompts of the first one"
        )
    waiting = later.iter_rows(of=RewardedRow)
    for row in earlier.iter_rows(of=RewardedRow):
        if row["prompt_id"] not in asked:
            yield row, None
            continue
        other = next(waiting)
        if other["prompt_id"] != row["prompt_id"]:
            raise DataError(
                f"{later.uri} has prompt {other['prompt_id']} where {earlier.uri} has "
                f"{row['prompt_id']}: expected the same order in both"
            )
        yield row, other


def write_joined(rows: Iterator[RewardedRow], output: str, provenance: Provenance, stats: Stats) -> Stats:
    """Write ``rows``, one a prompt of ``stats.rows_in``, to ``output`` (``kubealign.rewarded/v1``); what they
    add to ``stats`` until their end is published with them."""
    with (
        DatasetWriter(output, REWARDED, provenance) as writer,
        progress_bar(stats.rows_in, "prompts", provenance.step["stage"]) as bar,
    ):
        for some in batched(rows, _ROWS_AT_ONCE):
            writer.write_rows(some)
            bar.update(len(some))
        stats.rows_out = writer.rows
        writer.commit(stats)
    return stats
