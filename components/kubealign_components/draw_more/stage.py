"""draw_more: the prompts whose best and worst completions are not settled by those that were drawn so far.

What is asked for next is ``sample`` with a larger number of completions, which takes over those that a prompt
has: a completion is known by its prompt and its number.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kubealign_components.config import execution, require, semantic_params
from kubealign_components.data.arrow_take import take
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.early_end import pass_on
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.finished import once, output_request
from kubealign_components.data.sampled import FACTS, sampled
from kubealign_components.data.schemas import PROMPT_ROW, TOKENIZED
from kubealign_components.data.segments import Bools, Floats
from kubealign_components.data.shard_rows import completion_columns
from kubealign_components.data.stats import Stats
from kubealign_components.draw_more.doubt import Draws, chance_of_change, resolved
from kubealign_components.errors import DataError
from kubealign_components.progress import progress_bar

VERSION = 1
_COLUMNS = ("prompt_id", *FACTS, *completion_columns("reward"))


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawMoreConfig:
    """Settings of ``draw_more``."""

    drawn: int = 4
    """Completions that were drawn of each prompt that was asked last."""
    to: int = 16
    """Most completions that are drawn of a prompt."""
    same: float = 0.95
    """Share of the prompts whose best and worst of all ``to`` draws differ that is to keep this pair."""
    within: float = 0.0
    """A pair is kept where its best and its worst reward are each within this share of the mean gap, between
    the best and the worst over all prompts, of those of all draws. 0 asks for the same rewards, which spares
    next to nothing where a reward hardly ever ties."""
    work: str = execution("")
    """Work prefix: what was finished there before, with these settings on these rows, is taken."""

    def __post_init__(self) -> None:
        require(self.drawn >= 2, "drawn", self.drawn, "2 or more: a best and a worst")
        require(self.to > self.drawn, "to", self.to, f"more than the {self.drawn} that are drawn")
        require(0 < self.same < 1, "same", self.same, "a share above 0 and below 1")
        require(self.within >= 0, "within", self.within, "a share, 0 or more")

    @property
    def held(self) -> float:
        """The share of pairs that is held here: of what may be lost, half is kept for the last time that is
        asked, at half of ``to`` or more draws."""
        return 1 - (1 - self.same) * min(1.0, 2 * self.drawn / self.to)


def run(config: DrawMoreConfig, *, prompts: Dataset, rewarded: Dataset, output: str) -> Stats:
    """Write the prompts that are to be drawn more completions of to ``output``, of the kind that they are.

    At least one is: a fan-out over no rows is none. Dropped are prompts that are ``resolved``, and those that
    ``never_differed``, whose rewards are all equal and are expected to stay so. ``expected_same`` is the
    share of the pairs of all draws that is expected to be kept without more draws of these.

    Args:
        config: the settings.
        prompts: ``kubealign.tokenized/v1``, which completions were sampled for.
        rewarded: ``kubealign.rewarded/v1``, the completions of these prompts so far; none of a round that
            ended early, after which none is drawn more of.
        output: URI of the dataset to make.

    Raises:
        DataError: ``rewarded`` has other prompts.
    """
    if rewarded.ended_early:
        return pass_on(
            "rewarded", rewarded, stage="draw_more", version=VERSION, schema=TOKENIZED, output=output
        )
    provenance = derive(
        "draw_more",
        VERSION,
        semantic_params(config),
        inputs={"prompts": prompts, "rewarded": rewarded},
        slug=[f"{config.drawn}to{config.to}"],
    )

    def make() -> Stats:
        stats = Stats(rows_in=prompts.rows)
        dropped = _resolved_prompts(config, rewarded, stats)
        _require_same_prompts(prompts, rewarded)
        with (
            DatasetWriter(output, TOKENIZED, provenance) as writer,
            progress_bar(prompts.rows, "prompts", "draw_more") as bar,
        ):
            for batch in prompts.batches(batch_rows=None):
                writer.write(_without(batch, dropped))
                bar.update(batch.num_rows)
            stats.rows_out = writer.rows
            writer.commit(stats)
        return stats

    return once(output_request(config, provenance, output), make)


def draws_of(rewarded: Dataset) -> tuple[list[str], Draws]:
    """The ids of the prompts of ``rewarded``, and the rewards of their sampled completions."""
    ids: list[str] = []
    rows, rewards = [np.empty(0, np.int64)], [np.empty(0)]
    for batch in rewarded.batches(list(_COLUMNS), batch_rows=None):
        lists = batch.column("completions")
        completions = lists.flatten()
        own = sampled(completions)
        row = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
        rows.append(row[own] + len(ids))
        rewards.append(completions.field("reward").to_numpy(zero_copy_only=False)[own])
        ids += batch.column("prompt_id").to_pylist()
    return ids, Draws(row=np.concatenate(rows), reward=np.concatenate(rewards), rows=len(ids))


def _resolved_prompts(config: DrawMoreConfig, rewarded: Dataset, stats: Stats) -> set[str]:
    """The ids of the prompts that need no more draws, counted by reason."""
    ids, draws = draws_of(rewarded)
    differs = draws.gap > 0
    chance = chance_of_change(draws, config.to, config.within * float(draws.gap.mean()))
    done = resolved(chance, differs, config.held)
    if done.all():  # one goes on all the same: a fan-out has work for one pod or more
        done[int(np.argmax(chance))] = False
    stats.drop("resolved", int((done & differs).sum()))
    stats.drop("never_differed", int((done & ~differs).sum()))
    stats.numbers["expected_same"] = _expected_same(chance, differs, done)
    return {ids[i] for i in np.flatnonzero(done)}


def _expected_same(chance: Floats, differs: Bools, done: Bools) -> float:
    pairs = differs.sum() + chance[~differs].sum()
    return float(1 - chance[done].sum() / pairs) if pairs else 1.0


def _require_same_prompts(prompts: Dataset, rewarded: Dataset) -> None:
    asked, answered = (
        dataset.table(["prompt_id"]).column("prompt_id").combine_chunks() for dataset in (prompts, rewarded)
    )
    if not asked.equals(answered):
        raise DataError(
            f"{rewarded.uri} has other prompts than {prompts.uri}, or in another order: expected the "
            "completions of these prompts"
        )


def _without(batch: pa.RecordBatch, dropped: Collection[str]) -> pa.RecordBatch:
    """The rows of ``batch`` that are none of ``dropped``."""
    kept = [i for i, name in enumerate(batch.column("prompt_id").to_pylist()) if name not in dropped]
    columns = [take(batch.column(name), np.array(kept, np.int64)) for name in PROMPT_ROW.names]
    return pa.RecordBatch.from_arrays(columns, schema=PROMPT_ROW)
