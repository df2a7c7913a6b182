"""rewards: one number for every completion, from reward functions, a reward model, or both.

Nothing is cut to fit a reward model: a conversation over its length is dropped and counted, or fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NotRequired, TypedDict

import pyarrow as pa

from kubealign_components.config import SettingGroup, execution, require
from kubealign_components.data.agreement import count_agreement_of_rows
from kubealign_components.data.chunks import Chunk, Part, open_chunk
from kubealign_components.data.engine_processes import engines
from kubealign_components.data.fingerprint import derive, digest
from kubealign_components.data.schemas import (
    COMPLETIONS,
    REWARDED,
    TOKENIZED,
    RewardedCompletion,
    RewardedRow,
    TokenizedRow,
)
from kubealign_components.data.shard_rows import completion_columns
from kubealign_components.data.stats import LABEL_VALUE, Stats
from kubealign_components.data.worker import Missing, pass_chunk_on, run_chunk
from kubealign_components.engines.rewards import (
    REWARD,
    Outcome,
    Rewarder,
    RewardSpec,
    reward_inputs,
    reward_params,
)

VERSION = 6
ASKED_ROWS = 32
"""Most prompts that are committed together where a server is asked about each completion: a slice of hundreds
takes it minutes, and a pod that is lost loses all answers of a slice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardsConfig:
    """Settings of ``rewards``."""

    GROUPS: ClassVar[Mapping[str, SettingGroup]] = {
        "reward": SettingGroup(arguments=REWARD, options=("options.reward",))
    }

    reward: RewardSpec
    """The reward functions and the reward model."""
    slice_rows: int = execution(256)
    """Prompts committed together, at most 32 where a function asks a server; no more are lost with the
    pod."""
    processes: int = execution(0)
    """Engine processes of a pod, each with its own GPUs and share of the rows; 0 for as many as there are
    GPUs for."""

    def __post_init__(self) -> None:
        require(self.slice_rows > 0, "slice_rows", self.slice_rows, "a positive number of prompts")
        require(self.processes >= 0, "processes", self.processes, "0 or more")


def run(config: RewardsConfig, *, chunk: Chunk) -> Part:
    """Reward the completions of ``chunk`` (``kubealign.completions/v1``, or ``tokenized/v1`` with
    offline completions only) and publish its part of a ``kubealign.rewarded/v1`` dataset.

    Raises:
        ConfigError: a reward function or model that is not there.
        EngineError: a reward function raised, or a reward is no finite number.
        DataError: a conversation is over length, and ``over_length`` is ``fail``.
    """
    dataset = open_chunk(chunk, COMPLETIONS, TOKENIZED)
    if dataset.ended_early:
        return pass_chunk_on(chunk, dataset, stage="rewards", version=VERSION, schema=REWARDED)
    rewarder = Rewarder(config.reward)
    provenance = derive(
        "rewards",
        VERSION,
        reward_params(config.reward),
        inputs={"completions": dataset},
        models={"reward": rewarder.identity},
        slug=[config.reward.slug],
    )
    return run_chunk(
        chunk,
        dataset,
        RewardStage(rewarder),
        schema=REWARDED,
        provenance=provenance,
        slice_rows=min(config.slice_rows, ASKED_ROWS) if rewarder.asks_server else config.slice_rows,
        engines=engines(
            run,
            config,
            chunk,
            processes=config.processes,
            fetch=rewarder.fetch,
            weights=rewarder.weight_bytes,
        ),
    )


class RewardResult(TypedDict):
    """What a completion is worth."""

    reward: float | None
    refused: str | None
    """Why it gets none."""
    labels: NotRequired[list[float]]
    """Of a reward model with several labels what each that is weighted says, in the order of names."""


