"""Every setting of a pipeline: where it is set, its type, default, meaning and allowed values.

All of it is read from the configs and the compiled graph, so nothing here can go out of step with them.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from kubealign_components.config import (
    GROUPS,
    OPTIONS,
    Path,
    SettingGroup,
    check_mapping,
    config_in,
    hints_of,
    takes_anything,
)
from kubealign_components.stages import config_class
from kubealign_pipelines.checking.findings import PARAMETERS
from kubealign_pipelines.flat import flat_names
from kubealign_pipelines.graph import Graph, Source, Task

_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false"}
_PROBE = "\x00"
"""A text that no choice has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One setting of one stage."""

    path: Path
    """In the run file; ``[]`` stands for every item of a list."""
    stage: str
    field: Path
    """In the stage's config."""
    hint: object
    """Its type, as annotated."""
    default: object
    """MISSING where there is none."""
    config: type
    """Whose field it is."""
    choices: tuple[str, ...]
    """What a text may be; empty where it may be anything."""
    described: str = ""
    """What the pipeline says of it, where it is a parameter of its own."""
    flat: str = ""
    """Its one name in a run file, where it stands in options."""

    @property
    def dotted_path(self) -> str:
        """Where the pipeline takes it."""
        return ".".join(map(str, self.path[1:])).replace(".[]", "[]")

    @property
    def name(self) -> str:
        """As its user writes it in a run file."""
        return self.flat or self.dotted_path

    @property
    def meaning(self) -> str:
        """What it does."""
        field = next(str(part) for part in reversed(self.field) if part != "[]")
        return self.described or meanings_of(self.config).get(field, "")

    @property
    def type(self) -> str:
        """Its type in words."""
        return type_words(self.hint)


def describe(graph: Graph, *, everywhere: bool = False) -> list[Setting]:
    """The settings of every stage of ``graph``, each place once, in the order of the run file's names.

    Args:
        graph: of a compiled pipeline.
        everywhere: whether what a stage borrows of another's settings stands in its own options, too.
    """
    settings: dict[Path, Setting] = {}
    names = flat_names(graph)
    for task in graph.tasks.values():
        cls = config_class(task.function)
        if cls is not None:
            for setting in _of_task(cls, task, everywhere):
                flat = names.get(tuple(map(str, setting.path[1:])), "")
                settings.setdefault(
                    setting.path, dataclasses.replace(_with_parameter(setting, graph), flat=flat)
                )
    return sorted(settings.values(), key=lambda setting: setting.name)


def options_text(graph: Graph) -> str:
    """What the parameters of options take: each key with its default and, in brackets, what it may be."""
    keys: dict[str, list[str]] = {}
    for setting in describe(graph):
        _, parameter, *inner = map(str, setting.path)
        if inner and parameter.endswith(f"_{OPTIONS}"):
            keys.setdefault(parameter, []).append(_key(".".join(inner).replace(".[]", "[]"), setting))
    return "\n".join(f"{parameter}: {', '.join(sorted(listed))}." for parameter, listed in keys.items())


def _key(name: str, setting: Setting) -> str:
    plain = isinstance(setting.default, (str, int, float)) and setting.default != ""
    allowed = " | ".join(setting.choices) or ("" if plain else setting.type)
    default = f" {json.dumps(setting.default)}" if plain else ""
    return f"{name}{default}" + (f" ({allowed})" if allowed else "")


def paths_by_name(graph: Graph) -> dict[str, list[Path]]:
    """Where settings stand in a run file, by their last name."""
    paths: dict[str, list[Path]] = {}
    for setting in describe(graph):
        paths.setdefault(str(setting.path[-1]), []).append(setting.path)
    return paths


def type_words(hint: object) -> str:
    """An annotated type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_words(arg) for arg in args if arg is not type(None))
    if origin is tuple:
        return f"list of {type_words(args[0])}"
    if origin is not None:
        return "mapping" if takes_anything(args[1]) else f"mapping to {type_words(args[1])}"
    if dataclasses.is_dataclass(hint):
        return "mapping"
    return _WORDS.get(hint, "anything") if isinstance(hint, type) else "anything"


def _of_task(cls: type, task: Task, everywhere: bool) -> Iterator[Setting]:
    for field_path, setting in _fields(cls, ()):
        paths = list(_run_file_paths(cls, task, field_path))
        for path in paths if everywhere else paths[:1]:
            yield dataclasses.replace(
                setting,
                path=path,
                stage=task.function,
                default=_set_by_pipeline(cls, task, field_path, setting),
            )


def _set_by_pipeline(cls: type, task: Task, field_path: Path, setting: Setting) -> object:
    """The default of ``setting``, which is the pipeline's where that gives the component another value."""
    source = task.arguments.get(_argument(cls, field_path) or "", Source())
    constant = source.constant
    if constant is None:
        return setting.default
    return int(constant) if setting.hint is int and isinstance(constant, float) else constant


