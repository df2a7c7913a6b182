"""rank: one number for every completion, and its standard error, from a judge that compares two at a time.

Few pairs of a prompt's completions are compared, chosen as the ranking comes to be known (:mod:`.active`),
each in both orders; what the judge says under all principles becomes strengths (:mod:`.bradley_terry`), which
are the rewards. They have a mean of 0 in each prompt: rewards of two prompts are not comparable.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypedDict

import numpy as np
import pyarrow as pa
from scipy.special import expit

from kubealign_components.config import SettingGroup, execution, require
from kubealign_components.data.agreement import count_agreement_of_rows
from kubealign_components.data.chunks import Chunk, Part, open_chunk
from kubealign_components.data.engine_processes import engines
from kubealign_components.data.fingerprint import derive, digest
from kubealign_components.data.schemas import (
    COMPLETIONS,
    REWARDED,
    TOKENIZED,
    Completion,
    RewardedCompletion,
    RewardedRow,
    TokenizedRow,
)
from kubealign_components.data.seeds import seed_for
from kubealign_components.data.stats import Stats
from kubealign_components.data.worker import Missing, run_chunk
from kubealign_components.engines.judge import Judgement, JudgeSpec, Pair, PairJudge
from kubealign_components.engines.reward_input import RewardInput
from kubealign_components.engines.rewards import flatten_text, reward_inputs
from kubealign_components.rank.active import ActiveRanking, PositionPair

VERSION = 3
ASKED_ROWS = 4
"""Most prompts that are committed together where an endpoint is asked: each is hundreds of questions, and an
error or SIGTERM loses all answers of a slice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankConfig:
    """Settings of ``rank``."""

    GROUPS: ClassVar[Mapping[str, SettingGroup]] = {
        "judge": SettingGroup(
            arguments={"judge": "judge", "principles": "principles"}, options=("options.judge",)
        )
    }

    judge: JudgeSpec
    """Who compares, by what principles, and how it is asked."""
    comparisons: float = 3.0
    """Most pairs that are compared, for each different completion of a prompt: 3 rank 16 completions nearly
    as all 120 pairs do. A pair is shown in both orders under every principle."""
    resolved: float = 0.99
    """Kendall's tau that is expected with the judge's full ranking when a prompt is compared no further; 1 to
    use up its comparisons."""
    slice_rows: int = execution(64)
    """Prompts that are compared side by side and committed together; at most this many are lost with the
    pod."""
    processes: int = execution(0)
    """Engine processes of a pod, each with its own GPUs and share of the rows; 0 for as many as there are
    GPUs for."""

    def __post_init__(self) -> None:
        require(self.comparisons >= 1, "comparisons", self.comparisons, "1 or more for each completion")
        require(0 < self.resolved <= 1, "resolved", self.resolved, "above 0 and up to 1")
        require(self.slice_rows > 0, "slice_rows", self.slice_rows, "a positive number of prompts")
        require(self.processes >= 0, "processes", self.processes, "0 or more")


def run(config: RankConfig, *, chunk: Chunk) -> Part:
    """Reward the completions of ``chunk`` (``kubealign.completions/v1``, or ``tokenized/v1`` with offline
    completions only) by comparing them, and publish its part of a ``kubealign.rewarded/v1`` dataset.

    Raises:
        ConfigError: principles, template, model or adapter that cannot be used, or 4 bits without CUDA.
        EngineError: the judge cannot be loaded, or gives no finite number.
    """
    dataset = open_chunk(chunk, COMPLETIONS, TOKENIZED)
    judge = PairJudge(config.judge, dataset)
    principles = judge.principles
    provenance = derive(
        "rank",
        VERSION,
        {
            "judge": judge.params,
            "weights": [principle.weight for principle in principles],
            "comparisons": config.comparisons,
            "resolved": config.resolved,
        },
        inputs={"completions": dataset},
        models=judge.models,
        slug=["ranked", *([principles.name] if principles.name != "judging" else [])],
    )
    try:
        return run_chunk(
            chunk,
            dataset,
            RankStage(judge, comparisons=config.comparisons, resolved=config.resolved),
            schema=REWARDED,
            provenance=provenance,
            slice_rows=min(config.slice_rows, ASKED_ROWS) if config.judge.endpoint else config.slice_rows,
            engines=engines(
                run,
                config,
                chunk,
                processes=config.processes,
                fetch=judge.fetch,
                weights=judge.weight_bytes,
            ),
        )
    finally:
        judge.close()


