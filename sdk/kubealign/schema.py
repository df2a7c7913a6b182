"""The JSON schema of a run file, from the same configs that check one; editors complete from it."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from itertools import product

from kubealign.runfile import RUNNERS, LocalSettings
from kubealign_components.config import SHORTHAND, config_in, hints_of, takes_anything
from kubealign_components.json_types import JsonObject
from kubealign_components.stages import own_stages
from kubealign_pipelines import PIPELINES, Choice, build, rules
from kubealign_pipelines.checking.describe import (
    Setting,
    choices_of,
    describe,
    meanings_of,
)
from kubealign_pipelines.checking.findings import PARAMETERS
from kubealign_pipelines.compiler import graph_of
from kubealign_pipelines.flat import flat_names
from kubealign_pipelines.graph import Graph, Parameter
from kubealign_pipelines.resources import IMAGES, CompileSettings
from kubealign_pipelines.stage_resources import DEFAULTS, StageResources

Schema = JsonObject
_TYPES = {"STRING": "string", "NUMBER_INTEGER": "integer", "NUMBER_DOUBLE": "number", "BOOLEAN": "boolean"}
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean"}


def shapes(pipeline: str) -> list[Graph]:
    """The graphs of every choice of stages that the pipeline has; of a number, more bring no other stages."""
    choices = rules(pipeline).choices
    sets = product(*([(c.name, value) for value in _of_other_stages(c)] for c in choices))
    return [graph_of(build(pipeline, CompileSettings(), dict(chosen)), pipeline) for chosen in sets]


def _of_other_stages(choice: Choice) -> Sequence[str | int]:
    if not choice.has_stages:
        return choice.values[:1]
    return choice.values if isinstance(choice.values[0], str) else choice.values[:2]


def settings_of(graphs: Sequence[Graph], *, everywhere: bool = False) -> list[Setting]:
    """The settings of all ``graphs``, each once, by name; ``everywhere`` as :func:`describe` has it."""
    settings = {s.path: s for graph in reversed(graphs) for s in describe(graph, everywhere=everywhere)}
    return sorted(settings.values(), key=lambda setting: setting.name)


def run_file_schema(pipeline: str) -> Schema:
    """The JSON schema (draft 2020-12) of a run file of ``pipeline``."""
    graphs = shapes(pipeline)
    compiled = _of_config(CompileSettings)
    stage = _of_config(StageResources)
    own = sorted({t.function for g in graphs for t in g.tasks.values()}.intersection(own_stages()))
    compiled["properties"]["stages"] = _closed(
        {name: {"$ref": "#/$defs/stage"} for name in (*DEFAULTS, *own)}
    )
    compiled["properties"]["images"] = _closed({name: {"type": "string"} for name in IMAGES})
    local = _of_config(LocalSettings)
    local["properties"]["runner"]["enum"] = list(RUNNERS)
    local["properties"]["parallelism"]["enum"] = [1, 2]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"KubeAlign run file of {pipeline}",
        "$defs": {"stage": stage},
        **_closed(
            {
                "pipeline": {"enum": [pipeline], "description": f"One of {', '.join(PIPELINES)}."},
                PARAMETERS: _parameters(graphs),
                "compile": compiled,
                "local": local,
            }
        ),
    }


def _parameters(graphs: Sequence[Graph]) -> Schema:
    parameters = {p.name: p for graph in reversed(graphs) for p in graph.settings()}
    properties: dict[str, Schema] = {name: _of_parameter(p) for name, p in sorted(parameters.items())}
    choices = {choice.name: choice for choice in graphs[0].rules.choices}
    for name, choice in choices.items():
        properties[name]["enum"] = list(choice.values)
    for setting in settings_of(graphs, everywhere=True):
        _put(properties, setting)
    for name, keys in graphs[0].rules.ranges.items():
        number, meaning = properties[name], properties[name].pop("description")
        range_of = _closed({key: {"type": kind} for key, kind in keys.items()})
        properties[name] = {"description": meaning, "anyOf": [number, range_of]}
    for path, name in flat_names(graphs[0]).items():
        if (schema := _at(properties, path)) is not None:
            properties[name] = schema
    return _closed(dict(sorted(properties.items())))


def _of_parameter(parameter: Parameter) -> Schema:
    schema: Schema = {"description": parameter.description}
    if parameter.type in _TYPES:
        schema["type"] = _TYPES[parameter.type]
    elif parameter.type == "LIST":
        schema |= {"type": "array"}
    else:
        schema |= _closed({})
    if not parameter.required and parameter.type in _TYPES:
        schema["default"] = parameter.default
    return schema


def _at(properties: Mapping[str, Schema], path: Sequence[str]) -> Schema | None:
    """The schema of what stands at ``path`` below ``properties``, if something does."""
    first, *rest = path
    schema = properties.get(first)
    return schema if schema is None or not rest else _at(schema.get("properties", {}), rest)


def _put(properties: dict[str, Schema], setting: Setting) -> None:
    """Give ``setting`` its place below ``properties``; lists and mappings before it are made."""
    _, first, *rest = setting.path
    target = properties[str(first)]
    if not rest:
        target.update({"description": setting.meaning} | _of_hint(setting.hint, setting.choices))
        return
    for part in rest[:-1]:
        target = _below(target, str(part))
    target.setdefault("properties", {})[str(rest[-1])] = _leaf(setting)


def _leaf(setting: Setting) -> Schema:
    leaf: Schema = {"description": setting.meaning} | _of_hint(setting.hint, setting.choices)
    default = setting.default
    if default is not dataclasses.MISSING and _plain(default):
        leaf["default"] = list(default) if isinstance(default, tuple) else default
    return leaf


def _below(target: Schema, part: str) -> Schema:
    if part == "[]":
        if target["type"] == "object":  # made on the way here, before it was known to be a list
            target.clear()
            target["type"] = "array"
        item = target.setdefault("items", {"anyOf": [_closed({}), {"type": "string"}]})
        inside: Schema = item["anyOf"][0]
        return inside
    inner: Schema = target.setdefault("properties", {}).setdefault(part, _closed({}))
    return inner


def _of_hint(hint: object, choices: Sequence[str] = ()) -> Schema:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        options = [_of_hint(arg, choices) for arg in args if arg is not type(None)]
        return options[0] if len(options) == 1 else {"anyOf": options}
    if origin is tuple:
        return {"type": "array", "items": _of_hint(args[0], choices)}
    if takes_anything(hint):
        return {}
    if origin is not None:
        return {"type": "object", "additionalProperties": _of_hint(args[1])}
    nested = config_in(hint)
    if nested is not None:
        schema = _of_config(nested)
        return {"anyOf": [schema, {"type": "string"}]} if hasattr(nested, SHORTHAND) else schema
    assert isinstance(hint, type)
    return {"type": _SCALARS[hint]} | ({"enum": list(choices)} if choices else {})


def _of_config(cls: type) -> Schema:
    """The schema of a config's own settings."""
    hints, meanings = hints_of(cls), meanings_of(cls)
    properties = {
        entry.name: {"description": meanings.get(entry.name, "")}
        | _of_hint(hints[entry.name], choices_of(cls, entry.name))
        for entry in dataclasses.fields(cls)
    }
    return _closed(properties)


def _closed(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": dict(properties)}


def _plain(value: object) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return value is not None
