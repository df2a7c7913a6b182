"""The kinds of dataset, their columns, and what a row is called.

One row is one prompt with its completions, from ``import_prompts`` to ``select``; ``mix`` turns it
into training examples. The prompt kinds share one column set: what a kind adds is that more of the
columns are filled. Free-form parts (chat messages, tool definitions, a source's own metadata) are
canonical JSON text, so that every source has the same Arrow schema.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack, overload

import numpy as np
import pyarrow as pa

from kubealign_components.data.benchmark_rows import BENCHMARK, BENCHMARK_ROW, BenchmarkRow
from kubealign_components.data.choice_rows import CHOICE, CHOICE_ROW, ChoiceRow
from kubealign_components.data.fingerprint import canonical_json

PROMPTS = "kubealign.prompts/v1"
"""Imported prompts and their offline completions, as text."""
TOKENIZED = "kubealign.tokenized/v1"
"""Plus token ids and lengths under the policy's template (``filter``)."""
COMPLETIONS = "kubealign.completions/v1"
"""Plus completions sampled from the reference policy (``sample``)."""
REWARDED = "kubealign.rewarded/v1"
"""Plus a reward for every completion (``rewards``)."""
SELECTION = "kubealign.selection/v1"
"""The chosen completions, their quantile rewards, and the pairs they form (``select``)."""
TRAINING = "kubealign.training/v1"
"""Training examples: the identity of a training run's data (``mix``)."""
MODEL = "kubealign.model/v1"
"""A Hugging Face model directory (``train``, ``train_reward_model``)."""
EVALUATION = "kubealign.evaluation/v1"
"""One row a held-out prompt: completions and rewards of both policies (``evaluate``)."""
JUDGED = "kubealign.judged/v1"
"""Completions that were compared in pairs, under one principle at a time (``judge``)."""
PREFERENCES = "kubealign.preferences/v1"
"""Pairs with a preferred completion, for the reward model (``aggregate``, ``clean_pmp``)."""

TOKEN_IDS = pa.list_(pa.field("element", pa.int32(), nullable=False))
"""No element is null, which also makes Parquet read a fifth faster."""

COMPLETION = pa.struct(
    [
        (
            "completion_id",
            pa.string(),
        ),  # content hash of prompt and tokens (of prompt and messages before `filter`)
        ("reference", pa.bool_()),  # sampled from the reference policy, so its reward is a reference reward
        ("model", pa.string()),  # who wrote it: policy name, or what the source says
        ("messages", pa.string()),  # JSON: the assistant messages
        ("label", pa.string()),  # the source's own verdict: chosen, rejected or null (none, or both)
        ("wins", TOKEN_IDS),  # numbers of the prompt's comparisons in which people preferred it, or null
        ("losses", TOKEN_IDS),  # numbers of those in which they preferred another one, or null
        ("score", pa.float64()),  # the source's own score, or null
        ("token_ids", TOKEN_IDS),  # the completion's own tokens, end-of-turn included
        ("num_tokens", pa.int32()),  # len(token_ids)
        ("finish_reason", pa.string()),  # stop, length (cut at max_new_tokens), or offline
        ("sampler_logprob", pa.float64()),  # nats, sum over token_ids, raw (before temperature and top-p)
        ("logprob", pa.float64()),  # nats, sum over token_ids under the reference policy, by `logprobs`
        ("reward", pa.float64()),
        (
            "reward_se",
            pa.float64(),
        ),  # standard error of the reward, where it is an estimate (`rank`), or null
        ("quantile_reward", pa.float64()),  # in [0, 1], against the prompt's reference rewards
    ]
)

_PROMPT_FIELDS = [
    ("prompt_id", pa.string()),  # content hash of messages and tools
    ("source", pa.string()),
    ("source_weight", pa.float64()),
    ("messages", pa.string()),  # JSON: the chat up to the turn to complete
    ("tools", pa.string()),  # JSON list, or null
    ("answers", pa.list_(pa.string())),  # verifiable answers, possibly none
    ("metadata", pa.string()),  # JSON object of the source's own fields, or null
    ("prompt_token_ids", TOKEN_IDS),  # templated, generation prompt included
    ("prompt_tokens", pa.int32()),  # len(prompt_token_ids)
    ("completions", pa.list_(COMPLETION)),
    ("dropped_completions", pa.int32()),  # sampled completions that were dropped as truncated
]
PROMPT_ROW = pa.schema(_PROMPT_FIELDS)

