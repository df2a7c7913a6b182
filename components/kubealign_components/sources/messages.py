"""Chat turns as sources write them, brought to plain role/content messages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kubealign_components.data.fingerprint import source_json
from kubealign_components.json_types import JsonObject
from kubealign_components.sources.scales import Scales
from kubealign_components.sources.tool_calls import read_call, read_calls, written_calls
from kubealign_components.sources.values import (
    Malformed,
    first_of,
    from_json_text,
    is_media,
    is_missing,
    text_of,
)

Message = JsonObject

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "chatgpt": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "tool": "tool",
    "tool_response": "tool",
    "ipython": "tool",
    "function": "tool",
    "observation": "tool",
}
# What may follow what; templates and models are trained on nothing else.
_FOLLOWERS = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "call": ("tool",),
    "tool": ("tool", "assistant"),
}
ROLE_KEYS = ("role", "from", "author")
"""Members of a turn that say who speaks."""
_TEXT_KEYS = ("content", "value", "text")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_KEYS_OF_ROLE = {
    "assistant": (*_REASONING_KEYS, "tool_calls", "function_call"),
    "tool": ("name", "tool_call_id"),
}
_REASONED = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


@dataclass(kw_only=True, slots=True)
class Reading:
    """How one row is read, and what was noticed on the way."""

    roles: Mapping[str, str] = field(default_factory=lambda: ROLES)
    """Meaning of the role names, in lower case."""
    notes: Counter[str] = field(default_factory=Counter)
    """What the row holds and the example does not, by name."""
    scales: Scales = field(default_factory=Scales)
    """Of the source's columns of verdicts."""


def read_turns(value: object, reading: Reading | None = None, *, chat: bool = False) -> list[Message]:
    """Messages from a list of turns, one turn, JSON text of either, or a mapping of columns.

    A turn has a role under ``role``, ``from`` or ``author`` and text under ``content``, ``value`` or
    ``text``; text may be a list of text parts. A ``function_call`` turn becomes an assistant message
    with ``tool_calls``. Texts without roles are turns where ``value`` is a whole ``chat``, as LIMA's, which
    the user begins; as a prompt they may be the questions of a user, as MT-bench's, and are refused.

    Raises:
        Malformed: no_messages, bad_message, unknown_role, not_text, empty_turn or bad_tool_call.
    """
    reading = reading or Reading()
    value = turns_from_text(value, reading.roles)
    if isinstance(value, Mapping):
        value = _transposed(value)
    if isinstance(value, bytes):
        raise Malformed("not_text")
    value = _rounds_apart(value, chat=chat) if isinstance(value, list) else []
    messages = [_read_turn(turn, reading) for turn in value]
    messages = [m for m in messages if not (m["role"] == "system" and not m["content"].strip())]
    if not messages:
        raise Malformed("no_messages")
    return messages


def read_answer(value: object, reading: Reading | None = None) -> list[Message]:
    """Completion messages from plain text, which stays what it is, one turn or a list of turns."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if value is None:
        raise Malformed("empty_completion")
    return read_turns(value, reading)


def turns_from_text(value: object, roles: Mapping[str, str] = ROLES) -> object:
    """The turns that ``value`` is JSON text of; other text, JSON or not, is a message of its own."""
    parsed = from_json_text(value)
    turns = [parsed] if isinstance(parsed, Mapping) else parsed
    is_chat = isinstance(turns, list) and all(_is_turn(turn, roles) for turn in turns)
    return parsed if is_chat else value


def check_order(messages: Sequence[Message]) -> None:
    """Raise ``Malformed("bad_role_order")`` for turns that no chat has."""
    state = "start"
    for message in messages:
        if message["role"] not in _FOLLOWERS[state]:
            raise Malformed("bad_role_order")
        state = "call" if message.get("tool_calls") else message["role"]


def with_suffix(messages: Sequence[Message], suffix: str) -> list[Message]:
    """``messages`` with ``suffix`` on a line of its own behind the last user turn."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    asked = {**messages[last], "content": f"{messages[last]['content']}\n{suffix}"}
    return [*messages[:last], asked, *messages[last + 1 :]]


