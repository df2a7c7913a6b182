"""A compiled pipeline read back: its parameters, its tasks, and which parameter reaches which setting.

Everything here is derived from the IR that KFP runs, so it holds for any pipeline and cannot go out
of step with one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from typing import Any

from kubealign_components.config import require
from kubealign_components.json_types import JsonObject
from kubealign_pipelines.halving import left_of, times_halved
from kubealign_pipelines.rules import Rules
from kubealign_pipelines.variants import VARIANTS

Json = JsonObject
CHECK = "check"
"""The function of the task that checks all parameters before the others start."""
REGISTER = "register"
"""The function of the task that ends a run where a model registry is configured."""
NO_STAGES = (CHECK, REGISTER)
"""Tasks beside the stages."""
_FUNCTION = "--function_to_execute"
_PYTHON = (
    "tasks of Python: one of kubealign.components, an own_stage or a @dsl.component; no dsl.importer and no "
    "@dsl.container_component (import_prompts reads data, and a model is named by its URI)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """A pipeline parameter."""

    name: str
    type: str
    """KFP's name of the type, such as NUMBER_INTEGER or STRUCT."""
    description: str
    required: bool
    default: Any
    compile_time: bool = False
    """Whether it decides which stages there are, and is no parameter of the compiled pipeline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a component's argument comes from: a pipeline parameter, a constant, or another task."""

    parameter: str | None = None
    constant: object = None
    produced: bool = False
    """Whether it is known only when another task has run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task of the graph."""

    name: str
    """Unique; the folder of its outputs when it runs here."""
    title: str
    """As the UI shows it."""
    function: str
    """The component's Python function, which is named like its stage."""
    group: str
    """The stage it works for: its own, or for merge that of the fan-out."""
    arguments: dict[str, Source]
    """Its parameters; artifacts are left out."""
    outputs: dict[str, str]
    """Output artifacts and their types, such as ``system.Dataset``."""
    each: str | None = None
    """The parameter for each of whose items it runs once; None where it runs once, or once a chunk."""
    halved: int = 0
    """How often items of that parameter were dropped before: it runs for those that are left."""
    factor: int = 0
    """One in how many went on, each time."""

    def executions(self, items: int) -> int:
        """How often it runs, or all workers of a fan-out together, where :attr:`each` has so many items."""
        return left_of(items, self.factor, self.halved) if self.each else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loop:
    """What a task is done for again and again: chunks that another task planned, or items of a parameter."""

    fan_out: str | None = None
    each: str | None = None
    halved: tuple[int, int] = (0, 0)
    """As :func:`~kubealign_pipelines.halving.times_halved` has it."""


class Graph:
    """A compiled pipeline.

    Args:
        spec: the IR as parsed from YAML.
        others: parameters of the pipeline's other shapes, which no task of this graph reads.
        choices: settings that decide which stages there are.
        rules: what no stage alone can check of its parameters.
        called: what the command line knows it by, where that is not its name: the file of one's own.

    Raises:
        ConfigError: a task that is no component of Python.
    """

    def __init__(
        self,
        spec: Json,
        others: Mapping[str, Parameter] | None = None,
        choices: Mapping[str, Parameter] | None = None,
        rules: Rules | None = None,
        called: str = "",
    ) -> None:
        self.name: str = spec["pipelineInfo"]["name"]
        self.called = called or self.name.replace("-", "_")
        self.description: str = spec["pipelineInfo"].get("description", "")
        self.parameters = {p.name: p for p in _parameters(spec["root"])}
        self.others = dict(others or {})
        self.choices = dict(choices or {})
        self.rules = rules or Rules()
        self._spec = spec
        outer = {name: Source(parameter=name) for name in self.parameters}
        tasks = list(self._walk(spec["root"]["dag"], outer, _Loop()))
        self.tasks = {task.name: task for task in tasks if task.function not in NO_STAGES}
        """In the order in which they can run; all but those that are no stages: one reads whatever others
        read, the other makes no rows."""

    def settings(self) -> list[Parameter]:
        """All that a run file may set, in whatever shape of the pipeline."""
        return list((self.parameters | self.others | self.choices).values())

    def given(self, values: Mapping[str, object]) -> dict[str, object]:
        """Those of ``values`` that a run of this graph takes: a run file may have more, for other shapes."""
        return {name: value for name, value in values.items() if name in self.parameters}

    def _walk(self, dag: Json, outer: Mapping[str, Source], loop: _Loop) -> Iterator[Task]:
        groups = _groups(dag["tasks"])
        for name in _in_order(dag["tasks"]):
            task = dag["tasks"][name]
            component = self._spec["components"][task["componentRef"]["name"]]
            arguments = _arguments(task, component, outer)
            if "dag" in component:
                halved = times_halved(dag["tasks"], name)
                inner = _inside(task, arguments) if not halved[0] else _Loop(each=VARIANTS, halved=halved)
                yield from self._walk(component["dag"], arguments, inner or loop)
            else:
                fan_out = loop.fan_out or groups.get(name)
                yield self._task(task, component, arguments, replace(loop, fan_out=fan_out))

    def _task(self, task: Json, component: Json, arguments: dict[str, Source], loop: _Loop) -> Task:
        executor = self._spec["deploymentSpec"]["executors"][component["executorLabel"]]
        function = function_of(executor.get("container", {}))
        require(bool(function), "pipeline", f"{self.name}: {task['taskInfo']['name']}", _PYTHON)
        artifacts = component.get("outputDefinitions", {}).get("artifacts", {})
        return Task(
            name=task["componentRef"]["name"].removeprefix("comp-"),
            title=task["taskInfo"]["name"],
            function=function,
            group=loop.fan_out or function,
            arguments=arguments,
            outputs={name: value["artifactType"]["schemaTitle"] for name, value in artifacts.items()},
            each=loop.each,
            halved=loop.halved[0],
            factor=loop.halved[1],
        )


