"""The parameters of a pipeline held against every stage: names, types, and each stage's own rules.

All that is wrong is found at once. A stage's settings are put together as its component puts them together,
so that a mistake is told at the place where it was written.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from kubealign_components.config import (
    GROUPS,
    OPTIONS,
    Assembled,
    Path,
    assemble,
    check_mapping,
    did_you_mean,
    expected_of,
    list_of,
    near_name,
    text_of,
)
from kubealign_components.doubles import is_double, is_exact
from kubealign_components.stages import CONFIGS, config_class
from kubealign_pipelines.checking.describe import paths_by_name
from kubealign_pipelines.checking.findings import (
    A_VALUE,
    PARAMETERS,
    Finding,
    belongs_to,
    distinct,
    error_at,
    from_problem,
)
from kubealign_pipelines.flat import Folded, flat_names, fold
from kubealign_pipelines.graph import Graph, Parameter, Source, Task
from kubealign_pipelines.stage_resources import DEFAULTS

if TYPE_CHECKING:
    from kubealign_pipelines.checking.models import Looked

_TYPES: dict[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (float,),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}
_WORDS = {
    "STRING": "text",
    "BOOLEAN": "true or false",
    "LIST": "a list",
    "STRUCT": "a mapping",
}
SECTIONS = ("pipeline", PARAMETERS, "compile", "local")
"""What a run file has side by side."""
REWARDS = ("reward", "held_out_reward")
"""Settings of stages that say how completions are rewarded."""
LATER = "given-when-it-runs"
"""Stands for texts that are not known yet."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One task with the settings that it will run with."""

    task: Task
    config: Any
    """None where the settings cannot be used."""
    settings: Assembled
    written: Folded

    def path(self, setting: Path) -> Path:
        """Where the run file has, or would have, the ``setting`` of the stage."""
        argument, *rest = self.settings.origin(setting) or (OPTIONS, *setting)
        source = self.task.arguments.get(str(argument), Source())
        options = self.task.arguments.get(OPTIONS, Source()).parameter
        path = (PARAMETERS, source.parameter, *rest) if source.parameter else (PARAMETERS, *setting)
        if not source.parameter and options:  # nobody gave it: this is where it can be given
            path = (PARAMETERS, options, *setting)
        return self.written.as_written(path)

    def is_given(self, setting: Path) -> bool:
        """Whether the setting is given before a run, by a user or by default."""
        argument, *_ = self.settings.origin(setting) or (OPTIONS,)
        return not self.task.arguments.get(str(argument), Source()).produced


@dataclass(slots=True)
class Checked:
    """What the check of a run found, and what it will run with."""

    values: dict[str, object]
    """Of the parameters that the graph has, defaults included."""
    written: Folded
    """What of the parameters the run file has at another place."""
    stages: list[Stage] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    folders: dict[tuple[str, str | None], Looked] = field(default_factory=dict)
    """What was found of each model by name and revision."""

    def of(self, function: str) -> list[Stage]:
        """The tasks of a stage whose settings can be used."""
        return [s for s in self.stages if s.task.function == function and s.config is not None]


def check_stages(graph: Graph, values: Mapping[str, object], *, complete: bool = True) -> Checked:
    """Hold ``values`` against the parameters of ``graph`` and against every stage.

    Args:
        graph: the compiled pipeline.
        values: by parameter name.
        complete: whether required parameters must be there, or may be given when the pipeline runs.
    """
    folded = fold(graph, values)
    values = folded.values
    findings = [*_unknown(graph, values), *_nulls((PARAMETERS,), values), *_of_absent(graph, values)]
    every = graph.parameters | graph.others
    fitted = {}
    for name, value in values.items():
        if name in graph.rules.ranges and isinstance(value, Mapping):
            continue  # by which the stages were chosen
        if name in every and value is not None:
            value = _without_nulls(value)
            fitted[name], problem = _fit(every[name], value)
            findings += problem
    bad = {str(finding.path[1]) for finding in findings if len(finding.path) == 2}
    usable = {name: value for name, value in graph.given(fitted).items() if name not in bad}
    missing = {p.name for p in graph.parameters.values() if p.required and p.name not in usable}
    findings += _missing(graph, missing - bad, usable, bad) if complete else []
    for group in graph.rules.one_of:
        missing |= set(group) if not any(usable.get(name) for name in group) else set()
    later = {n: LATER for n in missing & graph.parameters.keys() if graph.parameters[n].type == "STRING"}
    defaults = {p.name: p.default for p in graph.parameters.values() if not p.required}
    checked = Checked(values=defaults | later | usable, written=folded)
    for task in _in_order(graph):
        if {s.parameter for s in task.arguments.values() if s.parameter} <= checked.values.keys():
            findings += _check_stage(graph, task, checked, values.keys())
    by_path: dict[Path, Finding] = {}
    for finding in [*folded.findings, *findings]:
        by_path.setdefault(finding.path, finding)
    once_each = by_path.values()
    checked.findings = distinct(replace(one, path=folded.as_written(one.path)) for one in once_each)
    return checked


