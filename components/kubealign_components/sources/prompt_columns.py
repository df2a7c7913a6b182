"""The prompt of a row: the column that holds it, what belongs to it, and what may not contradict it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from kubealign_components.sources.example import Columns
from kubealign_components.sources.messages import Message, read_turns, turns_from_text
from kubealign_components.sources.transcripts import answer_is_due, prompt_of_transcript
from kubealign_components.sources.values import Malformed, text_of

CHAT_COLUMNS = ("conversations", "messages", "conversation")
"""Columns that hold a whole chat."""
PROMPT_COLUMNS = (
    "prompt",
    *CHAT_COLUMNS,
    "instruction",
    "question",
    "problem",
    "query",
    "input_text",
)


_ASKING = re.compile(
    r"(?:\A|[_ -])(?:prompts?|questions?|quer(?:y|ies)|instructions?|inputs?|context|history|posts?"
    r"|trajectory|dialog(?:ue)?s?|conversations?|messages?|turns?|users?|requests?|problems?)"
    r"(?:[_ -](?:text|content|string))?\d*\Z",
    re.IGNORECASE,
)
"""Names of columns that may hold what was asked; not those of what is said about it, such as its type."""


def explicit_prompt(row: Columns, *more: str) -> list[Message] | None:
    """The turns of the row's prompt column, without the system prompt of another; None without one.

    Args:
        row: whose columns are taken.
        more: columns that hold the prompt where none of :data:`PROMPT_COLUMNS` is there.

    Raises:
        Malformed: no_prompt, bad_transcript, bad_history, or what :func:`read_turns` raises.
    """
    name = next((n for n in (*PROMPT_COLUMNS, *more) if row.has(n) and row.peek(n) != []), None)
    if name is None:
        return None
    value = row.take(name)
    if isinstance(value, Mapping) and isinstance(value.get("full_text"), str):  # WebGPT's questions
        value = value["full_text"]
    chat = name in CHAT_COLUMNS
    if chat or not isinstance(value, str):
        return read_turns(value, row.reading, chat=chat)
    if turns_from_text(value) is not value:
        row.reading.notes["texts_that_are_json_chats"] += 1
    turns = prompt_of_transcript(value)
    if turns is not None:
        return turns
    if name == "instruction":
        value = "\n".join(filter(None, [value, text_of(row.take("input", "context"))]))
    if name == "question":
        value = "\n".join(filter(None, [text_of(row.take("passage", "context")), value]))
    if not value.strip():
        raise Malformed("no_prompt")
    if answer_is_due(value):
        row.reading.notes["prompts_with_marks_of_a_chat"] += 1
    return [*_history(row), {"role": "user", "content": value}]


def with_system(row: Columns, turns: list[Message]) -> list[Message]:
    """``turns`` after the row's own system prompt.

    Raises:
        Malformed: contradicting_system, when the turns begin with another one.
    """
    system = text_of(row.take("system", "system_prompt", "system_message", "system_instruction"))
    if not system.strip():
        return turns
    if turns and turns[0]["role"] == "system":
        if not _same(turns[0]["content"], system):
            raise Malformed("contradicting_system")
        return turns
    return [{"role": "system", "content": system}, *turns]


def agreed(prompt: list[Message] | None, shared: list[Message]) -> list[Message]:
    """The prompt of a row whose chats begin with ``shared``, and which has a prompt column, too.

    The column may repeat a turn of the chats, some or all of them, or bring the system prompt.

    Raises:
        Malformed: contradicting_prompt, when it says something else.
    """
    if prompt is None:
        return shared
    prompt = prompt[:-1] if prompt[-1]["role"] == "assistant" else prompt
    system = [m for m in prompt if m["role"] == "system"]
    said = [(m["role"], _words(m["content"])) for m in shared]
    if not all((m["role"], _words(m["content"])) in said for m in prompt if m not in system):
        raise Malformed("contradicting_prompt")
    if system and shared[0]["role"] != "system":
        return [*system, *shared]
    if system and not _same(system[0]["content"], shared[0]["content"]):
        raise Malformed("contradicting_prompt")
    return shared


def may_hold_prompt(name: str, value: object) -> bool:
    """Whether a column that nobody reads seems to be what was asked, by its name and by what stands there."""
    says = (
        len(value.split()) > 2 if isinstance(value, str) else bool(value) and isinstance(value, list | dict)
    )
    return says and not name.lower().startswith("system") and _ASKING.search(name) is not None


def _history(row: Columns) -> list[Message]:
    """Earlier turns of an instruction row: ``history`` is a list of (question, answer), or of turns, which a
    ``context`` may be as well."""
    context = row.peek("context")
    turns_before = isinstance(context, list) and all(isinstance(turn, dict) for turn in context)
    rounds = row.take("history", *(["context"] if turns_before else []))
    if isinstance(rounds, str) and rounds.strip():
        try:
            rounds = json.loads(rounds)
        except (ValueError, RecursionError):
            raise Malformed("bad_history") from None
    if not rounds:
        return []
    if not isinstance(rounds, list):
        raise Malformed("bad_history")
    if all(isinstance(turn, dict) for turn in rounds):
        return read_turns(rounds, row.reading)
    turns: list[Message] = []
    for pair in rounds:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise Malformed("bad_history")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


def _same(one: str, other: str) -> bool:
    return _words(one) == _words(other)


def _words(text: str) -> str:
    """``text`` with one space between words, as copies of a prompt differ in no more."""
    return " ".join(text.split())
