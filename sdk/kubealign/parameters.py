"""Parameters are checked whole before anything runs: names and types, then every stage's own rules."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

from kubealign.graph import Graph, Parameter, Source, Task
from kubealign_components.config import from_mapping, require, require_choice
from kubealign_components.engines.rewards import load_function, reward_settings
from kubealign_components.errors import ConfigError
from kubealign_pipelines import rules
from kubealign_pipelines.resources import DEFAULTS

_TYPES: dict[str, tuple[type, ...]] = {
    "STRING": (str,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": (bool,),
    "LIST": (list,),
    "STRUCT": (dict,),
}
_WORDS = {
    "STRING": "text",
    "NUMBER_INTEGER": "a whole number",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "LIST": "a list",
    "STRUCT": "a mapping",
}
OPTIONS = "options"
"""A component's argument that holds the settings that have no parameter of their own."""
SAMPLING = ("engine", "n", "temperature", "top_p", "max_new_tokens", "stop", "seed")
"""Arguments that ``sample`` and ``evaluate`` put together to the settings of sampling."""
_LATER = "given-when-it-runs"
_ARGUMENT_OF = {"functions": "reward_functions", "model": "reward_model"}


def check_parameters(
    graph: Graph, values: Mapping[str, Any], *, complete: bool = True, here: bool = False
) -> dict[str, Any]:
    """All parameters of ``graph`` with ``values`` over the defaults, checked against every stage.

    Args:
        graph: the compiled pipeline.
        values: by parameter name.
        complete: whether required parameters must be there, or may be given when the pipeline runs.
        here: whether the run will be on this machine: reward functions are looked up, too.

    Raises:
        ConfigError: an unknown name, a value of the wrong type, one that a stage refuses, or one missing.
    """
    for name, value in values.items():
        known = ", ".join(sorted(graph.parameters))
        require(name in graph.parameters, name, value, f"a parameter of {graph.name}: one of {known}")
        _check_type(graph.parameters[name], value)
        _refuse_null(name, value)
    held_to = rules(graph.name.replace("-", "_"))
    for name, allowed in held_to.choices.items():
        require_choice(name, values.get(name, allowed[0]), allowed)
    missing = {p.name for p in graph.parameters.values() if p.required} - values.keys()
    if complete and missing:
        name = min(missing)
        raise ConfigError(name, None, f"a value, it has no default: {graph.parameters[name].description}")
    for group in held_to.one_of:
        if not any(values.get(name) for name in group):
            require(not complete, group[0], None, f"a value for {' or '.join(group)}")
            missing |= set(group)
    later = {name: _LATER for name in missing if graph.parameters[name].type == "STRING"}
    defaults = {p.name: p.default for p in graph.parameters.values() if not p.required}
    found = defaults | later | dict(values)
    for task in _in_order(graph):
        if {s.parameter for s in task.arguments.values() if s.parameter} <= found.keys():
            _check_stage(task, found, here=here)
    return found


def config_class(stage: str) -> type | None:
    """The config class that the component of ``stage`` builds, or None when it has no settings.

    It is the one ``…Config`` that the component imports in its body; the stage itself, with whatever
    models need, is not imported.
    """
    component = getattr(importlib.import_module(f"kubealign_components.{stage}.component"), stage)
    tree = ast.parse(textwrap.dedent(inspect.getsource(component.python_func)))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    for node in imports:
        for name in node.names:
            if name.name.endswith("Config"):
                found: type = getattr(importlib.import_module(str(node.module)), name.name)
                return found
    return None


def _check_stage(task: Task, values: Mapping[str, Any], *, here: bool) -> None:
    cls = config_class(task.function)
    if cls is None:
        return
    known = {name: _value(source, values) for name, source in task.arguments.items()}
    fields = cls.__dataclass_fields__  # type: ignore[attr-defined]
    settings = {name: value for name, value in known.items() if name in fields} | known.get(OPTIONS, {})
    try:
        config: Any = from_mapping(cls, settings | _put_together(known), task.function)
        for function in config.reward.functions if here and "reward" in fields else ():
            load_function(function)
    except ConfigError as error:
        options = known.get(OPTIONS, {})
        raise ConfigError(_user_name(task, error.field, options), error.value, error.expected) from None


def _put_together(known: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that components put together from several arguments: sampling, rewards, and a judge.

    The options of ``sample`` and ``rewards`` reach ``evaluate``, too, under the names of those stages.
    """
    own = known.get(OPTIONS, {})
    found: dict[str, Any] = {}
    if set(SAMPLING) <= known.keys():
        theirs = known.get("sample_options", {}).get("sampling", {})
        found["sampling"] = {name: known[name] for name in SAMPLING} | theirs | own.get("sampling", {})
    if "reward_functions" in known:
        options = known.get("rewards_options", own).get("reward", {})
        found["reward"] = reward_settings(
            known["reward_functions"], known.get("reward_model", _LATER), options
        )
    if "judge_options" in known:
        named = {"judge": known["judge"]} | known["judge_options"] if known.get("judge") else None
        found["judge"] = own.get("judge", named)
    return found


def _value(source: Source, values: Mapping[str, Any]) -> Any:
    return source.constant if source.parameter is None else values[source.parameter]


def _user_name(task: Task, field: str, options: Mapping[str, Any]) -> str:
    """The pipeline's name for the setting that a stage calls ``field``."""
    field = field.removeprefix(f"{task.function}.")
    group = next((g for g in ("sampling", "reward") if field.startswith(f"{g}.")), "")
    field = field.removeprefix(f"{group}.")
    name = field.partition(".")[0].partition("[")[0]
    source = task.arguments.get(_ARGUMENT_OF.get(name, name))
    if source is not None and source.parameter:
        return source.parameter + field.removeprefix(name)
    # A setting's own check names it alone: what it is nested in tells where the user wrote it.
    group = group or next((g for g in ("sampling", "reward") if name in options.get(g, {})), "")
    place = task.arguments.get(OPTIONS, Source()).parameter or task.function
    return ".".join(filter(None, [place, group, field]))


def _in_order(graph: Graph) -> list[Task]:
    """The tasks in the order of the stages."""
    order = {stage: position for position, stage in enumerate(DEFAULTS)}
    return sorted(graph.tasks.values(), key=lambda task: order[task.function])


def _check_type(parameter: Parameter, value: Any) -> None:
    wanted = _TYPES[parameter.type]
    ok = isinstance(value, wanted) and (bool in wanted or not isinstance(value, bool))
    require(ok, parameter.name, value, f"{_WORDS[parameter.type]}: {parameter.description}")


def _refuse_null(name: str, value: Any) -> None:
    """KFP's local runner cannot carry a null; a setting that is left out keeps its default."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_null(f"{name}.{key}", item)
    elif isinstance(value, list):
        for position, item in enumerate(value):
            _refuse_null(f"{name}[{position}]", item)
    else:
        require(value is not None, name, value, "a value; leave the setting out to keep its default")