def positions(stage: Stage, path: Path, items: Sequence[object]) -> Iterator[int]:
    """Where in the list at ``path`` each of the config's ``items`` stands: unusable ones were left out."""
    written: object = stage.settings.values
    for name in path:
        written = written.get(name, {}) if isinstance(written, Mapping) else {}
    entries = written if isinstance(written, (list, tuple)) else ()
    position = -1
    for item in items:
        named = set(map(str, _values(item)))
        position = next(
            (n for n in range(position + 1, len(entries)) if _named(entries[n]) in named), position + 1
        )
        yield position


def _values(item: object) -> Iterator[object]:
    for name in ("uri", "function"):
        if hasattr(item, name):
            yield getattr(item, name)


def _named(written: object) -> str:
    return str(written.get("uri", written.get("function"))) if isinstance(written, Mapping) else str(written)


def arguments(task: Task, values: Mapping[str, object]) -> dict[str, object]:
    """What the component of ``task`` is called with; a word stands for what other tasks will make."""
    return {name: _value(source, values) for name, source in task.arguments.items()}


def _value(source: Source, values: Mapping[str, object]) -> object:
    if source.produced:
        return LATER
    return source.constant if source.parameter is None else values[source.parameter]


def _check_plan(rows: Source, values: Mapping[str, object]) -> Iterator[Finding]:
    """0 plans no chunks, which only the pipeline itself may say."""
    planned = None if rows.parameter is None else values[rows.parameter]
    if isinstance(planned, int) and planned <= 0:
        yield error_at((PARAMETERS, str(rows.parameter)), planned, "a positive number of rows")


def _check_stage(graph: Graph, task: Task, checked: Checked, given: Collection[str]) -> Iterator[Finding]:
    yield from _check_plan(task.arguments.get("rows_per_chunk", Source()), checked.values)
    cls = config_class(task.function)
    if cls is None:
        return
    settings = assemble(cls, arguments(task, checked.values))
    config, problems = check_mapping(cls, settings.values, task.function)
    stage = Stage(task, config, settings, checked.written)
    checked.stages.append(stage)
    for problem in problems:
        finding = from_problem(problem, stage.path(problem.path))
        yield _with_hint(graph, finding) if "a setting of" in finding.expected else finding
    yield from _said_twice(graph, cls, stage, given)


def _said_twice(graph: Graph, cls: type, stage: Stage, given: Collection[str]) -> Iterator[Finding]:
    """Options that have a parameter of their own; a stage may have another value than one it borrows from."""
    for setting, origins in stage.settings.origins.items():
        group = getattr(cls, GROUPS, {}).get(setting[0])
        flat = [stage.task.arguments.get(str(o[0]), Source()).parameter for o in origins if len(o) == 1]
        if (group is not None and group.of) or len(origins[-1]) == 1 or not any(flat):
            continue
        parameter = next(name for name in flat if name)
        users = {t.function for t in graph.tasks.values() if _owns(t, parameter)}
        if parameter in given or users == {stage.task.function}:
            yield belongs_to(parameter, stage.path(setting), _inside(stage.settings.values, setting))


def _owns(task: Task, parameter: str) -> bool:
    """Whether the stage takes ``parameter`` for a setting of its own, and not for one that it borrows."""
    groups = getattr(config_class(task.function), GROUPS, {}).values()
    borrowed = {argument for group in groups if group.of for argument in group.arguments}
    return any(s.parameter == parameter and a not in borrowed for a, s in task.arguments.items())


def _inside(values: object, path: Path) -> object:
    for name in path:
        assert isinstance(values, dict)
        values = values[name]
    return values


def _with_hint(graph: Graph, finding: Finding) -> Finding:
    """An unknown option, and the place where one of that name belongs."""
    name = str(finding.path[-1])
    return error_at(finding.path, finding.value, _belongs(graph, name) or finding.expected)


def _belongs(graph: Graph, name: str) -> str:
    if name in graph.parameters:
        return "it beside the options: it is a parameter"
    paths = [path for path in paths_by_name(graph).get(name, []) if path[-1] == name]
    if not paths:
        return ""
    names = [text_of(path[1:-1]).replace(".[]", "[]") for path in paths[:3]]
    return f"it under {' or '.join(names)}, where it belongs"


