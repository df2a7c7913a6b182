"""judge: pairs of completions, compared by the policy itself under one principle at a time.

Every pair is shown in both orders. The mean of the two is free of a preference for a position, and
how often the two agree says how much the judge's opinion is worth.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from kubealign_components.config import execution, require, require_choice, semantic_params
from kubealign_components.data.chunks import Chunk, Part, Row, open_chunk, run_chunk
from kubealign_components.data.fingerprint import derive, digest
from kubealign_components.data.models import ModelFiles, find_model
from kubealign_components.data.principles import JUDGE, Principle, PrincipleSet, load_principles
from kubealign_components.data.schemas import COMPLETIONS, JUDGED, JUDGEMENT
from kubealign_components.data.stats import Stats
from kubealign_components.data.templates import JudgeTemplate, load_judge_template

if TYPE_CHECKING:
    from kubealign_components.engines.judging import Judge

VERSION = 1
Tokens = tuple[int, ...]
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    """Settings of ``judge``."""

    judge: str
    """Model directory, URI or hub id of the policy that judges."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    principles: str = "judging"
    """A shipped set of principles, or a file of one's own."""
    template: str = "judge"
    """The shipped question, or a file of one's own."""
    min_characters: int = 16
    """Completions of a text shorter than this are compared with none."""
    max_length: int = 0
    """Most tokens of a question; pairs with a longer one are left out and counted, nothing is cut. 0 for what
    the model was made for."""
    dtype: str = "auto"
    """Of the judge: float32, bfloat16, float16, or auto (bfloat16 on CUDA, else float32)."""
    token_budget: int = execution(8192)
    """Tokens in one forward pass, what questions share counted once."""
    slice_rows: int = execution(64)
    """Prompts committed together; at most this many are lost with the pod."""

    def __post_init__(self) -> None:
        require_choice("dtype", self.dtype, DTYPES)
        require(self.min_characters >= 1, "min_characters", self.min_characters, "1 or more")
        require(self.max_length >= 0, "max_length", self.max_length, "0 or a number of tokens")
        for name in ("token_budget", "slice_rows"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")


def run(config: JudgeConfig, *, chunk: Chunk) -> Part:
    """Judge all pairs of reference completions of each prompt of ``chunk`` (``kubealign.completions/v1``)
    and publish its part of a ``kubealign.judged/v1`` dataset.

    Raises:
        ConfigError: principles, template or model that cannot be used.
        EngineError: the judge cannot be loaded, or gives no finite number.
    """
    dataset = open_chunk(chunk, COMPLETIONS)
    principles = load_principles(config.principles).of_stage(JUDGE)
    require(len(principles) > 0, "principles", config.principles, "a set with principles for the judge")
    template = load_judge_template(config.template)
    model = find_model(config.judge, config.revision)
    settings = semantic_params(config)
    places = ("judge", "revision", "principles", "template")
    provenance = derive(
        "judge",
        VERSION,
        {name: value for name, value in settings.items() if name not in places}
        | {"principles": principles.identity(), "template": template.identity()},
        inputs={"completions": dataset},
        models={"judge": model.identity() | {"tokenizer": model.tokenizer_digest()}},
        slug=["judged", *([principles.name] if principles.name != "judging" else [])],
    )
    stage = JudgeStage(config, model, principles, template)
    try:
        return run_chunk(
            chunk, dataset, stage, schema=JUDGED, provenance=provenance, slice_rows=config.slice_rows
        )
    finally:
        stage.close()


class _Question(NamedTuple):
    """A pair under a principle, as token ids of both orders."""

    first: int
    second: int
    principle: str
    in_order: Tokens
    swapped: Tokens


class JudgeStage:
    """Judges rows under the chunk protocol; the model is loaded when the first row needs it."""

    result_schema = pa.schema([("judgements", pa.list_(JUDGEMENT)), ("over_length", pa.int32())])

    def __init__(
        self, config: JudgeConfig, model: ModelFiles, principles: PrincipleSet, template: JudgeTemplate
    ) -> None:
        self._config = config
        self._model = model
        self._principles = principles
        self._template = template
        self._judge: Judge | None = None
        self._over_length = 0

    def close(self) -> None:
        """Free the judge if one was loaded."""
        if self._judge is not None:
            self._judge.close()

    def key(self, row: Row) -> str:
        """Hash of the prompt and its completions."""
        return digest([row["prompt_id"], [c["completion_id"] for c in row["completions"]]])

    def compute(self, slices: Iterator[list[Row]]) -> Iterator[tuple[Row, Row]]:
        """The judgements of each row: every pair under every principle, in both orders."""
        for rows in slices:
            judge = self._start()
            asked = [self._questions(judge, row) for row in rows]
            ids = [ids for questions, _ in asked for q in questions for ids in (q.in_order, q.swapped)]
            preferences = iter(judge.preferences(ids))
            for row, (questions, over) in zip(rows, asked):
                judgements = [_judgement(q, *islice(preferences, 2)) for q in questions]
                yield row, {"judgements": judgements, "over_length": over}

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

    def _start(self) -> Judge:
        from kubealign_components.engines.judging import Judge

        if self._judge is None:
            config = self._config
            self._judge = Judge(
                self._model,
                self._template,
                dtype=config.dtype,
                token_budget=config.token_budget,
                max_length=config.max_length,
            )
        return self._judge

    def _questions(self, judge: Judge, row: Row) -> tuple[list[_Question], int]:
        """The questions of every pair whose questions all fit, and how many pairs had one that did not."""
        messages = json.loads(row["messages"])
        questions: list[_Question] = []
        over = 0
        for (first, one), (second, two) in self._pairs(row):
            of_pair = [
                _Question(first, second, principle.name, *self._orders(judge, messages, one, two, principle))
                for principle in self._principles
            ]
            if max(len(ids) for q in of_pair for ids in (q.in_order, q.swapped)) > judge.max_length:
                over += 1
            else:
                questions += of_pair
        return questions, over

    def _pairs(self, row: Row) -> Iterator[tuple[tuple[int, str], tuple[int, str]]]:
        """Positions and texts of different reference completions that are long enough."""
        texts = [
            (position, _text(completion))
            for position, completion in enumerate(row["completions"])
            if completion["reference"]
        ]
        long_enough = [(p, text) for p, text in texts if len(text) >= self._config.min_characters]
        return ((one, two) for one, two in combinations(long_enough, 2) if one[1] != two[1])

    def _orders(
        self, judge: Judge, messages: list[dict[str, Any]], one: str, two: str, principle: Principle
    ) -> tuple[Tokens, Tokens]:
        from kubealign_components.engines.judging import Comparison

        in_order, swapped = (
            judge.tokenise(
                Comparison(
                    messages=messages,
                    first=first,
                    second=second,
                    principle=principle.name,
                    statement=principle.statement(),
                )
            )
            for first, second in ((one, two), (two, one))
        )
        return in_order, swapped


def _judgement(question: _Question, prefers_first: float, prefers_second: float) -> dict[str, Any]:
    """Both orders' log-odds turned so that above zero the pair's first completion is preferred."""
    s12, s21 = prefers_first, -prefers_second
    return {
        "first": question.first,
        "second": question.second,
        "principle": question.principle,
        "s12": s12,
        "s21": s21,
        "score": (s12 + s21) / 2,
        "consistent": s12 * s21 > 0,
    }


def _text(completion: dict[str, Any]) -> str:
    return "\n".join(m["content"] or "" for m in json.loads(completion["messages"])).strip()
