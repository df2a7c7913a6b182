"""Which files make the tasks that are asked for, without reading the 14,000 that lm-eval has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval import tasks
from lm_eval.tasks._index import Entry, Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from kubealign_components.benchmark.names import task_names
from kubealign_components.errors import ConfigError, EngineError

_ROOT = Path(tasks.__file__).parent


def own_entries(folder: str) -> dict[str, Entry]:
    """The tasks, groups and tags of the YAML files below ``folder``; none of an empty name.

    Raises:
        ConfigError: it has none.
    """
    if not folder:
        return {}
    files = sorted(Path(folder).rglob("*.yaml"))
    entries = TaskIndex.build([Path(folder)]) if files else {}
    if not entries:
        raise ConfigError(
            "task_folder",
            folder,
            f"a folder with tasks in lm-eval's YAML, each with a task: or group: (of its {len(files)} "
            "files *.yaml none is one)",
        )
    return entries


def entries_of(names: Sequence[str], own: Mapping[str, Entry]) -> dict[str, Entry]:
    """What lm-eval makes ``names`` of, and all that they refer to; ``own`` tasks come before its own.

    Raises:
        EngineError: another release of lm-eval than the names are of.
    """
    shipped = task_names()
    if version("lm-eval") != shipped.release:
        raise EngineError(
            f"lm-eval {version('lm-eval')} is installed, expected {shipped.release}: install that"
        )
    entries: dict[str, Entry] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in entries:
            continue
        if name in own:
            entries[name] = own[name]
        elif name in shipped.tags:
            entries[name] = Entry(name=name, kind=Kind.TAG, yaml_path=None, tags=set(shipped.tags[name]))
        elif name in shipped.files:
            path = _ROOT / shipped.files[name]
            fresh: dict[str, Entry] = {}
            TaskIndex.process_cfg(load_yaml(path, resolve_func=False), path, fresh)
            entries[name] = fresh[name]
        waiting += _referred(entries[name]) if name in entries else []
    return entries


def _referred(entry: Entry) -> Iterator[str]:
    if entry.kind is Kind.TAG:
        yield from entry.tags
    elif entry.kind is Kind.GROUP:
        yield from _members((entry.cfg or {}).get("task"))


def _members(listed: Any) -> Iterator[str]:
    for member in listed if isinstance(listed, list) else ():
        if isinstance(member, str):
            yield member
        elif "group" in member:
            yield member["group"]
            yield from _members(member.get("task"))
        else:
            yield member.get("task", "")