def _full_name(graph: Graph, name: str, names: Collection[str]) -> str:
    """What was expected in place of ``name``, which may be a setting's own without that of its stage."""
    flat = flat_names(graph)
    full = [flat[path] for path in sorted(flat) if path[-1] == name]
    full += sorted(own for own in names if own.endswith(f"_{name}"))
    if full:
        return f"its full name, {' or '.join(full)}"
    if name in SECTIONS:
        return f"it beside {PARAMETERS}, as a section of its own"
    every = {*names, *flat.values()}
    expected = f"a parameter of {graph.name}{did_you_mean(name, every)}"
    command = f"kubealign params {shlex.quote(graph.called)} --all"
    listed = f"{expected}: one of {', '.join(sorted(names))}; `{command}` lists all settings"
    return expected if near_name(name, every) else _belongs(graph, name) or listed


def _unknown(graph: Graph, values: Mapping[str, object]) -> Iterator[Finding]:
    names = {p.name for p in graph.settings()}
    for name, value in values.items():
        if name not in names:
            yield error_at((PARAMETERS, name), value, _full_name(graph, name, names))
    for choice in graph.rules.choices:
        value = values.get(choice.name, choice.values[0])
        if not choice.allows(value):
            near = did_you_mean(value, [one for one in choice.values if isinstance(one, str)])
            expected = f"one of {choice.listed}, fixed when the pipeline is compiled{near}"
            yield error_at((PARAMETERS, choice.name), value, expected)


def _of_absent(graph: Graph, values: Mapping[str, object]) -> Iterator[Finding]:
    """Names that are none in the options of a stage which the graph lacks. Another stage may read a part of
    them, as ``evaluate`` does the reward of ``rewards``, and nobody the rest."""
    present = {task.function for task in graph.tasks.values()}
    parameters = {p.name for p in graph.settings()}
    own_tasks = (task for task in graph.tasks.values() if task.function not in CONFIGS)
    of_own = {source.parameter for task in own_tasks for source in task.arguments.values()}
    for name, options in values.items():
        stage = name.removesuffix(f"_{OPTIONS}")
        absent = stage != name and name in parameters and stage not in present and name not in of_own
        config = config_class(stage) if absent and stage in CONFIGS else None
        if config is None or not isinstance(options, Mapping):
            continue
        own = sorted(field.name for field in fields(config))
        for setting, value in options.items():
            if setting not in own:
                text = f"a setting of {stage}: one of {', '.join(own)}{did_you_mean(setting, own)}"
                yield error_at((PARAMETERS, name, setting), value, text)


def _missing(
    graph: Graph, missing: set[str], usable: Mapping[str, object], bad: set[str]
) -> Iterator[Finding]:
    for name in sorted(missing):
        text = f"a value, it has no default: {graph.parameters[name].description}"
        yield error_at((PARAMETERS, name), None, text)
    for group in graph.rules.one_of:
        asked = group[0] in graph.parameters and not bad & set(group)
        if asked and not any(usable.get(name) for name in group):
            yield error_at((PARAMETERS, group[0]), None, f"a value for {' or '.join(group)}")


def _fit(parameter: Parameter, value: object) -> tuple[object, list[Finding]]:
    """``value`` as the parameter's type, with a finding where it is of another."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if parameter.type == "NUMBER_DOUBLE" and is_double(value):
            return float(value), []
        if parameter.type == "NUMBER_INTEGER" and is_exact(value):
            return int(value), []
    elif isinstance(value, _TYPES[parameter.type]) and (
        parameter.type == "BOOLEAN" or not isinstance(value, bool)
    ):
        return value, []
    expected = f"{_words(parameter.type, value)}: {parameter.description}"
    if parameter.type == "STRING" and isinstance(value, (bool, int, float)):
        expected += " Put it in quotes if it is meant as text."
    return value, [error_at((PARAMETERS, parameter.name), value, expected)]


def _words(type_name: str, value: object) -> str:
    if type_name in ("NUMBER_INTEGER", "NUMBER_DOUBLE"):
        return expected_of(_TYPES[type_name][0], value)
    return _WORDS[type_name] + (list_of(value) if type_name == "LIST" else "")


def _nulls(path: Path, value: object) -> Iterator[Finding]:
    """KFP's local runner cannot carry a null; a setting that is left out keeps its default."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _nulls((*path, key), item)
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _nulls((*path, position), item)
    elif value is None:
        joined = re.search("[:=]", str(path[-1]))
        expected = (
            f"a colon and a space before the value of {str(path[-1])[: joined.start()]}"
            if joined
            else A_VALUE
        )
        yield error_at(path, value, expected)


def _without_nulls(value: object) -> object:
    """``value`` without what :func:`_nulls` refuses, so that the rest is looked at."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _in_order(graph: Graph) -> list[Task]:
    """The tasks in the order of the stages."""
    order = {stage: position for position, stage in enumerate(DEFAULTS)}
    return sorted(graph.tasks.values(), key=lambda task: order.get(task.function, -1))
