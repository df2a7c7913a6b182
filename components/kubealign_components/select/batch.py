"""One record batch of prompts on its way through ``select``: which rows and completions stay."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kubealign_components.data.agreement import count_agreement
from kubealign_components.data.arrow_take import keep, take
from kubealign_components.data.labels import compared, fewer, preferred_pairs, sides
from kubealign_components.data.null_runs import SHUFFLED
from kubealign_components.data.sampled import sampled
from kubealign_components.data.schemas import COMPLETION, PAIR, SELECTION_ROW
from kubealign_components.data.seeds import Keys, id_keys
from kubealign_components.data.segments import Bools, Floats, Ints, changes, order_by
from kubealign_components.data.stats import Stats
from kubealign_components.errors import DataError
from kubealign_components.select.lists import finite, lists_of, offsets_of
from kubealign_components.select.pairs import STRATEGIES, Pool, StrategySettings, choose_pairs
from kubealign_components.select.quantiles import (
    quantile_rewards,
    rank_rewards,
)
from kubealign_components.select.used_rewards import (
    AS_GIVEN,
    LENGTH_CONTROLLED,
    LengthSlope,
    at_equal_length,
    numbers_of,
    shuffle_within,
)

if TYPE_CHECKING:
    from kubealign_components.select.stage import SelectConfig


class Selected(NamedTuple):
    """What of a record batch is selected."""

    stay: Bools
    """Rows, shape (rows,)."""
    selected: Ints
    """Positions of completions; those of the pairs where there are any."""
    chosen: Ints
    rejected: Ints


class PromptBatch:
    """One record batch of prompts on its way through the stage.

    Flat arrays run over the completions of the batch, in order; ``row`` gives the prompt of each.
    """

    def __init__(self, batch: pa.RecordBatch, config: SelectConfig, stats: Stats, slope: LengthSlope) -> None:
        self.batch, self.config, self.stats = batch, config, stats
        lists = batch.column("completions")
        offsets = lists.offsets.to_numpy()
        self.completions = lists.values.slice(offsets[0], offsets[-1] - offsets[0])
        self.rows = batch.num_rows
        self.row: Ints = np.repeat(np.arange(self.rows), np.diff(offsets))
        self.ids = self.completions.field("completion_id")
        self.reward: Floats = self.completions.field("reward").to_numpy(zero_copy_only=False)
        self.error: Floats = self.completions.field("reward_se").to_numpy(zero_copy_only=False)
        """Standard errors of the rewards, NaN where there is none."""
        width = NormalDist().inv_cdf((1 + config.reward_interval) / 2)
        self.margin: Floats = width * np.nan_to_num(self.error)
        self.overlapping: Bools = np.zeros(self.rows, dtype=np.bool_)
        """Prompts with pairs, of which the intervals of all overlap."""
        self.reference: Bools = pc.fill_null(self.completions.field("reference"), False).to_numpy(
            zero_copy_only=False
        )
        # Those of further rounds are no references: another policy wrote them.
        self.sampled = sampled(self.completions)
        self.preferred = preferred_pairs(self.completions, self.row)
        self.stand_in: Ints = np.arange(len(self.row))  # of equal completions, the one that is selected
        self.rewarded: Bools = np.isfinite(self.reward)
        if not config.by_labels:
            self._check_rewards()
        self.tokens = numbers_of(self.completions, "num_tokens")
        self.given = self.reward
        """The rewards by which completions tie."""
        self._use_rewards(slope)
        # A prompt with a completion that has no reward has no quantiles: its references are not all there.
        self.reference_reward: Bools = self.reference & self._whole_rows()[self.row]
        self.references = self._per_row(self.reference_reward)
        filled = np.where(self.rewarded, self.reward, 0.0)
        self.ranks = rank_rewards(self.row, filled, self.reference_reward)
        quantile = quantile_rewards(self.ranks, self.reference_reward, config.quantile)
        self.quantile: Floats = np.where(self.rewarded & (self.references[self.row] > 0), quantile, np.nan)

    @cached_property
    def key(self) -> Keys:
        """Random and fixed for each completion; breaks ties, and decides random orders."""
        return id_keys(self.ids, self.config.seed, "select")

    def _use_rewards(self, slope: LengthSlope) -> None:
        """Put the rewards that are gone by in the place of those that were given."""
        if self.config.rewards == LENGTH_CONTROLLED:
            self.reward = at_equal_length(self.given, self.tokens, slope)
        elif self.config.rewards == SHUFFLED:
            keys = [id_keys(self.ids, self.config.seed, purpose) for purpose in ("shuffle to", "shuffle of")]
            origin = shuffle_within(self.row, self.reference, *keys)
            self.reward, self.error, self.margin = (
                one[origin] for one in (self.given, self.error, self.margin)
            )
            self.given = self.reward

    def count_agreement(self) -> None:
        """Count how often reward and labels agree, whatever is selected."""
        sources = self.batch.column("source").to_pylist()
        given = self.completions.field("reward").to_numpy(zero_copy_only=False)
        count_agreement(self.stats, sources, self.row, self.preferred, given)

    def select(self) -> pa.RecordBatch:
        """The output rows."""
        return self._output(self.choose())

    def choose(self) -> Selected:
        """Which rows and completions are the output; counts them, and what is dropped by reason."""
        pool = self._pool()
        stay = self._labelled_rows(pool) if self.config.by_labels else self._usable(pool)
        pool &= stay[self.row]
        chosen = rejected = np.empty(0, dtype=np.int64)
        selected = pool
        if self.config.pairwise:
            chosen, rejected = self._pairs(np.flatnonzero(pool))
            selected = np.zeros(len(pool), dtype=np.bool_)
            selected[chosen] = selected[rejected] = True
            paired = self._per_row(selected) > 0
            lacking = stay & ~paired
            self.stats.drop("rewards_overlap", int((lacking & self.overlapping).sum()))
            self.stats.drop("no_pair", int((lacking & ~self.overlapping).sum()))
            stay = paired
        self._count(stay, selected, chosen, rejected)
        return Selected(stay, np.flatnonzero(selected), chosen, rejected)

    def _pool(self) -> Bools:
        """Which completions may be selected: those of the pool, or those with a label, each once."""
        pool = {
            "reference": self.sampled.copy(),
            "offline": ~self.sampled,
            "both": np.ones(len(self.row), dtype=np.bool_),
        }[self.config.pool]
        if self.config.by_labels:
            pool = np.logical_or(*sides(self.completions.field("label")))
            if self.config.pairwise:
                pool |= compared(self.completions)
        self.stats.counts["completions_in"] += len(pool)
        again = self._repeated(np.flatnonzero(pool))
        self.stats.counts["completions_duplicate"] += len(again)
        pool[again] = False
        return pool

    def _repeated(self, members: Ints) -> Ints:
        """Those of ``members`` that stand there before, where a reference stands before all others."""
        if changes(np.sort(self.key)).all():  # equal ids have equal keys
            return np.empty(0, dtype=np.int64)
        code = self.ids.dictionary_encode().indices.to_numpy(zero_copy_only=False)
        # Of equal completions a reference stays: it has the sampler's log-probability.
        order = members[order_by(self.row[members], code[members], ~self.reference[members])]
        same = (np.diff(self.row[order]) == 0) & (np.diff(code[order]) == 0)
        again: Ints = order[1:][same]
        leads = np.concatenate([[True], ~same]) if len(order) else np.empty(0, np.bool_)
        self.stand_in[order] = order[np.maximum.accumulate(np.where(leads, np.arange(len(order)), 0))]
        return again

    def _usable(self, pool: Bools) -> Bools:
        """Which rows can be used, shape (rows,); counts the others by reason."""
        few = self.references < self.config.min_references
        empty = ~few & (self._per_row(pool) == 0)
        tie = ~few & ~empty & self._all_tie(pool | self.reference)
        self.stats.drop("too_few_references", int(few.sum()))
        self.stats.drop("empty_pool", int(empty.sum()))
        self.stats.drop("all_rewards_tie", int(tie.sum()))
        usable: Bools = ~(few | empty | tie)
        return usable

    def _labelled_rows(self, pool: Bools) -> Bools:
        """Which rows have a labelled completion, shape (rows,); counts the others."""
        labelled: Bools = self._per_row(pool) > 0
        self.stats.drop("no_labels", int((~labelled).sum()))
        return labelled

    def _whole_rows(self) -> Bools:
        """Rows whose completions all have a reward, shape (rows,)."""
        whole: Bools = self._per_row(~self.rewarded) == 0
        return whole

    def _all_tie(self, considered: Bools) -> Bools:
        row, reward = self.row[considered], self.given[considered]
        low, high = np.full(self.rows, np.inf), np.full(self.rows, -np.inf)
        np.minimum.at(low, row, reward)
        np.maximum.at(high, row, reward)
        return np.asarray(low >= high)

    def _preferred(self) -> tuple[Ints, Ints]:
        """The pairs by labels, each once; none of a completion with itself, or that is there both ways."""
        first, second = (self.stand_in[side] for side in self.preferred)
        pairs, back = (a * len(self.row) + b for a, b in ((first, second), (second, first)))
        unique = np.isin(np.arange(len(pairs)), np.unique(pairs, return_index=True)[1])
        kept = unique & ~np.isin(pairs, back)
        return fewer(first[kept], second[kept], self.row, self.key, self.config.pairs_per_prompt)

    def _pairs(self, members: Ints) -> tuple[Ints, Ints]:
        config = self.config
        if config.by_labels:
            return self._preferred()
        pool = Pool(
            row=self.row[members],
            reward=self.reward[members],
            given=self.given[members],
            margin=self.margin[members],
            quantile=self.quantile[members],
            key=self.key[members],
            references=self.references[self.row[members]],
        )
        rules = StrategySettings(**{name: getattr(config, name) for name in StrategySettings.__slots__})
        strategy = STRATEGIES[config.strategy]
        if pool.margin.any():
            paired, _ = choose_pairs(strategy, replace(pool, margin=np.zeros_like(pool.margin)), rules)
            self.overlapping[pool.row[paired]] = True
        chosen, rejected = choose_pairs(strategy, pool, rules)
        return members[chosen], members[rejected]

    def _output(self, choice: Selected) -> pa.RecordBatch:
        stay, selected, chosen, rejected = choice
        offsets = offsets_of(self._per_row_index(selected)[stay])
        position = np.full(len(self.row), -1, dtype=np.int64)
        first = np.zeros(self.rows, dtype=np.int64)
        first[stay] = offsets[:-1]
        position[selected] = np.arange(len(selected)) - first[self.row[selected]]
        pairs = pa.StructArray.from_arrays(
            [pa.array(position[chosen], pa.int32()), pa.array(position[rejected], pa.int32())],
            fields=list(PAIR),
        )
        references = self.reference_reward & stay[self.row]
        made = {
            "completions": lists_of(offsets, self._completions(selected)),
            "pairs": lists_of(offsets_of(self._per_row_index(chosen)[stay]), pairs),
            "reference_rewards": lists_of(
                offsets_of(self.references[stay]), pa.array(self.reward[references])
            ),
        }
        columns = [
            made[name] if name in made else keep(self.batch.column(name), stay)
            for name in SELECTION_ROW.names
        ]
        return pa.RecordBatch.from_arrays(columns, schema=SELECTION_ROW)

    def _completions(self, selected: Ints) -> pa.StructArray:
        kept = take(self.completions, selected)
        made = {"quantile_reward": self.quantile}
        if self.config.rewards != AS_GIVEN:
            made |= {"reward": self.reward, "reward_se": self.error}
        columns = {name: pa.array(own[selected], from_pandas=True) for name, own in made.items()}
        return pa.StructArray.from_arrays(
            [columns.get(f.name, kept.field(f.name)) for f in COMPLETION],
            fields=list(COMPLETION),
        )

    def _count(self, stay: Bools, selected: Bools, chosen: Ints, rejected: Ints) -> None:
        used = stay[self.row] & self.reference_reward
        self.stats.counts["completions"] += int(selected.sum())
        if self.config.pairwise:
            self.stats.counts["pairs"] += len(chosen)
        self.stats.observe("references", self.references[stay & (self.references > 0)].tolist())
        self.stats.observe("reference_tied", (self.ranks.equal[used] > 1).tolist())
        self.stats.observe("quantile_reward", finite(self.quantile[selected]))
        self.stats.observe("quantile_gap", finite(self.quantile[chosen] - self.quantile[rejected]))
        self.stats.observe("longer", finite(self.tokens[chosen] - self.tokens[rejected]))

    def _per_row(self, mask: Bools) -> Ints:
        return np.bincount(self.row[mask], minlength=self.rows)

    def _per_row_index(self, index: Ints) -> Ints:
        return np.bincount(self.row[index], minlength=self.rows)

    def _check_rewards(self) -> None:
        bad = np.flatnonzero(~np.isfinite(self.reward))
        if len(bad):
            raise DataError(
                f"{len(bad)} of {len(self.reward)} completions of a batch have no finite reward, first "
                f"{self.ids[int(bad[0])].as_py()} ({self.reward[bad[0]]}); run the rewards stage first, or "
                f"select by people's labels (strategy labels)"
            )