def _inside(task: Json, arguments: Mapping[str, Source]) -> _Loop | None:
    """The loop that the group of tasks ``task`` is; None where it is none."""
    if "parameterIterator" not in task:
        return None
    items = arguments.get(task["parameterIterator"]["items"].get("inputParameter", ""), Source())
    if items.parameter is not None:
        return _Loop(each=items.parameter)
    return _Loop(fan_out=task["taskInfo"]["name"])


def function_of(container: Json) -> str:
    """The Python function that the pod of a component calls; empty where it calls none."""
    arguments = [str(argument) for argument in container.get("args", ())]
    at = arguments.index(_FUNCTION) + 1 if _FUNCTION in arguments else len(arguments)
    return arguments[at] if at < len(arguments) else ""


def _parameters(root: Json) -> Iterator[Parameter]:
    for name, value in root.get("inputDefinitions", {}).get("parameters", {}).items():
        kind = value["parameterType"]
        default = value.get("defaultValue")
        yield Parameter(
            name=name,
            type=kind,
            description=" ".join(value.get("description", "").split()),
            required=default is None and not value.get("isOptional", False),
            default=int(default) if kind == "NUMBER_INTEGER" and default is not None else default,
        )


def _in_order(tasks: Json) -> Iterator[str]:
    """The names of ``tasks``, each after those that it waits for; the IR is a map, in no order of its own."""
    return iter(
        TopologicalSorter({n: tasks[n].get("dependentTasks", ()) for n in sorted(tasks)}).static_order()
    )


def _arguments(task: Json, component: Json, outer: Mapping[str, Source]) -> dict[str, Source]:
    declared = component.get("inputDefinitions", {}).get("parameters", {})
    arguments = {n: Source(constant=d["defaultValue"]) for n, d in declared.items() if "defaultValue" in d}
    for name, value in task.get("inputs", {}).get("parameters", {}).items():
        if "runtimeValue" in value:
            arguments[name] = Source(constant=value["runtimeValue"].get("constant"))
        elif value.get("componentInputParameter") in outer:
            arguments[name] = outer[value["componentInputParameter"]]
        else:
            arguments[name] = Source(produced=True)
    return arguments


def _groups(tasks: Json) -> dict[str, str]:
    """The fan-out whose parts a task merges, by task name."""
    groups: dict[str, str] = {}
    loops = {name: task["taskInfo"]["name"] for name, task in tasks.items() if "parameterIterator" in task}
    for name, task in tasks.items():
        values = task.get("inputs", {}).get("parameters", {}).values()
        producers = {value.get("taskOutputParameter", {}).get("producerTask") for value in values}
        for loop in producers & loops.keys():
            if name not in loops:
                groups[name] = loops[loop]
    return groups
