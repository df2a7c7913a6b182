"""Parameters are checked whole before anything runs: names and types, then every stage's own rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kubealign.graph import Graph, Parameter, Source, Task
from kubealign_components.config import (
    OPTIONS,
    Assembled,
    Path,
    assemble,
    check_mapping,
    require,
    text_of,
)
from kubealign_components.engines.reward_functions import LoadedFunction
from kubealign_components.errors import ConfigError
from kubealign_components.stages import config_class
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
_LATER = "given-when-it-runs"


def check_parameters(
    graph: Graph, values: Mapping[str, Any], *, complete: bool = True, here: bool = False
) -> dict[str, Any]:
    """All parameters of ``graph`` with ``values`` over the defaults, checked against every stage.

    Args:
        graph: the compiled pipeline.
        values: by parameter name.
        complete: whether required parameters must be there, or may be given when the pipeline runs.
        here: whether the run will be on this machine: reward functions are looked up, too.

    Returns:
        Of the parameters that the graph has.

    Raises:
        ConfigError: an unknown name, a value of the wrong type, one that a stage refuses, or one missing.
    """
    held_to = rules(graph.name.replace("-", "_"))
    chosen = held_to.choose(values)
    every = graph.parameters | graph.others
    for name, value in values.items():
        known = ", ".join(sorted({*every, *chosen}))
        require(name in every or name in chosen, name, value, f"a parameter of {graph.name}: one of {known}")
        if name in every:
            _check_type(every[name], value)
            _refuse_null(name, value)
    values = graph.given(values)
    missing = {p.name for p in graph.parameters.values() if p.required} - values.keys()
    if complete and missing:
        name = min(missing)
        raise ConfigError(name, None, f"a value, it has no default: {graph.parameters[name].description}")
    for group in held_to.one_of:
        if group[0] in graph.parameters and not any(values.get(name) for name in group):
            require(not complete, group[0], None, f"a value for {' or '.join(group)}")
            missing |= set(group)
    later = {name: _LATER for name in missing if graph.parameters[name].type == "STRING"}
    defaults = {p.name: p.default for p in graph.parameters.values() if not p.required}
    found = defaults | later | dict(values)
    for task in _in_order(graph):
        if {s.parameter for s in task.arguments.values() if s.parameter} <= found.keys():
            _check_stage(task, found, here=here)
    return found


def _check_stage(task: Task, values: Mapping[str, Any], *, here: bool) -> None:
    _check_plan(task.arguments.get("rows_per_chunk", Source()), values)
    cls = config_class(task.function)
    if cls is None:
        return
    settings = assemble(cls, arguments(task, values))
    config: Any
    config, problems = check_mapping(cls, settings.values, task.function)
    for problem in problems:
        error = problem.error
        raise ConfigError(_user_name(task, settings, problem.path), error.value, error.expected)
    reward = getattr(config, "reward", None)
    try:
        for function in reward.functions if here and reward is not None else ():
            LoadedFunction(function).close()
    except ConfigError as error:
        raise ConfigError("reward_functions", error.value, error.expected) from None


def _check_plan(rows: Source, values: Mapping[str, Any]) -> None:
    """0 plans no chunks, which only the pipeline itself may say."""
    if rows.parameter is not None:
        value = values[rows.parameter]
        require(value > 0, rows.parameter, value, "a positive number of rows")


def arguments(task: Task, values: Mapping[str, Any]) -> dict[str, Any]:
    """What the component of ``task`` is called with; a word stands for what other tasks will make."""
    return {name: _value(source, values) for name, source in task.arguments.items()}


def _value(source: Source, values: Mapping[str, Any]) -> Any:
    if source.produced:
        return _LATER
    return source.constant if source.parameter is None else values[source.parameter]


def _user_name(task: Task, settings: Assembled, path: Path) -> str:
    """The pipeline's name for the setting at ``path`` of a stage."""
    argument, *rest = settings.origin(path) or (OPTIONS, *path)
    source = task.arguments.get(str(argument), Source())
    return text_of((source.parameter or task.function, *rest))


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
