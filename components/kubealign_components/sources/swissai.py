"""The swissai row format: one prompt, and branches whose messages are lists of typed parts.

github.com/swiss-ai/posttraining-data, ``02-standardisation``. Every part carries every field, empty
when unused, and names its kind: response, thought, function-call, function-output or
verifiable-responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kubealign_components.sources.messages import Message
from kubealign_components.sources.tool_calls import read_call
from kubealign_components.sources.values import Malformed, first_of, from_json_text, text_of


@dataclass(kw_only=True, slots=True)
class Branch:
    """What one branch says after the prompt."""

    turns: list[Message] = field(default_factory=list)
    answers: list[object] = field(default_factory=list)
    """Of its verifiable-responses parts."""
    model: str | None = None
    """Who wrote its last part."""


def opening(system: object, prompt: object) -> list[Message]:
    """The messages that all branches begin with: a system prompt, if not empty, and the first turn.

    Raises:
        Malformed: no_prompt.
    """
    first = _content(prompt)
    if not first.strip():
        raise Malformed("no_prompt")
    text = _content(system)
    before = [{"role": "system", "content": text}] if text.strip() else []
    return [*before, {"role": "user", "content": first}]


def read_branch(branch: object) -> Branch:
    """A branch as plain messages.

    A function's output ends an assistant message and becomes a ``tool`` message; thoughts become
    ``reasoning_content``, the key that chat templates of reasoning models read.

    Raises:
        Malformed: bad_branch, bad_message, unknown_role, unknown_part or bad_tool_call.
    """
    messages = from_json_text(branch.get("messages")) if isinstance(branch, Mapping) else None
    if not isinstance(messages, list):
        raise Malformed("bad_branch")
    read = Branch()
    for message in messages:
        if not isinstance(message, Mapping):
            raise Malformed("bad_message")
        role, parts = message.get("role"), _parts(message)
        if role == "user":
            read.turns.append({"role": "user", "content": "\n".join(_text(p) for p in parts)})
        elif role == "assistant":
            read.turns += _assistant(parts, read.answers)
            read.model = _model(parts) or read.model
        else:
            raise Malformed("unknown_role")
    return read


def _assistant(parts: list[Mapping[str, object]], answers: list[object]) -> list[Message]:
    """Plain messages of one assistant message; its verifiable answers go to ``answers``."""
    turns: list[Message] = []
    for part in parts:
        kind = part.get("type")
        if kind == "verifiable-responses":
            listed = first_of(part, "answers", "args", "content")
            answers += listed if isinstance(listed, list) else [listed]
        elif kind == "function-output":
            turns.append({"role": "tool", "content": _text(part)})
        elif kind in ("response", "thought", "function-call"):
            if not turns or turns[-1]["role"] == "tool":
                turns.append({"role": "assistant", "content": ""})
            _extend(turns[-1], kind, part)
        else:
            raise Malformed("unknown_part")
    return turns


def _extend(message: Message, kind: str, part: Mapping[str, object]) -> None:
    if kind == "function-call":
        call = read_call({"name": part.get("name"), "arguments": from_json_text(part.get("args"))})
        message.setdefault("tool_calls", []).append(call)
        return
    text, key = _text(part), "content" if kind == "response" else "reasoning_content"
    if text.strip():
        message[key] = f"{message[key]}\n{text}" if message.get(key) else text


def _parts(message: Mapping[str, object]) -> list[Mapping[str, object]]:
    parts = from_json_text(message.get("parts"))
    if parts is None and message.get("content") is not None:
        return [{"type": "response", "content": message["content"]}]
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        raise Malformed("bad_message")
    return parts


def _text(part: Mapping[str, object]) -> str:
    return text_of(part.get("content"))


def _content(value: object) -> str:
    return text_of(value.get("content") if isinstance(value, Mapping) else value)


def _model(parts: list[Mapping[str, object]]) -> str | None:
    metadata = from_json_text(parts[-1].get("metadata")) if parts else None
    model = metadata.get("model") if isinstance(metadata, Mapping) else None
    return model if isinstance(model, str) and model else None