PAIR = pa.struct([("chosen", pa.int32()), ("rejected", pa.int32())])
SELECTION_ROW = pa.schema(
    [
        *_PROMPT_FIELDS,
        ("reference_rewards", pa.list_(pa.float64())),  # of all reference completions, selected or not
        ("pairs", pa.list_(PAIR)),  # positions in `completions`; empty for pointwise selections
    ]
)

TRAINING_ROW = pa.schema(
    [
        ("example_id", pa.string()),  # content hash of prompt and completion ids
        ("prompt_id", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),  # train or validation, by hash of the prompt
        ("messages", pa.string()),
        ("tools", pa.string()),
        ("prompt_token_ids", TOKEN_IDS),
        ("completions", pa.list_(COMPLETION)),  # [chosen, rejected] of a pair, or one of a pointwise example
        ("num_references", pa.int32()),  # reference rewards behind the quantile rewards
    ]
)

MODEL_ROW = pa.schema([("step", pa.int32()), ("metrics", pa.string())])
"""A model's rows are its training log: optimiser step and JSON metrics."""

EVALUATION_ROW = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("messages", pa.string()),
        ("reference", pa.list_(COMPLETION)),
        ("aligned", pa.list_(COMPLETION)),
        ("reward_difference", pa.float64()),  # mean aligned reward minus mean reference reward
    ]
)

JUDGEMENT = pa.struct(
    [
        ("first", pa.int32()),  # position in `completions`
        ("second", pa.int32()),  # position in `completions`
        ("principle", pa.string()),
        # Log-odds, in nats, that the judge prefers `first` under the principle:
        ("s12", pa.float64()),  # `first` shown as (a)
        ("s21", pa.float64()),  # `second` shown as (a)
        ("score", pa.float64()),  # their mean, in which a preference for a position cancels
        ("consistent", pa.bool_()),  # both orders prefer the same completion
    ]
)
JUDGED_ROW = pa.schema([*_PROMPT_FIELDS, ("judgements", pa.list_(JUDGEMENT))])

PREFERENCE_PRINCIPLE = pa.struct([("name", pa.string()), ("negated", pa.bool_()), ("text", pa.string())])
PREFERENCES_ROW = pa.schema(
    [
        ("pair_id", pa.string()),  # content hash of prompt id, both completion ids and the draw
        ("prompt_id", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),  # train or validation, by hash of the prompt
        ("messages", pa.string()),
        ("tools", pa.string()),
        ("completions", pa.list_(COMPLETION)),  # two, in the order in which they are shown
        ("preferred", pa.int32()),  # 0 or 1, position in `completions`
        ("principles", pa.list_(PREFERENCE_PRINCIPLE)),  # what the preference goes by; empty for human ones
        ("margin", pa.float64()),  # by how much, 0 or more, in the source's or the judge's scores; or null
        ("metadata", pa.string()),  # JSON object: scores, rule, flipped, swapped, …
    ]
)

_FEW_VALUES = {"source", "model", "label", "finish_reason", "split", "principle", "task", "filter", "metric"}

ROWS: dict[str, pa.Schema] = {
    PROMPTS: PROMPT_ROW,
    TOKENIZED: PROMPT_ROW,
    COMPLETIONS: PROMPT_ROW,
    REWARDED: PROMPT_ROW,
    SELECTION: SELECTION_ROW,
    TRAINING: TRAINING_ROW,
    MODEL: MODEL_ROW,
    EVALUATION: EVALUATION_ROW,
    CHOICE: CHOICE_ROW,
    BENCHMARK: BENCHMARK_ROW,
    JUDGED: JUDGED_ROW,
    PREFERENCES: PREFERENCES_ROW,
}


