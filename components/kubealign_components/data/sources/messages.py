"""Chat turns as sources write them, brought to plain role/content messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kubealign_components.data.fingerprint import canonical_json

Message = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "call",
    "tool": "tool",
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


class Malformed(Exception):
    """A row that cannot be used; ``reason`` is the name it is counted under."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_turns(value: object) -> list[Message]:
    """Messages from a list of turns, one turn, JSON text of either, or a mapping of columns.

    A turn has a role under ``role``, ``from`` or ``author`` and text under ``content``, ``value`` or
    ``text``; text may be a list of text parts. A ``function_call`` turn becomes an assistant message
    with ``tool_calls``.

    Raises:
        Malformed: no_messages, bad_message, unknown_role, not_text, empty_turn or bad_tool_call.
    """
    value = turns_from_text(value)
    if isinstance(value, Mapping):
        value = _transposed(value)
    messages = [_read_turn(turn) for turn in value] if isinstance(value, list) else []
    messages = [m for m in messages if not (m["role"] == "system" and not m["content"].strip())]
    if not messages:
        raise Malformed("no_messages")
    return messages


def read_answer(value: object) -> list[Message]:
    """Completion messages from plain text, one turn or a list of turns."""
    value = turns_from_text(value)
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if value is None:
        raise Malformed("empty_completion")
    return read_turns(value)


def from_json_text(value: object) -> object:
    """Lists and objects that a source keeps as JSON text, as CSV and some Parquet files must."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return parsed if _is_structure(parsed) else value


def turns_from_text(value: object) -> object:
    """The turns that ``value`` is JSON text of; other text, JSON or not, is a message of its own."""
    parsed = from_json_text(value)
    turns = [parsed] if isinstance(parsed, Mapping) else parsed
    return parsed if isinstance(turns, list) and all(map(_is_turn, turns)) else value


def read_tools(value: object) -> list[dict[str, Any]] | None:
    """Tool definitions in OpenAI's form; bare functions are wrapped, JSON text is parsed.

    Raises:
        Malformed: bad_tools.
    """
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Malformed("bad_tools") from None
    if not value:
        return None
    if not isinstance(value, list):
        raise Malformed("bad_tools")
    return [_read_tool(tool) for tool in value]


def tool_call(name: object, arguments: object, call_id: object = None) -> dict[str, Any]:
    """One entry of ``tool_calls``; arguments that are JSON text become an object, as templates expect.

    Raises:
        Malformed: bad_tool_call.
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise Malformed("bad_tool_call") from None
    if not isinstance(name, str) or not name or not isinstance(arguments, Mapping | None):
        raise Malformed("bad_tool_call")
    call: dict[str, Any] = {
        "type": "function",
        "function": {"name": name, "arguments": without_nulls(arguments or {})},
    }
    return {"id": call_id, **call} if isinstance(call_id, str) and call_id else call


def check_order(messages: Sequence[Message]) -> None:
    """Raise ``Malformed("bad_role_order")`` for turns that no chat has."""
    state = "start"
    for message in messages:
        if message["role"] not in _FOLLOWERS[state]:
            raise Malformed("bad_role_order")
        state = "call" if message.get("tool_calls") else message["role"]


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


def without_nulls(value: Any) -> Any:
    """``value`` without null members: Arrow gives every object the keys of all its neighbours."""
    if isinstance(value, Mapping):
        return {str(k): without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def text_of(value: object) -> str:
    """The text of a ``content``: a string, nothing, or a list of text parts.

    Raises:
        Malformed: not_text, for images, audio and anything else.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list):
        return "".join(_part_text(part) for part in value)
    raise Malformed("not_text")


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        raise Malformed("not_text")
    return text


def _read_turn(turn: object) -> Message:
    if not isinstance(turn, Mapping):
        raise Malformed("bad_message")
    name = first_of(turn, "role", "from", "author")
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise Malformed("unknown_role")
    content = first_of(turn, "content", "value", "text")
    if role == "call":
        return {"role": "assistant", "content": "", "tool_calls": _written_calls(content)}
    if role == "tool" and isinstance(content, Mapping):
        content = _json_text(without_nulls(content))
    message: Message = {"role": role, "content": text_of(content)}
    if role == "assistant":
        message |= _assistant_parts(turn)
    if role == "tool":
        message |= {k: turn[k] for k in ("name", "tool_call_id") if isinstance(turn.get(k), str) and turn[k]}
    if role == "user" and not message["content"].strip():
        raise Malformed("empty_turn")
    return message


def _assistant_parts(turn: Mapping[str, Any]) -> Message:
    parts: Message = {}
    calls = from_json_text(turn.get("tool_calls"))
    if calls:
        parts["tool_calls"] = _listed_calls(calls)
    thought = turn.get("reasoning_content")
    if isinstance(thought, str) and thought.strip():
        parts["reasoning_content"] = thought
    return parts


def _listed_calls(calls: object) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise Malformed("bad_tool_call")
    found = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise Malformed("bad_tool_call")
        found.append(tool_call(function.get("name"), function.get("arguments"), call.get("id")))
    return found


def _written_calls(text: object) -> list[dict[str, Any]]:
    """The calls of a ShareGPT ``function_call`` turn: JSON text of one call or of a list of them."""
    value = from_json_text(text)
    calls = _listed_calls([value] if isinstance(value, Mapping) else value)
    if not calls:
        raise Malformed("bad_tool_call")
    return calls


def _read_tool(tool: object) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Malformed("bad_tools")
    function = without_nulls(function)
    parameters = from_json_text(function.get("parameters"))
    if parameters == "":
        del function["parameters"]
    elif parameters is not None:
        if not isinstance(parameters, Mapping):
            raise Malformed("bad_tools")
        function["parameters"] = without_nulls(parameters)
    return {"type": "function", "function": function}


def first_of(row: Mapping[str, Any], *names: str) -> Any:
    """The first of the named members that is there and not null."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def _json_text(value: object) -> str:
    try:
        return canonical_json(value)
    except (TypeError, ValueError):
        raise Malformed("not_text") from None


def _is_turn(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    role = first_of(value, "role", "from", "author")
    known = isinstance(role, str) and role.lower() in ROLES
    return known and any(key in value for key in ("content", "value", "text", "tool_calls"))


def _is_structure(value: object) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)
    )


def _transposed(value: Mapping[str, Any]) -> list[Any]:
    """One turn as a list, or the turns of a mapping of columns (how older datasets store lists)."""
    if not all(isinstance(column, list) for column in value.values()):
        return [value]
    columns = {str(k): v for k, v in value.items() if v}
    lengths = {len(v) for v in columns.values()}
    if len(lengths) != 1:
        raise Malformed("bad_message")
    return [dict(zip(columns, turn)) for turn in zip(*columns.values())]
