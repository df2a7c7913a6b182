"""Components of a sweep without the words that only people read.

Kubeflow's object of a run holds the whole component of a task ten times for each variant (workflow_size.py).
With descriptions and docstrings, twenty variants would not fit into it.
"""

from __future__ import annotations

import ast

from kubealign_components.json_types import JsonObject

_KINDS = ("parameters", "artifacts")


def lean_sweep(spec: JsonObject) -> None:
    """Take the descriptions out of every component of ``spec``, if some run once for each variant."""
    if not any(map(_over_parameter, spec["root"]["dag"]["tasks"].values())):
        return
    for component in spec["components"].values():
        _undescribed(component)
    for executor in spec["deploymentSpec"]["executors"].values():
        container = executor["container"]
        container["command"] = [_without_docstring(str(part)) for part in container["command"]]


def _over_parameter(task: JsonObject) -> bool:
    """Whether the group of tasks ``task`` runs once for each item of a parameter of the pipeline."""
    items = task.get("parameterIterator", {}).get("items", {}).get("inputParameter", "")
    given = task.get("inputs", {}).get("parameters", {}).get(items, {})
    return "componentInputParameter" in given


def _undescribed(component: JsonObject) -> None:
    for definitions in ("inputDefinitions", "outputDefinitions"):
        for kind in _KINDS:
            for declared in component.get(definitions, {}).get(kind, {}).values():
                declared.pop("description", None)


def _without_docstring(text: str) -> str:
    """``text`` without the docstring of the function that it defines; as it is where it defines none."""
    try:
        functions = [one for one in ast.parse(text).body if isinstance(one, ast.FunctionDef)]
    except SyntaxError:  # a line of the shell
        return text
    lines = text.split("\n")
    for function in functions:
        first = function.body[0]
        if ast.get_docstring(function) is not None and len(function.body) > 1 and first.end_lineno:
            del lines[first.lineno - 1 : first.end_lineno]
    return "\n".join(lines)