class RankResult(TypedDict):
    """What the different texts of a prompt are worth; lists are in the order of the texts."""

    rewards: list[float | None]
    """Null for a text that could not be compared with any other."""
    errors: list[float | None]
    comparisons: int
    """Pairs that were compared."""
    consistent: int
    """Those of which both orders preferred the same text."""
    over_length: int
    """Pairs that could not be compared: they were too long, or an endpoint gave no letter."""
    position: float
    """Log-odds by which the judge prefers what it is shown first."""


class RankStage:
    """Ranks the completions of rows under the chunk protocol: one result a prompt, of all its texts.

    Args:
        judge: compares pairs; its model is loaded when the first row needs it.
        comparisons: most pairs for each text of a prompt.
        resolved: expected Kendall's tau at which a prompt is compared no further.
    """

    result_schema = pa.schema(
        [
            ("rewards", pa.list_(pa.float64())),
            ("errors", pa.list_(pa.float64())),
            ("comparisons", pa.int32()),
            ("consistent", pa.int32()),
            ("over_length", pa.int32()),
            ("position", pa.float64()),
        ]
    )
    unread: ClassVar[Sequence[str]] = ()

    def __init__(self, judge: PairJudge, *, comparisons: float, resolved: float) -> None:
        self._judge = judge
        self._comparisons = comparisons
        self._resolved = resolved
        self._weights = np.array([principle.weight for principle in judge.principles])
        self._applied: list[RankResult] = []
        self._left_out = 0

    def keys(self, row: TokenizedRow) -> list[str]:
        """A hash of the conversation and the set of texts, whoever wrote them and how often, and of what else
        functions see."""
        if not row["completions"]:
            return []
        seen = [dataclasses.asdict(one) for one in _inputs(row)] if self._judge.spec.functions else []
        return [digest([row["messages"], _texts(row), *seen])]

    def compute(
        self, slices: Iterator[list[Missing[TokenizedRow]]]
    ) -> Iterator[tuple[Missing[TokenizedRow], list[RankResult]]]:
        """The rewards of each row's texts; the rows of a slice are compared side by side, round by round."""
        for missing in slices:
            contests = [self._contest(one) for one in missing]
            while asked := [(contest, pair) for contest in contests for pair in contest.ranking.ask()]:
                judged = self._judge.judge([contest.pair(positions) for contest, positions in asked])
                for (contest, positions), judgements in zip(asked, judged, strict=True):
                    contest.ranking.tell(positions, self._preferred(judgements))
            for one, contest in zip(missing, contests):
                yield one, [contest.result()]

    def apply(self, row: TokenizedRow, results: Sequence[RankResult]) -> RewardedRow:
        """The row with its rewards, without the completions that have none."""
        kept: list[RewardedCompletion] = []
        for result in results:
            worth = dict(zip(_texts(row), zip(result["rewards"], result["errors"]), strict=True))
            for completion in row["completions"]:
                reward, error = worth[_text(completion)]
                if reward is not None:
                    kept.append({**completion, "reward": reward, "reward_se": error})
        self._left_out += len(row["completions"]) - len(kept)
        self._applied += results
        return {**row, "completions": kept}

    def summarise(self, rows: Sequence[RewardedRow], stats: Stats) -> None:
        """Count completions and comparisons, add up standard errors, consistency and the liking for a
        position, and compare rewards with labels."""
        for name, reference in (("reference", True), ("offline", False)):
            stats.counts[f"{name}_completions"] += sum(
                bool(c["reference"]) is reference for row in rows for c in row["completions"]
            )
        errors = [error for row in rows for c in row["completions"] if (error := c["reward_se"]) is not None]
        stats.observe("reward_se", errors)
        why = self._judge.spec.why_none
        stats.counts[f"completions_{why}"] += self._left_out
        stats.counts["comparisons"] += sum(result["comparisons"] for result in self._applied)
        stats.counts[f"pairs_{why}"] += sum(result["over_length"] for result in self._applied)
        compared = [result for result in self._applied if result["comparisons"]]
        stats.observe("prefers_position_a", [result["position"] for result in compared])
        stats.observe("consistent", [result["consistent"] / result["comparisons"] for result in compared])
        self._applied, self._left_out = [], 0
        count_agreement_of_rows(rows, stats)

    def counted_columns(self, _: Stats) -> Sequence[str]:
        """None: comparisons are of the results."""
        return ()

    def _contest(self, missing: Missing[TokenizedRow]) -> _Contest:
        texts = _texts(missing.row)
        ranking = ActiveRanking(
            count=len(texts),
            most=int(self._comparisons * len(texts)),
            resolved=self._resolved,
            seed=seed_for(0, "rank", missing.keys[0]),
        )
        return _Contest(json.loads(missing.row["messages"]), texts, _inputs(missing.row), ranking)

    def _preferred(self, judgements: Sequence[Judgement] | None) -> tuple[float, float] | None:
        """Probabilities that the first text is preferred under a principle that is drawn by weight, when it
        is shown first and when it is shown second."""
        if judgements is None:
            return None
        log_odds = np.array([(one.s12, one.s21) for one in judgements])
        first, second = np.average(expit(log_odds), axis=0, weights=self._weights)
        return float(first), float(second)


