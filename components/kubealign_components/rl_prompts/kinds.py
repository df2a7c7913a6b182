"""What the rows of each kind of source ask, and which of them are wanted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kubealign_components.data.answers import last_boxed
from kubealign_components.data.principles import GENERAL, REASONING
from kubealign_components.json_types import JsonObject
from kubealign_components.rl_prompts.cleaning import clean
from kubealign_components.sources.example import answers_of
from kubealign_components.sources.messages import Message, Reading, turns_from_text
from kubealign_components.sources.row_formats import FORMATS, looks_like, parse
from kubealign_components.sources.source import Unwanted
from kubealign_components.sources.values import Malformed, first_of, text_of

BUCKETS = ("niv", "flan", "t0", "cot")
"""OpenOrca's collections, in the order in which a prompt that several have is counted."""
DOLLY_CATEGORIES = ("creative_writing", "brainstorming", "open_qa", "general_qa", "classification")
"""Dolly's categories whose questions stand alone."""

_NLI_PHRASE = "it is not possible to tell"
_NLI_WORDS = re.compile(r"\b(?:premise|hypothesis)\b")


@dataclass(kw_only=True, slots=True)
class Question:
    """The prompt of one row."""

    messages: list[Message]
    bucket: str = ""
    """The part of the source it belongs to, for a cap by part."""
    tools: list[JsonObject] | None = None
    answers: list[str] = field(default_factory=list)
    metadata: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """How to read a kind of source."""

    read: Callable[[Mapping[str, object], Reading], Question]
    question_type: str = GENERAL
    buckets: tuple[str, ...] = ("",)
    max_per_bucket: int = 0
    """Most prompts of each bucket when the source does not say; 0 for all."""


def openorca(row: Mapping[str, object], reading: Reading) -> Question:  # noqa: ARG001
    """``question`` and ``id``, which begins with the collection that the question comes from.

    Raises:
        Malformed: no_prompt or unknown_bucket.
        Unwanted: nli.
    """
    text, name = _text(row.get("question")), row.get("id")
    bucket = re.split(r"[^0-9a-z]", name.lower(), maxsplit=1)[0] if isinstance(name, str) else ""
    if bucket not in BUCKETS:
        raise Malformed("unknown_bucket")
    lower = text.lower()
    if _NLI_PHRASE in lower or _NLI_WORDS.search(lower):
        raise Unwanted("nli")
    return Question(messages=_user(text), bucket=bucket, metadata={"bucket": bucket})


def sharegpt(row: Mapping[str, object], reading: Reading) -> Question:
    """The first turn of a conversation of at least two, when a human has it; cleaned.

    Raises:
        Malformed: no_messages, bad_message, unknown_role or not_text.
        Unwanted: single_turn, first_turn_not_human or empty.
    """
    turns = turns_from_text(first_of(row, "conversations", "messages", "items"), reading.roles)
    if not isinstance(turns, list) or not turns:
        raise Malformed("no_messages")
    first = turns[0]
    if not isinstance(first, Mapping):
        raise Malformed("bad_message")
    if len(turns) < 2:
        raise Unwanted("single_turn")
    name = first_of(first, "role", "from", "author")
    role = reading.roles.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise Malformed("unknown_role")
    if role != "user":
        raise Unwanted("first_turn_not_human")
    text = clean(text_of(first_of(first, "markdown", "content", "value", "text")), reading.notes)
    if not text:
        raise Unwanted("empty")
    return Question(messages=_user(text))


def dolly(row: Mapping[str, object], reading: Reading) -> Question:  # noqa: ARG001
    """``instruction`` of the categories that need no context.

    Raises:
        Malformed: no_prompt or no_category.
        Unwanted: other_category or has_context.
    """
    text, category = _text(row.get("instruction")), row.get("category")
    if not isinstance(category, str):
        raise Malformed("no_category")
    if category not in DOLLY_CATEGORIES:
        raise Unwanted("other_category")
    context = row.get("context")
    if isinstance(context, str) and context.strip():
        raise Unwanted("has_context")
    return Question(messages=_user(text), metadata={"category": category})


def math(row: Mapping[str, object], reading: Reading) -> Question:  # noqa: ARG001
    r"""``problem``, with ``answer``, or what stands in the last ``\boxed{…}`` of ``solution``.

    Raises:
        Malformed: no_prompt or bad_answer.
    """
    text, solution = _text(row.get("problem")), row.get("solution")
    answer = row.get("answer")
    if answer is None and isinstance(solution, str):
        answer = last_boxed(solution)
    metadata = {key: row[key] for key in ("level", "type") if isinstance(row.get(key), str)}
    return Question(messages=_user(text), answers=answers_of(answer), metadata=metadata)


def any_prompt(row: Mapping[str, object], reading: Reading) -> Question:
    """The prompt of a row of any format that ``import_prompts`` reads; its completions are left.

    Raises:
        Malformed: as ``import_prompts`` would refuse it, or unknown_format.
    """
    form = looks_like(row)
    if form is None:
        raise Malformed("unknown_format")
    example = parse(row, FORMATS[form], reading.roles)
    reading.notes.update(example.notes)
    return Question(
        messages=example.messages, tools=example.tools, answers=example.answers, metadata=example.metadata
    )


KINDS: dict[str, Kind] = {
    "dolly": Kind(read=dolly),
    "sharegpt": Kind(read=sharegpt),
    "openorca": Kind(read=openorca, question_type=REASONING, buckets=BUCKETS, max_per_bucket=10_000),
    "math": Kind(read=math, question_type=REASONING),
    "any": Kind(read=any_prompt),
}


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Malformed("no_prompt")
    return value.strip()


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]