class _CompletionText(TypedDict):
    """The columns of a completion that its source or sampler fills, for the rows of :data:`COMPLETION`."""

    completion_id: str
    reference: bool
    model: str | None
    messages: str
    label: str | None
    wins: list[int] | None
    losses: list[int] | None
    score: float | None
    sampler_logprob: float | None
    logprob: float | None


class ImportedCompletion(_CompletionText):
    """A completion as its source gives it, without tokens (:data:`PROMPTS`)."""

    token_ids: list[int] | None
    num_tokens: int | None
    finish_reason: str | None
    reward: float | None
    reward_se: float | None
    quantile_reward: float | None


class Completion(_CompletionText):
    """A completion with its tokens (from :data:`TOKENIZED` on); without a reward where none was given."""

    token_ids: list[int]
    num_tokens: int
    finish_reason: str
    reward: float | None
    reward_se: float | None
    quantile_reward: float | None


class RewardedCompletion(_CompletionText):
    """A completion with its reward (:data:`REWARDED`)."""

    token_ids: list[int]
    num_tokens: int
    finish_reason: str
    reward: float
    reward_se: float | None
    quantile_reward: float | None


class _PromptText(TypedDict):
    """The columns of a prompt that its source fills."""

    prompt_id: str
    source: str
    source_weight: float
    messages: str
    tools: str | None
    answers: list[str]
    metadata: str | None
    dropped_completions: int | None


class _Prompt(_PromptText):
    prompt_token_ids: list[int]
    prompt_tokens: int


class PromptRow(_PromptText):
    """A row of :data:`PROMPTS`."""

    prompt_token_ids: list[int] | None
    prompt_tokens: int | None
    completions: list[ImportedCompletion]


class TokenizedRow(_Prompt):
    """A row of :data:`TOKENIZED` and :data:`COMPLETIONS`."""

    completions: list[Completion]


class RewardedRow(_Prompt):
    """A row of :data:`REWARDED`."""

    completions: list[RewardedCompletion]


class PairRow(TypedDict):
    """Positions in ``completions``, of :data:`PAIR`."""

    chosen: int
    rejected: int


class SelectionRow(_Prompt):
    """A row of :data:`SELECTION`."""

    completions: list[Completion]
    reference_rewards: list[float]
    pairs: list[PairRow]


class TrainingRow(TypedDict):
    """A row of :data:`TRAINING`."""

    example_id: str
    prompt_id: str
    source: str
    split: str
    messages: str
    tools: str | None
    prompt_token_ids: list[int]
    completions: list[Completion]
    num_references: int


class ModelRow(TypedDict):
    """A row of :data:`MODEL`."""

    step: int
    metrics: str


class EvaluationRow(TypedDict):
    """A row of :data:`EVALUATION`."""

    prompt_id: str
    messages: str
    reference: list[Completion]
    aligned: list[Completion]
    reward_difference: float | None


class OpinionRow(TypedDict):
    """What a judge says of a pair under one principle, wherever its completions stand."""

    principle: str
    s12: float
    s21: float
    score: float
    consistent: bool


class JudgementRow(OpinionRow):
    """Two completions under one principle, of :data:`JUDGEMENT`."""

    first: int
    second: int


class JudgedRow(_Prompt):
    """A row of :data:`JUDGED`."""

    completions: list[Completion]
    judgements: list[JudgementRow]


class PreferencePrinciple(TypedDict):
    """A principle as it was shown, of :data:`PREFERENCE_PRINCIPLE`."""

    name: str
    negated: bool
    text: str


class PreferenceRow(TypedDict):
    """A row of :data:`PREFERENCES`."""

    pair_id: str
    prompt_id: str
    source: str
    split: str
    messages: str
    tools: str | None
    completions: list[ImportedCompletion]
    preferred: int
    principles: list[PreferencePrinciple]
    margin: float | None
    metadata: str | None


ROW_TYPES: dict[str, type] = {
    PROMPTS: PromptRow,
    TOKENIZED: TokenizedRow,
    COMPLETIONS: TokenizedRow,
    REWARDED: RewardedRow,
    SELECTION: SelectionRow,
    TRAINING: TrainingRow,
    MODEL: ModelRow,
    EVALUATION: EvaluationRow,
    CHOICE: ChoiceRow,
    BENCHMARK: BenchmarkRow,
    JUDGED: JudgedRow,
    PREFERENCES: PreferenceRow,
}
"""The type of a row of each kind, for readers. Where Arrow lets any column be null, it says which are."""


