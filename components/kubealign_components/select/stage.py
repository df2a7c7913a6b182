"""select: quantile rewards, and which completions are trained on.

Works on whole record batches: only rewards and ids become NumPy arrays, token ids and texts stay in
Arrow and are moved once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kubealign_components.config import execution, require, require_choice, semantic_params
from kubealign_components.data.agreement import agreements
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.early_end import pass_on
from kubealign_components.data.fingerprint import Provenance, derive
from kubealign_components.data.finished import once, output_request
from kubealign_components.data.less_rows import output_less_rows, whole_work
from kubealign_components.data.prefetch import read_ahead
from kubealign_components.data.schemas import SELECTION
from kubealign_components.data.shard_rows import completion_columns
from kubealign_components.data.stats import Stats
from kubealign_components.json_types import JsonObject
from kubealign_components.progress import progress_bar
from kubealign_components.select.batch import PromptBatch
from kubealign_components.select.lists import note_on_references
from kubealign_components.select.pairs import STRATEGIES
from kubealign_components.select.quantiles import (
    METHODS,
)
from kubealign_components.select.used_rewards import (
    AS_GIVEN,
    LENGTH_CONTROLLED,
    NOTES,
    REWARDS,
    LengthSlope,
    length_slope,
    writers_of,
)
from kubealign_components.training.config import INCLUSIVE, LEAVE_ONE_OUT

VERSION = 4

ALL = "all"
"""The pointwise strategy: every completion of the pool, no pairs."""
LABELS, LABELLED = "labels", "labelled"
"""What people said, in place of rewards: pairs of chosen and rejected completions, or every completion
with a label by itself."""

_LOOKED_AT = (
    "source",
    *completion_columns("completion_id", "reference", "label", "wins", "losses", "num_tokens"),
    *completion_columns("finish_reason", "reward", "reward_se"),
)
"""Columns that decide what is selected where no slope over length does."""

log = logging.getLogger(__name__)
POOLS = ("reference", "offline", "both")


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig:
    """Settings of ``select``."""

    strategy: str = "best_worst"
    """best_worst, best_random, random_pairs, quantile_bands or top_bottom_k make pairs by reward; all keeps
    every completion of the pool, for pointwise objectives. labels makes pairs as people compared them (of
    verdicts on single completions, a prompt's i-th good one with its i-th bad one) and labelled keeps every
    completion with a label, for pointwise objectives on labels (kto): for these two no reward is needed, and
    pool, quantile gap and references do not count."""
    quantile: str = INCLUSIVE
    """inclusive (the published rule), mid_rank or leave_one_out; they differ in ties and in whether a
    reference completion counts itself."""
    pairs_per_prompt: int = 1
    """Most pairs of a prompt."""
    min_references: int = 2
    """Prompts with fewer reference rewards are dropped; by labels none is needed."""
    min_quantile_gap: float = 0.0
    """Least quantile reward of the chosen minus that of the rejected, in [0, 1]."""
    reward_interval: float = 0.95
    """Level of the intervals of rewards that are estimates with a standard error, as those of rank are: two
    completions whose intervals overlap are no pair. 0 takes such rewards as they are, too."""
    rewards: str = AS_GIVEN
    """The rewards that are gone by: as_given; length_controlled, with the slope of reward over tokens among a
    prompt's completions, one for the whole dataset, taken out before completions are ranked; or shuffled
    within each prompt, for a null run: what it gains, noise gains."""
    pool: str = "reference"
    """Which completions may be selected: reference (sampled from the policy, of whatever round), offline
    (brought by a source), or both."""
    k: int = 1
    """How many of the best and of the worst top_bottom_k draws from."""
    best_quantile: float = 1.0
    """quantile_bands: completions at or above are the best band."""
    worst_quantile: float = 0.2
    """quantile_bands: completions at or below (and at or below 1/n for n references) are the worst band."""
    middle_quantile: float = 0.5
    """quantile_bands: pairs after the first take one completion at or above and one below."""
    seed: int = 0
    """Decides random orders and breaks ties."""
    work: str = execution("")
    """Work prefix: what was finished there before, with these settings on these rows, is taken."""

    def __post_init__(self) -> None:
        require_choice("strategy", self.strategy, {ALL, LABELS, LABELLED, *STRATEGIES})
        require_choice("quantile", self.quantile, METHODS)
        require_choice("pool", self.pool, POOLS)
        require_choice("rewards", self.rewards, REWARDS)
        require(
            not self.by_labels or self.rewards == AS_GIVEN,
            "rewards",
            self.rewards,
            f"{AS_GIVEN} where labels decide (strategy {self.strategy})",
        )
        least = 2 if self.quantile == LEAVE_ONE_OUT else 1
        for name, low in (("pairs_per_prompt", 1), ("k", 1), ("min_references", least)):
            value = getattr(self, name)
            require(value >= low, name, value, f"{low} or more")
        for name in ("min_quantile_gap", "best_quantile", "worst_quantile", "middle_quantile"):
            value = getattr(self, name)
            require(0 <= value <= 1, name, value, "a quantile, from 0 to 1")
        require(
            0 <= self.reward_interval < 1,
            "reward_interval",
            self.reward_interval,
            "a level, 0 or more and below 1",
        )
        require(
            self.worst_quantile < self.best_quantile,
            "worst_quantile",
            self.worst_quantile,
            f"less than best_quantile ({self.best_quantile})",
        )

    @property
    def pairwise(self) -> bool:
        """Whether the strategy makes pairs."""
        return self.strategy not in (ALL, LABELLED)

    @property
    def by_labels(self) -> bool:
        """Whether people's labels decide, and not rewards."""
        return self.strategy in (LABELS, LABELLED)

    @property
    def slug(self) -> list[str]:
        """Words of the dataset's slug."""
        pairs = [f"pairs{self.pairs_per_prompt}"] if self.pairwise else []
        if self.by_labels:
            return [self.strategy, *pairs]
        pool = [self.pool] if self.pool != "reference" else []
        rewards = [self.rewards] if self.rewards != AS_GIVEN else []
        return [self.strategy, *pairs, self.quantile, *pool, *rewards]


def run(config: SelectConfig, *, rewarded: Dataset, output: str) -> Stats:
    """Write the selected completions to ``output`` (``kubealign.selection/v1``).

    A completion that stands twice in the pool (same tokens) is one completion. A prompt is dropped,
    by name, when it has too few reference rewards, nothing in the pool, only equal rewards, or no two
    completions that form a pair. By labels, it is dropped when nothing in it has a label or no chosen
    completion has a rejected one beside it.

    Where completions have both labels and rewards, the metrics hold ``label_agreement_mean``, the share of
    labelled pairs whose chosen completion has the higher reward (ties half), and the same by source; a
    warning is logged, and stands on the page of the rows, where it is below one half.

    The metrics hold ``pairs`` and ``completions`` (what is trained on), the means ``references_mean``,
    ``quantile_reward_mean`` and ``quantile_gap_mean``, and ``reference_tied_mean``, the share of
    reference rewards that equal another one of their prompt. ``longer_mean`` is by how many tokens the chosen
    completion is longer than the rejected one. At equal length ``length_slope_before`` and
    ``length_slope_after`` are reward a token; completions then have the rewards that were gone by, as they
    have where these were shuffled.

    Args:
        config: the settings.
        rewarded: ``kubealign.rewarded/v1``; by labels also what was not rewarded or not sampled for,
            ``kubealign.completions/v1`` or ``kubealign.tokenized/v1``.
        output: URI of the dataset to make.

    Raises:
        DataError: a completion without a finite reward, where rewards decide.
    """
    if rewarded.ended_early:
        return pass_on("rewarded", rewarded, stage="select", version=VERSION, schema=SELECTION, output=output)
    provenance = derive(
        "select", VERSION, semantic_params(config), inputs={"rewarded": rewarded}, slug=config.slug
    )
    request = output_request(config, provenance, output)

    def less() -> Stats | None:
        if config.rewards == LENGTH_CONTROLLED and rewarded.manifest.undeleted:
            return whole_work(request, "one slope of reward over length is of all rows")
        inputs = {"rewarded": rewarded}
        always = ("completions_in", "completions_duplicate", "completions", "pairs")
        return output_less_rows(
            config,
            request,
            inputs,
            lambda *_: _count_deleted(config, rewarded),
            lambda _, left, __: _extra(config, left),
            always,
        )

    return once(request, lambda: _make(config, rewarded, provenance, output), less)


def _count_deleted(config: SelectConfig, rewarded: Dataset) -> Stats:
    """What was counted for rows that are deleted in ``rewarded``."""
    stats = Stats()
    for batch in rewarded.deleted_batches(_LOOKED_AT):
        work = PromptBatch(batch, config, stats, LengthSlope())
        work.count_agreement()
        stats.rows_in += batch.num_rows
        stats.rows_out += int(work.choose().stay.sum())
    return stats


def _extra(config: SelectConfig, stats: Stats) -> JsonObject:
    """What the manifest says beside the counts."""
    note = "" if config.by_labels else note_on_references(stats, config.quantile)
    return {"pairwise": config.pairwise, "note": note, "warnings": NOTES[config.rewards]}


def _make(config: SelectConfig, rewarded: Dataset, provenance: Provenance, output: str) -> Stats:
    stats, after = Stats(), LengthSlope()
    slope = length_slope(rewarded) if config.rewards == LENGTH_CONTROLLED else LengthSlope()
    with (
        DatasetWriter(output, SELECTION, provenance) as writer,
        progress_bar(rewarded.rows, "prompts", "select") as bar,
    ):
        for batch in read_ahead(rewarded.batches(batch_rows=None)):
            work = PromptBatch(batch, config, stats, slope)
            work.count_agreement()
            if config.rewards == LENGTH_CONTROLLED:
                after.add(work.row, writers_of(work.completions), work.reward, work.tokens)
            selected = work.select()
            stats.rows_in += batch.num_rows
            stats.rows_out += selected.num_rows
            writer.write(selected)
            bar.update(batch.num_rows)
        for one in agreements(stats.sums):
            if one.warning:
                log.warning(one.warning)
        if config.strategy == LABELS and stats.dropped["no_pair"] and not stats.rows_out:
            log.warning(
                "labels are there, and no prompt has a good and a bad answer: to train on labels that stand "
                "by themselves, take select_strategy labelled and train_objective kto"
            )
        if stats.dropped["rewards_overlap"] and not stats.rows_out:
            log.warning(
                "no prompt has two completions whose rewards are apart at the level of "
                "select_reward_interval (%g): let the judge compare more pairs, take a stronger one, or "
                "lower the level",
                config.reward_interval,
            )
        if config.rewards == LENGTH_CONTROLLED:
            stats.numbers |= {
                "length_slope_before": slope.value,
                "length_slope_after": round(after.value, 12),
            }
        writer.commit(stats, _extra(config, stats))
    return stats