class RewardStage:
    """Rewards rows under the chunk protocol."""

    unread: ClassVar[Sequence[str]] = ()

    def __init__(self, rewarder: Rewarder) -> None:
        self._rewarder = rewarder
        self._weighted = sorted(rewarder.spec.label_weights)
        self._left_out: Counter[str] = Counter()
        self._labels: list[list[float]] = []
        """What the labels say of completions that are not summarised yet."""
        columns = [("reward", pa.float64()), ("refused", pa.string())]
        labels = [("labels", pa.list_(pa.float64()))] if self._weighted else []
        self.result_schema = pa.schema([*columns, *labels])

    def keys(self, row: TokenizedRow) -> list[str]:
        """For each completion a hash of what is read: the texts of prompt and completion, and for a reward
        function all that it is given.

        Not the completion's id: two texts that a template renders alike share token ids.
        """
        functions = bool(self._rewarder.spec.functions)
        prompt = digest(
            [row["messages"], row["tools"], *([row["answers"], row["metadata"]] if functions else [])]
        )
        return [
            digest([prompt, c["messages"], *([c["num_tokens"], c["finish_reason"]] if functions else [])])
            for c in row["completions"]
        ]

    def compute(
        self, slices: Iterator[list[Missing[TokenizedRow]]]
    ) -> Iterator[tuple[Missing[TokenizedRow], list[RewardResult]]]:
        """The rewards of the completions that have none yet; null, and why, for one that gets none."""
        for missing in slices:
            inputs = [
                reward_inputs(one.row, [one.row["completions"][i] for i in one.positions]) for one in missing
            ]
            outcomes = self._rewarder.each_outcome([item for row in inputs for item in row])
            for one, of_row in zip(missing, inputs):
                yield one, [self._result(next(outcomes)) for _ in of_row]

    def _result(self, outcome: Outcome) -> RewardResult:
        result: RewardResult = {"reward": outcome.reward, "refused": outcome.refused}
        return {**result, "labels": list(outcome.labels)} if self._weighted else result

    def apply(self, row: TokenizedRow, results: Sequence[RewardResult]) -> RewardedRow:
        """The row with its rewards, without the completions that have none."""
        rewarded = zip(row["completions"], (result["reward"] for result in results), strict=True)
        kept: list[RewardedCompletion] = [
            {**c, "reward": reward} for c, reward in rewarded if reward is not None
        ]
        self._left_out.update(result["refused"] for result in results if result["refused"])
        self._labels += [result["labels"] for result in results if result.get("labels")]
        return {**row, "completions": kept}

    def summarise(self, rows: Sequence[RewardedRow], stats: Stats) -> None:
        """Count completions, add up rewards of reference and offline ones and what labels of the reward model
        say, and compare rewards with people's labels."""
        for name, reference in (("reference", True), ("offline", False)):
            rewards = [
                c["reward"] for row in rows for c in row["completions"] if bool(c["reference"]) is reference
            ]
            stats.counts[f"{name}_completions"] += len(rewards)
            stats.observe(f"{name}_reward", rewards)
        stats.counts["completions_over_length"] += 0
        for reason, count in self._left_out.items():
            stats.counts[f"completions_{reason}"] += count
        stats.counts["prompts_all_tied"] += sum(_all_tied(row) for row in rows)
        self._left_out.clear()
        for name, values in zip(self._weighted, zip(*self._labels)):
            stats.observe(f"{LABEL_VALUE}{name}", values)
        self._labels.clear()
        count_agreement_of_rows(rows, stats)

    def counted_columns(self, stats: Stats) -> Sequence[str]:
        """What rewards are counted by; none where completions were left out or labels added up."""
        left_out = any(count for name, count in stats.counts.items() if name.startswith("completions_"))
        names = ("reference", "reward", "label", "wins", "losses")
        return () if left_out or self._weighted else ("source", *completion_columns(*names))


def _all_tied(row: RewardedRow) -> bool:
    rewards = {c["reward"] for c in row["completions"]}
    return len(rewards) == 1 and len(row["completions"]) > 1