@dataclass(frozen=True, slots=True)
class ShardEncoding:
    """How the Parquet columns of a schema are best written; columns by their paths in the file."""

    dictionary: list[str]
    """Texts of few values. Ids, chats and numbers have too many for a dictionary."""
    by_column: dict[str, str]
    """Token ids: byte by byte, so that the high bytes, nearly always zero, lie together."""


def shard_encoding(schema: pa.Schema) -> ShardEncoding:
    """The encoding of each column of ``schema``."""
    leaves = [leaf for field in schema for leaf in _leaves(field.name, field.type)]
    return ShardEncoding(
        [path for path, _ in leaves if path.rsplit(".", 1)[-1] in _FEW_VALUES],
        {
            path: "BYTE_STREAM_SPLIT"
            for path, kind in leaves
            if kind == pa.int32() and path.endswith(".list.element")
        },
    )


def _leaves(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """Path and type of every Parquet column under ``path``."""
    if pa.types.is_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{path}.{field.name}", field.type)
    else:
        yield path, kind


def prompt_id(messages: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] | None) -> str:
    """Content hash (32 hex digits) of a prompt: its chat messages and its tools."""
    return _hash(
        canonical_json(
            {"messages": _with_objects(messages), "tools": list(tools) if tools else None}
        ).encode()
    )


def completion_id(prompt: str, token_ids: Sequence[int]) -> str:
    """Content hash (32 hex digits) of a completion: its prompt's id and its token ids."""
    return _hash(prompt.encode() + np.asarray(token_ids, dtype="<i4").tobytes())


def offline_completion_id(prompt: str, messages: Sequence[Mapping[str, object]]) -> str:
    """Content hash of a completion that has no token ids yet."""
    return _hash(prompt.encode() + canonical_json(_with_objects(messages)).encode())


def _with_objects(messages: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """``messages`` with the arguments of tool calls as objects: text of the same object is the same call."""
    return [
        {**m, "tool_calls": [_with_object(call) for call in calls]}
        if isinstance(calls := m.get("tool_calls"), list)
        else m
        for m in messages
    ]


def _with_object(call: object) -> object:
    function = call.get("function") if isinstance(call, dict) else None
    if (
        not isinstance(call, dict)
        or not isinstance(function, dict)
        or not isinstance(function.get("arguments"), str)
    ):
        return call
    try:
        return call | {"function": function | {"arguments": json.loads(function["arguments"])}}
    except (ValueError, RecursionError):
        return call


def pair_id(prompt: str, completions: Sequence[str], draw: int = 0) -> str:
    """Content hash of a pair, whichever completion is shown first.

    Args:
        prompt: the prompt's id.
        completions: the ids of both completions, in any order.
        draw: number of the draw of principles, when a pair is drawn for several times.
    """
    return _hash(canonical_json([prompt, *sorted(completions), draw]).encode())


class _Given(TypedDict, total=False):
    completion_id: str
    reference: bool
    model: str | None
    messages: str
    label: str | None
    wins: list[int] | None
    losses: list[int] | None
    score: float | None
    sampler_logprob: float | None
    logprob: float | None
    reward: float | None
    reward_se: float | None
    quantile_reward: float | None


@overload
def new_completion(
    *, token_ids: list[int], num_tokens: int, finish_reason: str, **fields: Unpack[_Given]
) -> Completion: ...


@overload
def new_completion(**fields: Unpack[_Given]) -> ImportedCompletion: ...


def new_completion(**fields: object) -> object:
    """A completion with every column of :data:`COMPLETION`, null where not given."""
    empty: dict[str, object] = {field.name: None for field in COMPLETION}
    unknown = set(fields) - set(empty)
    if unknown:
        raise KeyError(f"no such completion column: {', '.join(sorted(unknown))}")
    return empty | fields


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
