"""judge: pairs of completions, compared by the policy itself under one principle at a time.

Every pair is shown in both orders. The mean of the two is free of a preference for a position, and
how often the two agree says how much the judge's opinion is worth.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pyarrow as pa

from kubealign_components.config import execution, require
from kubealign_components.data.chunks import Chunk, Part, Row, open_chunk
from kubealign_components.data.fingerprint import derive, digest
from kubealign_components.data.schemas import COMPLETIONS, JUDGED, JUDGEMENT
from kubealign_components.data.stats import Stats
from kubealign_components.data.worker import run_chunk
from kubealign_components.engines.judge import Judgement, JudgeSpec, Pair, PairJudge

VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig(JudgeSpec):
    """Settings of ``judge``."""

    min_characters: int = 16
    """Completions of a text shorter than this are compared with none."""
    slice_rows: int = execution(64)
    """Prompts committed together; at most this many are lost with the pod."""

    def __post_init__(self) -> None:
        JudgeSpec.__post_init__(self)
        require(self.min_characters >= 1, "min_characters", self.min_characters, "1 or more")
        require(self.slice_rows > 0, "slice_rows", self.slice_rows, "a positive number")


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
        models={"judge": judge.identity},
        slug=["judged", *([principles.name] if principles.name != "judging" else [])],
    )
    stage = JudgeStage(judge, config.min_characters)
    try:
        return run_chunk(
            chunk, dataset, stage, schema=JUDGED, provenance=provenance, slice_rows=config.slice_rows
        )
    finally:
        judge.close()


class JudgeStage:
    """Judges rows under the chunk protocol; the model is loaded when the first row needs it."""

    result_schema = pa.schema([("judgements", pa.list_(JUDGEMENT)), ("over_length", pa.int32())])

    def __init__(self, judge: PairJudge, min_characters: int) -> None:
        self._judge = judge
        self._min_characters = min_characters
        self._over_length = 0

    def key(self, row: Row) -> str:
        """Hash of what is read: the prompt and every completion's text, whose ids may be of its tokens."""
        return digest([row["prompt_id"], [[c["completion_id"], c["messages"]] for c in row["completions"]]])

    def compute(self, slices: Iterator[list[Row]]) -> Iterator[tuple[Row, Row]]:
        """The judgements of each row: every pair under every principle, in both orders."""
        for rows in slices:
            places = [self._places(row) for row in rows]
            pairs = [pair for row, found in zip(rows, places) for pair in _pairs(row, found)]
            judged = iter(self._judge.judge(pairs))
            for row, found in zip(rows, places):
                of_row = [(place, next(judged)) for place in found]
                fitting = [(place, judgements) for place, judgements in of_row if judgements is not None]
                yield (
                    row,
                    {
                        "judgements": [
                            _judgement(*place, one) for place, of_pair in fitting for one in of_pair
                        ],
                        "over_length": len(of_row) - len(fitting),
                    },
                )

    def apply(self, row: Row, result: Row) -> Row:
        """The row with its judgements."""
        self._over_length += result["over_length"]
        return row | {"judgements": result["judgements"]}

    def summarise(self, rows: Sequence[Row], stats: Stats) -> None:
        """Count pairs and what was left out; add up scores, consistency, and the liking for a position."""
        for row in rows:
            stats.counts["judgements"] += len(row["judgements"])
            stats.counts["prompts_without_pairs"] += not row["judgements"]
            for one in row["judgements"]:
                stats.observe(f"consistent_{one['principle']}", [float(one["consistent"])])
                stats.observe(f"abs_score_{one['principle']}", [abs(one["score"])])
                stats.observe("consistent", [float(one["consistent"])])
                stats.observe("prefers_position_a", [(one["s12"] - one["s21"]) / 2])
        stats.counts["pairs_over_length"] += self._over_length
        self._over_length = 0

    def _places(self, row: Row) -> list[tuple[int, int]]:
        """Positions of different reference completions that are long enough, two by two."""
        texts = {p: _text(c) for p, c in enumerate(row["completions"]) if c["reference"]}
        long_enough = [p for p, text in texts.items() if len(text) >= self._min_characters]
        return [(one, two) for one, two in combinations(long_enough, 2) if texts[one] != texts[two]]


def _pairs(row: Row, places: Sequence[tuple[int, int]]) -> Iterator[Pair]:
    messages = json.loads(row["messages"])
    for one, two in places:
        yield Pair(messages, _text(row["completions"][one]), _text(row["completions"][two]))


def _judgement(first: int, second: int, judgement: Judgement) -> dict[str, object]:
    return {
        "first": first,
        "second": second,
        **judgement._asdict(),
        "score": judgement.score,
        "consistent": judgement.consistent,
    }


def _text(completion: dict[str, Any]) -> str:
    return "\n".join(m["content"] or "" for m in json.loads(completion["messages"])).strip()