def _with_parameter(setting: Setting, graph: Graph) -> Setting:
    """A parameter's default is the pipeline's, and so is its meaning."""
    if len(setting.path) != 2:
        return setting
    parameter = graph.parameters[str(setting.path[1])]
    default = dataclasses.MISSING if parameter.required else parameter.default
    return dataclasses.replace(setting, default=default, described=parameter.description)


def _fields(cls: type, path: Path) -> Iterator[tuple[Path, Setting]]:
    """The settings of ``cls`` and of the configs in it."""
    hints = hints_of(cls)
    for entry in dataclasses.fields(cls):
        hint, below = hints[entry.name], (*path, entry.name)
        nested = config_in(hint)
        if nested is not None:
            is_list = typing.get_origin(hint) is tuple
            yield from _fields(nested, (*below, "[]") if is_list else below)
            continue
        choices = choices_of(cls, entry.name)
        default = _default(entry)
        yield (
            below,
            Setting(
                path=below,
                stage="",
                field=below,
                hint=hint,
                default=default,
                config=cls,
                choices=choices,
            ),
        )


def _run_file_paths(cls: type, task: Task, setting: Path) -> Iterator[Path]:
    """Where the run file has ``setting``; last, of one that is borrowed, the stage's own options."""
    group = _group(cls, setting)
    argument = _argument(cls, setting)
    source = task.arguments.get(argument or "", Source())
    if source.produced:
        return
    options = group.options if group else (OPTIONS,)
    if source.parameter:
        yield (PARAMETERS, source.parameter, *setting[2 if group else 1 :])
        options = options[1:]
    for option in options:
        name, *inner = option.split(".")
        parameter = task.arguments.get(name, Source()).parameter
        if parameter:
            yield (PARAMETERS, parameter, *inner, *setting[1 if group else 0 :])


def _group(cls: type, setting: Path) -> SettingGroup | None:
    groups: Mapping[str, SettingGroup] = getattr(cls, GROUPS, {})
    return groups.get(str(setting[0]))


def _argument(cls: type, setting: Path) -> str | None:
    """The component's argument for ``setting``, if it has one."""
    group = _group(cls, setting)
    if group is None or len(setting) == 1:
        return str(setting[0])
    return {value: name for name, value in group.arguments.items()}.get(str(setting[1]))


def _default(entry: dataclasses.Field[object]) -> object:
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    return entry.default


@cache
def meanings_of(cls: type) -> dict[str, str]:
    """The texts under the fields of ``cls``, with those of the classes it extends."""
    meanings: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if dataclasses.is_dataclass(owner):
            meanings |= _own_meanings(owner)
    return meanings


def _own_meanings(cls: type) -> dict[str, str]:
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    meanings: dict[str, str] = {}
    for entry, after in zip(body.body, body.body[1:]):
        text = after.value if isinstance(after, ast.Expr) else None
        if isinstance(entry, ast.AnnAssign) and isinstance(text, ast.Constant):
            meanings[ast.unparse(entry.target)] = " ".join(str(text.value).split())
    return meanings


@cache
def choices_of(cls: type, field: str) -> tuple[str, ...]:
    """What the text ``field`` of ``cls`` may be: as its own check tells when it is none of them."""
    if str not in (hint := hints_of(cls)[field], *typing.get_args(hint)):
        return ()
    values = {
        entry.name: _least(hints_of(cls)[entry.name])
        for entry in dataclasses.fields(cls)
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
    }
    is_list = typing.get_origin(hint) is tuple
    _, problems = check_mapping(cls, values | {field: [_PROBE] if is_list else _PROBE}, "probe")
    for problem in problems:
        expected = problem.error.expected.partition(";")[0].partition(" with ")[0]
        if problem.path[-1:] == (field,) and problem.error.value == _PROBE and expected.startswith("one of "):
            return tuple(expected.removeprefix("one of ").split(", "))
    return ()


def _least(hint: object) -> object:
    """A value of the type, whether its config takes it or not."""
    if hint in (str, int, float, bool):
        return {str: "x", int: 1, float: 1.0, bool: False}[hint]
    nested = config_in(hint)
    if typing.get_origin(hint) is tuple:
        return []
    if nested is not None:
        hints = hints_of(nested)
        return {e.name: _least(hints[e.name]) for e in dataclasses.fields(nested)}
    return {}
