"""Tool definitions and tool calls, as sources write them: key order, null members and all."""

from __future__ import annotations

import json
from collections.abc import Mapping

from kubealign_components.sources.values import Malformed, from_json_text


def read_tools(value: object) -> list[dict[str, object]] | None:
    """Tool definitions in OpenAI's form; bare functions are wrapped, JSON text is parsed.

    Raises:
        Malformed: bad_tools.
    """
    if isinstance(value, str):
        value = _parsed(value, "bad_tools") if value.strip() else None
    if not value:
        return None
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise Malformed("bad_tools")
    return [_read_tool(tool) for tool in value]


def _read_tool(tool: object) -> dict[str, object]:
    if isinstance(tool, str):
        tool = _parsed(tool, "bad_tools")
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Malformed("bad_tools")
    assert isinstance(tool, Mapping)
    function = dict(function)
    parameters = from_json_text(function.get("parameters"))
    if parameters == "":
        del function["parameters"]
    elif parameters is not None:
        if not isinstance(parameters, Mapping):
            raise Malformed("bad_tools")
        function["parameters"] = parameters
    return _wrapped(tool, function)


def read_calls(calls: object) -> list[dict[str, object]]:
    """The ``tool_calls`` of a turn: a list of calls, or JSON text of it.

    Raises:
        Malformed: bad_tool_call.
    """
    calls = from_json_text(calls)
    if not isinstance(calls, list):
        raise Malformed("bad_tool_call")
    return [read_call(call) for call in calls]


def read_call(call: object) -> dict[str, object]:
    """One call in OpenAI's form; arguments stay the object, or the JSON text of one, that they are.

    Raises:
        Malformed: bad_tool_call.
    """
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise Malformed("bad_tool_call")
    assert isinstance(call, Mapping)
    name, arguments = function.get("name"), function.get("arguments")
    written = isinstance(arguments, str) and arguments.strip() != ""
    said = _parsed(str(arguments), "bad_tool_call") if written else arguments or {}
    if not isinstance(name, str) or not name or not isinstance(said, Mapping):
        raise Malformed("bad_tool_call")
    inner = {k: v for k, v in function.items() if k not in ("id", "type") or "function" in call}
    return _wrapped(call, {**inner, "arguments": arguments if written else dict(said)})


def written_calls(text: object) -> list[dict[str, object]]:
    """The calls of a ShareGPT ``function_call`` turn: JSON text of one call or of a list of them.

    Raises:
        Malformed: bad_tool_call.
    """
    value = from_json_text(text)
    calls = read_calls([value] if isinstance(value, Mapping) else value)
    if not calls:
        raise Malformed("bad_tool_call")
    return calls


def _wrapped(entry: Mapping[str, object], function: Mapping[str, object]) -> dict[str, object]:
    """``entry`` with its function in it: as it was written, or around a function that stood alone."""
    if "function" not in entry:
        named = {"id": entry["id"]} if isinstance(entry.get("id"), str) and entry["id"] else {}
        return {**named, "type": "function", "function": function}
    kept = {k: v for k, v in entry.items() if k != "id" or v}
    start = {} if entry.get("type") else {"type": "function"}
    return {**start, **{k: v for k, v in kept.items() if k != "type" or v}, "function": function}


def _parsed(text: str, reason: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed(reason) from None
