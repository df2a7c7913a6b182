"""Paths in a run file go by the run file's folder; code that they name travels to a cluster by content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from kubealign_components.engines.own_code import find_code
from kubealign_components.engines.reward_functions import RewardFunctionSpec
from kubealign_components.named_paths import NOTHING, kind_at
from kubealign_components.store import store_for
from kubealign_pipelines.own_pipelines import is_own

_PATHS = {
    *("policy", "judge", "reward_model", "model", "reference", "adapter"),
    *("principles", "rl_principles", "template", "chat_template", "withdrawn", "task_folder"),
}
"""Settings that are a path, a URI, a hub id or a name, of a pipeline or in the options of a stage: a path
where there is something at it."""
_FOLDERS = ("work",)
"""Parameters that are a folder, whether it is there or not."""
_FUNCTIONS = ("reward_functions", "functions")
SOURCES = "sources"
"""How parameters end whose items are data, each with its ``uri``."""
_KINDS = ("none", "lora", "qlora")
"""What the adapter of a training stage may be: a kind and no place."""
_USERS = ("chat_template_kwargs", "settings")
"""Settings whose members have names that a template or function gave them."""


def beside(content: Mapping[str, object], folder: Path) -> dict[str, object]:
    """``content`` of a run file in ``folder``, with the relative paths in it made absolute."""
    parameters, pipeline = content.get("parameters"), content.get("pipeline")
    if isinstance(pipeline, str) and is_own(pipeline):
        content = {**content, "pipeline": _absolute(pipeline, folder, always=True)}
    if not isinstance(parameters, Mapping):
        return dict(content)
    placed = {name: _beside(_last_of(str(name)), value, folder) for name, value in parameters.items()}
    return {**content, "parameters": placed}


def send_code(parameters: Mapping[str, object]) -> dict[str, object]:
    """``parameters`` with reward functions of files on this machine published in the work prefix.

    What is published is named by the digest of its content.

    Raises:
        ConfigError: no such file, or one that is no Python.
        StoreError: the work prefix cannot be written.
    """
    return _with_code_sent(parameters, str(parameters.get("work", "")))


def _last_of(name: str) -> str:
    """What the parameter ``name`` is called inside options, if it is one of those that matter here."""
    endings = (*_PATHS, *_FUNCTIONS, *_USERS)
    return next((own for own in endings if name.endswith(f"_{own}")), name)


def _beside(name: str, value: object, folder: Path) -> object:
    if name in _FOLDERS:
        return _absolute(value, folder, always=True)
    if name in _PATHS and not isinstance(value, Mapping):  # a judge is named, or has settings with paths
        return _absolute(value, folder)
    if name.endswith(SOURCES) and isinstance(value, list):
        return [
            _absolute(source, folder)
            if isinstance(source, str)
            else _with(source, "uri", lambda uri: _absolute(uri, folder))
            for source in value
        ]
    if name in _FUNCTIONS and isinstance(value, list):
        return [_own_function(function, folder) for function in value]
    if isinstance(value, Mapping) and name not in _USERS:
        return {key: _beside(str(key), member, folder) for key, member in value.items()}
    return value


def _absolute(value: object, folder: Path, *, always: bool = False) -> object:
    """``value`` below ``folder``, if it is a relative path that is meant to be one."""
    if not isinstance(value, str) or value.startswith("~") or value in ("", *_KINDS):
        return value
    if "://" in value or "\0" in value:  # a URI, or no path at all
        return value
    path = Path(value)
    if path.is_absolute():
        return value
    meant = always or value.startswith(("./", "../")) or kind_at(folder / path) != NOTHING
    return os.path.realpath(folder / path) if meant else value


def _own_function(function: object, folder: Path) -> object:
    def placed(text: object) -> object:
        file, colon, name = str(text).rpartition(":")
        return f"{_absolute(file, folder, always=True)}:{name}" if colon and file.endswith(".py") else text

    return placed(function) if isinstance(function, str) else _with(function, "function", placed)


def _with(mapping: object, key: str, change: Callable[[object], object]) -> object:
    if not isinstance(mapping, Mapping) or key not in mapping:
        return mapping
    return {**mapping, key: change(mapping[key])}


def _with_code_sent(settings: Mapping[str, object], work: str) -> dict[str, object]:
    sent = dict(settings)
    for name, value in settings.items():
        if name in _FUNCTIONS and isinstance(value, list):
            sent[name] = [_sent(function, work) for function in value]
        elif isinstance(value, Mapping) and name not in _USERS:
            sent[name] = _with_code_sent(value, work)
    return sent


def _sent(function: str | Mapping[str, object], work: str) -> object:
    settings: dict[str, object] = {"function": function} if isinstance(function, str) else dict(function)
    spec = RewardFunctionSpec(function=str(settings["function"]))
    if not spec.is_file or settings.get("source"):
        return function
    data = find_code(spec.module, spec.name).bundle()
    uri = f"{work.rstrip('/')}/code/{hashlib.sha256(data).hexdigest()}.json"
    store_for(uri).publish(uri, data)
    return settings | {"function": spec.recipe_name, "source": uri}
