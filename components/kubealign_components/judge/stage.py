"""judge: pairs of completions, compared by the policy itself under one principle at a time.

Every pair is shown in both orders. The mean of the two is free of a preference for a position, and
how often the two agree says how much the judge's opinion is worth.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, TypedDict

import pyarrow as pa

from kubealign_components.config import execution, require
from kubealign_components.data.chunks import Chunk, Part, open_chunk
from kubealign_components.data.engine_processes import engines
from kubealign_components.data.fingerprint import derive, digest
from kubealign_components.data.schemas import (
    COMPLETIONS,
    JUDGED,
    JUDGEMENT,
    Completion,
    JudgedRow,
    OpinionRow,
    TokenizedRow,
)
from kubealign_components.data.stats import Stats
from kubealign_components.data.worker import Missing, run_chunk
from kubealign_components.engines.judge import Judgement, JudgeSpec, Pair, PairJudge
from kubealign_components.engines.rewards import reward_inputs

VERSION = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig(JudgeSpec):
    """Settings of ``judge``."""

    min_characters: int = 16
    """Completions of a text shorter than this are compared with none."""
    slice_rows: int = execution(64)
    """Prompts committed together; at most this many are lost with the pod."""
    processes: int = execution(0)
    """Engine processes of a pod, each with its own GPUs and share of the rows; 0 for as many as there are
    GPUs for."""

    def __post_init__(self) -> None:
        JudgeSpec.__post_init__(self)
        require(not self.endpoint, "endpoint", self.endpoint, "none: the policy is its own judge")
        require(self.min_characters >= 1, "min_characters", self.min_characters, "1 or more")
        require(self.slice_rows > 0, "slice_rows", self.slice_rows, "a positive number")
        require(self.processes >= 0, "processes", self.processes, "0 or more")


def run(config: JudgeConfig, *, chunk: Chunk) -> Part:
    """Judge all pairs of reference completions of each prompt of ``chunk`` (``kubealign.completions/v1``)
    and publish its part of a ``kubealign.judged/v1`` dataset.

    Raises:
        ConfigError: principles, template, model or adapter that cannot be used, or 4 bits without CUDA.
        EngineError: the judge cannot be loaded, or gives no finite number.
    """
    dataset = open_chunk(chunk, COMPLETIONS)
    judge = PairJudge(config, dataset)
    principles = judge.principles
    provenance = derive(
        "judge",
        VERSION,
        judge.params,
        inputs={"completions": dataset},
        models=judge.models,
        slug=["judged", *([principles.name] if principles.name != "judging" else [])],
    )
    stage = JudgeStage(judge, config.min_characters)
    try:
        return run_chunk(
            chunk,
            dataset,
            stage,
            schema=JUDGED,
            provenance=provenance,
            slice_rows=config.slice_rows,
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


_OF_PAIR = pa.struct([field for field in JUDGEMENT if field.name not in ("first", "second")])
"""A judgement, wherever the two completions stand."""


class JudgeResult(TypedDict):
    """The judgements of a pair, one a principle; null when it is over length."""

    judgements: list[OpinionRow] | None


class JudgeStage:
    """Judges rows under the chunk protocol; the model is loaded when the first row needs it."""

    result_schema = pa.schema([("judgements", pa.list_(_OF_PAIR))])
    unread: ClassVar[Sequence[str]] = ()

    def __init__(self, judge: PairJudge, min_characters: int) -> None:
        self._judge = judge
        self._min_characters = min_characters
        self._over_length = 0

    def keys(self, row: TokenizedRow) -> list[str]:
        """For each pair a hash of what is read: the prompt and both texts, and what else functions see."""
        texts = [_text(c) for c in row["completions"]]
        return [
            digest([row["messages"], texts[one], texts[two], *self._seen_by_functions(row, one, two)])
            for one, two in self._pair_positions(row)
        ]

    def compute(
        self, slices: Iterator[list[Missing[TokenizedRow]]]
    ) -> Iterator[tuple[Missing[TokenizedRow], list[JudgeResult]]]:
        """The judgements of each pair under every principle, in both orders; null for one over length."""
        for missing in slices:
            pair_positions = [self._pair_positions(one.row) for one in missing]
            lacking = [[own[i] for i in one.positions] for one, own in zip(missing, pair_positions)]
            pairs = [pair for one, own in zip(missing, lacking) for pair in _pairs(one.row, own)]
            judged = iter(self._judge.judge(pairs))
            for one in missing:
                yield one, [{"judgements": _lines(next(judged))} for _ in one.positions]

    def apply(self, row: TokenizedRow, results: Sequence[JudgeResult]) -> JudgedRow:
        """The row with its judgements."""
        of_pairs = list(
            zip(self._pair_positions(row), (result["judgements"] for result in results), strict=True)
        )
        self._over_length += sum(judgements is None for _, judgements in of_pairs)
        return {
            **row,
            "judgements": [
                {"first": first, "second": second, **one}
                for (first, second), judgements in of_pairs
                for one in judgements or ()
            ],
        }

    def summarise(self, rows: Sequence[JudgedRow], stats: Stats) -> None:
        """Count pairs and what was left out; add up scores, consistency, and the liking for a position."""
        stats.counts["judgements"] += sum(len(row["judgements"]) for row in rows)
        stats.counts["prompts_without_pairs"] += sum(not row["judgements"] for row in rows)
        for row in rows:
            for one in row["judgements"]:
                stats.observe(f"consistent_{one['principle']}", [float(one["consistent"])])
                stats.observe(f"abs_score_{one['principle']}", [abs(one["score"])])
                stats.observe("consistent", [float(one["consistent"])])
                stats.observe("prefers_position_a", [(one["s12"] - one["s21"]) / 2])
        stats.counts["pairs_over_length"] += self._over_length
        self._over_length = 0

    def counted_columns(self, stats: Stats) -> Sequence[str]:
        """What judgements are counted by; none where pairs were over length."""
        return () if stats.counts["pairs_over_length"] else ("judgements",)

    def _seen_by_functions(self, row: TokenizedRow, *positions: int) -> list[object]:
        if not self._judge.spec.functions:
            return []
        inputs = reward_inputs(row, [row["completions"][position] for position in positions])
        return [dataclasses.asdict(one) for one in inputs]

    def _pair_positions(self, row: TokenizedRow) -> list[tuple[int, int]]:
        """Positions of different reference completions that are long enough, two by two."""
        texts = {p: _text(c) for p, c in enumerate(row["completions"]) if c["reference"]}
        long_enough = [p for p, text in texts.items() if len(text) >= self._min_characters]
        return [(one, two) for one, two in combinations(long_enough, 2) if texts[one] != texts[two]]


def _pairs(row: TokenizedRow, pair_positions: Sequence[tuple[int, int]]) -> Iterator[Pair]:
    messages, texts = json.loads(row["messages"]), [_text(c) for c in row["completions"]]
    inputs = reward_inputs(row, row["completions"])  # one of each, which a function then rewards once
    for one, two in pair_positions:
        yield Pair(messages, texts[one], texts[two], (inputs[one], inputs[two]))


def _lines(judgements: Sequence[Judgement] | None) -> list[OpinionRow] | None:
    if judgements is None:
        return None
    return [
        {
            "principle": one.principle,
            "s12": one.s12,
            "s21": one.s21,
            "score": one.score,
            "consistent": one.consistent,
        }
        for one in judgements
    ]


def _text(completion: Completion) -> str:
    return "\n".join(m["content"] or "" for m in json.loads(completion["messages"])).strip()
