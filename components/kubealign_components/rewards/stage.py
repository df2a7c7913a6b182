"""rewards: one number for every completion, from reward functions, a reward model, or both.

Nothing is cut to fit a reward model: a conversation over its length is dropped and counted, or fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from kubealign_components.config import Group, execution, require
from kubealign_components.data.chunks import Chunk, Part, Row, open_chunk
from kubealign_components.data.fingerprint import derive, digest
from kubealign_components.data.schemas import COMPLETIONS, REWARDED, TOKENIZED
from kubealign_components.data.stats import Stats
from kubealign_components.data.worker import run_chunk
from kubealign_components.engines.rewards import REWARD, Rewarder, RewardSpec, reward_inputs, reward_params

VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardsConfig:
    """Settings of ``rewards``."""

    GROUPS: ClassVar[Mapping[str, Group]] = {"reward": Group(arguments=REWARD, options=("options.reward",))}

    reward: RewardSpec
    """The reward functions and the reward model."""
    slice_rows: int = execution(256)
    """Prompts committed together; at most this many are lost with the pod."""

    def __post_init__(self) -> None:
        require(self.slice_rows > 0, "slice_rows", self.slice_rows, "a positive number of prompts")


def run(config: RewardsConfig, *, chunk: Chunk) -> Part:
    """Reward the completions of ``chunk`` (``kubealign.completions/v1``, or ``tokenized/v1`` with
    offline completions only) and publish its part of a ``kubealign.rewarded/v1`` dataset.

    Raises:
        ConfigError: a reward function or model that is not there.
        EngineError: a reward function raised, or a reward is no finite number.
        DataError: a conversation is over length, and ``over_length`` is ``fail``.
    """
    rewarder = Rewarder(config.reward)
    dataset = open_chunk(chunk, COMPLETIONS, TOKENIZED)
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
        slice_rows=config.slice_rows,
    )


class RewardStage:
    """Rewards rows under the chunk protocol."""

    result_schema = pa.schema([("rewards", pa.list_(pa.float64())), ("refused", pa.list_(pa.string()))])

    def __init__(self, rewarder: Rewarder) -> None:
        self._rewarder = rewarder
        self._left_out: Counter[str] = Counter()

    def key(self, row: Row) -> str:
        """Hash of what is read: the prompt and every completion's."""
        return digest([row["prompt_id"], [self.completion_key(row, c) for c in row["completions"]]])

    def completion_key(self, row: Row, completion: Row) -> str:
        """Hash of what is read of one completion: its text, and for a reward function all that it is given.

        Not its id: two texts that a template renders alike share token ids.
        """
        read = [completion["messages"]]
        if self._rewarder.spec.functions:
            read += [completion["num_tokens"], completion["finish_reason"], row["answers"], row["metadata"]]
        return digest(read)

    def compute(self, slices: Iterator[list[Row]]) -> Iterator[tuple[Row, Row]]:
        """The rewards of each row's completions; null, and why, for one that has none."""
        for rows in slices:
            inputs = [reward_inputs(row, row["completions"]) for row in rows]
            outcomes = iter(self._rewarder.outcomes([item for row in inputs for item in row]))
            for row, of_row in zip(rows, inputs):
                own = [next(outcomes) for _ in of_row]
                yield row, {"rewards": [o.reward for o in own], "refused": [o.refused for o in own]}

    def apply(self, row: Row, result: Row) -> Row:
        """The row with its rewards, without the completions that have none."""
        rewarded = zip(row["completions"], result["rewards"], strict=True)
        kept = [c | {"reward": reward} for c, reward in rewarded if reward is not None]
        self._left_out.update(reason for reason in result["refused"] if reason)
        return row | {"completions": kept}

    def summarise(self, rows: Sequence[Row], stats: Stats) -> None:
        """Count completions, and add up the rewards of reference and offline ones."""
        for name, wanted in (("reference", True), ("offline", False)):
            rewards = [
                c["reward"] for row in rows for c in row["completions"] if bool(c["reference"]) is wanted
            ]
            stats.counts[f"{name}_completions"] += len(rewards)
            stats.observe(f"{name}_reward", rewards)
        stats.counts["completions_over_length"] += 0
        for reason, count in self._left_out.items():
            stats.counts[f"completions_{reason}"] += count
        stats.counts["prompts_all_tied"] += sum(_all_tied(row) for row in rows)
        self._left_out.clear()


def _all_tied(row: Row) -> bool:
    rewards = {c["reward"] for c in row["completions"]}
    return len(rewards) == 1 and len(row["completions"]) > 1