@dataclass(frozen=True, slots=True)
class _Contest:
    """One prompt's texts, as they are compared."""

    messages: Sequence[Mapping[str, object]]
    texts: Sequence[str]
    inputs: Sequence[RewardInput]
    """The texts as a reward function sees them."""
    ranking: ActiveRanking

    def pair(self, positions: PositionPair) -> Pair:
        """What the judge is asked."""
        one, other = positions
        inputs = (self.inputs[one], self.inputs[other])
        return Pair(self.messages, self.texts[one], self.texts[other], inputs)

    def result(self) -> RankResult:
        """What came of it; a text alone is of average worth."""
        ranking, strengths = self.ranking, self.ranking.strengths
        rewarded = ranking.compared if len(self.texts) > 1 else {0}
        worth = zip(strengths.value.tolist(), strengths.error.tolist())
        both = [pair if position in rewarded else (None, None) for position, pair in enumerate(worth)]
        return {
            "rewards": [reward for reward, _ in both],
            "errors": [error for _, error in both],
            "comparisons": len(ranking.outcomes),
            "consistent": ranking.comparisons.consistent,
            "over_length": len(ranking.refused),
            "position": strengths.position,
        }


def _texts(row: TokenizedRow) -> list[str]:
    """The different texts of a row's completions, in the one order that does not depend on theirs."""
    return sorted({_text(completion) for completion in row["completions"]})


def _inputs(row: TokenizedRow) -> list[RewardInput]:
    """What a reward function sees of each different text: of the completions that have it one and the same,
    whatever their order."""

    def seen(completion: Completion) -> str:
        return digest([completion["messages"], completion["num_tokens"], completion["finish_reason"]])

    of_text = {_text(completion): completion for completion in sorted(row["completions"], key=seen)}
    return reward_inputs(row, [of_text[text] for text in _texts(row)])


def _text(completion: Completion) -> str:
    return flatten_text(json.loads(completion["messages"])).strip()