def split_last(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    """What stands before the last assistant turn, and that turn; nothing when another turn is last."""
    return (turns[:-1], turns[-1:]) if turns[-1]["role"] == "assistant" else (turns, [])


def split_common(chats: Sequence[list[Message]]) -> tuple[list[Message], list[list[Message]]]:
    """The prompt that all ``chats`` begin with, and how each of them goes on.

    The prompt is the longest common beginning that leaves each chat a turn and ends where an
    assistant turn is due.

    Raises:
        Malformed: no_prompt when the chats have no such beginning.
    """
    shared = 0
    while all(len(chat) > shared + 1 and chat[shared] == chats[0][shared] for chat in chats):
        shared += 1
    while shared and chats[0][shared - 1]["role"] not in ("user", "tool"):
        shared -= 1
    if not shared:
        raise Malformed("no_prompt")
    return chats[0][:shared], [chat[shared:] for chat in chats]


def _rounds_apart(turns: list[object], *, chat: bool) -> list[object]:
    """Turns with who speaks: of the texts of a ``chat`` (LIMA), the user begins; of rounds of ``input`` and
    ``output`` (Capybara), each is two turns."""
    if chat and len(turns) > 1 and all(isinstance(turn, str) for turn in turns):
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    if not all(isinstance(turn, Mapping) and turn.keys() == {"input", "output"} for turn in turns):
        return turns
    sides = (("user", "input"), ("assistant", "output"))
    return [
        {"role": r, "content": turn[side]} for turn in turns if isinstance(turn, Mapping) for r, side in sides
    ]


def _read_turn(turn: object, reading: Reading) -> Message:
    if not isinstance(turn, Mapping):
        raise Malformed("bad_message")
    name = first_of(turn, *ROLE_KEYS)
    role = reading.roles.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise Malformed("unknown_role")
    if any(is_media(str(key), value) for key, value in turn.items()):
        raise Malformed("not_text")
    reading.notes.update(f"turn_field_not_kept_{key}" for key in _unread(turn, role))
    content = first_of(turn, *_TEXT_KEYS)
    if role == "assistant" and isinstance(content, list):
        turn, content = _thought_apart(turn, content)
    if role == "call":
        return {"role": "assistant", "content": "", "tool_calls": written_calls(content)}
    if role == "tool" and isinstance(content, Mapping):
        content = _json_text(content)
    message: Message = {"role": role, "content": text_of(content)}
    if role == "assistant":
        message |= _assistant_parts(turn)
    if role == "tool":
        message |= {k: turn[k] for k in ("name", "tool_call_id") if isinstance(turn.get(k), str) and turn[k]}
    if role == "user" and not message["content"].strip():
        raise Malformed("empty_turn")
    return message


def _thought_apart(turn: Mapping[str, object], parts: list[object]) -> tuple[Mapping[str, object], object]:
    """The turn with what its parts of reasoning say as its reasoning, and the other parts."""
    thoughts = [p for p in parts if isinstance(p, Mapping) and p.get("type") in _REASONING_KEYS]
    if not thoughts or any(turn.get(key) for key in _REASONING_KEYS):
        return turn, parts
    said = "".join(text_of(first_of(p, *_REASONING_KEYS, "text")) for p in thoughts)
    return {**turn, _REASONING_KEYS[0]: said}, [p for p in parts if p not in thoughts]


def _assistant_parts(turn: Mapping[str, object]) -> Message:
    parts: Message = {}
    if calls := from_json_text(turn.get("tool_calls")):
        parts["tool_calls"] = read_calls(calls)
    elif call := from_json_text(turn.get("function_call")):
        parts["tool_calls"] = [read_call(call)]
    thought, content = (first_of(turn, *keys) for keys in (_REASONING_KEYS, _TEXT_KEYS))
    written = _REASONED.match(content) if isinstance(content, str) else None
    again = written is not None and isinstance(thought, str) and written[1].strip() == thought.strip()
    if isinstance(thought, str) and thought.strip() and not again:
        parts["reasoning_content"] = thought
    return parts


def _unread(turn: Mapping[str, object], role: str) -> Iterator[str]:
    """The members of a turn that hold something and say nothing in a turn of this role."""
    read = {next((k for k in keys if not is_missing(turn.get(k))), "") for keys in (ROLE_KEYS, _TEXT_KEYS)}
    for key, value in turn.items():
        is_read = key in read or key in _KEYS_OF_ROLE.get(role, ())
        is_text = isinstance(value, str) if key in _REASONING_KEYS else True
        if not (is_read and is_text) and not is_missing(value) and value not in ("", [], {}):
            yield key


def _json_text(value: object) -> str:
    try:
        return source_json(value)
    except (TypeError, ValueError):
        raise Malformed("not_text") from None


def _is_turn(value: object, roles: Mapping[str, str]) -> bool:
    if not isinstance(value, Mapping):
        return False
    role = first_of(value, *ROLE_KEYS)
    has_role = isinstance(role, str) and role.lower() in roles
    return has_role and any(key in value for key in (*_TEXT_KEYS, "tool_calls"))


def _transposed(value: Mapping[str, object]) -> list[object]:
    """One turn as a list, or the turns of a mapping of columns (how older datasets store lists)."""
    lists = {name: column for name, column in value.items() if isinstance(column, list)}
    if len(lists) != len(value):
        return [value]
    columns = {str(name): column for name, column in lists.items() if column}
    lengths = {len(v) for v in columns.values()}
    if len(lengths) != 1:
        raise Malformed("bad_message")
    return [dict(zip(columns, turn)) for turn in zip(*columns.values())]
