"""Settings by one name each: ``train_batch_size`` is what ``batch_size`` is in ``train_options``.

A form has a box for what changes between runs. A run file may say any setting beside these, by the name of
its options and its own; here, and only here, it is put where the pipeline takes it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import get_origin

from kubealign_components.config import GROUPS, OPTIONS, Path, SettingGroup, config_in, hints_of
from kubealign_components.stages import CONFIGS, config_class
from kubealign_pipelines.checking.findings import A_VALUE, PARAMETERS, Finding, belongs_to, error_at
from kubealign_pipelines.graph import Graph, Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Folded:
    """Values of a run file as the pipeline's own parameters take them."""

    values: dict[str, object]
    """By parameter; names that belong nowhere stay as they were."""
    names: Mapping[Path, str]
    """The name that was written, by the place that its value was put at."""
    findings: tuple[Finding, ...]
    """Settings that were given at both places, or have none to go to."""

    def as_written(self, path: Path) -> Path:
        """Where the run file has what is at ``path``, which begins with the section of parameters."""
        for length in range(len(path), 1, -1):
            name = self.names.get(path[1:length])
            if name is not None:
                return (PARAMETERS, name, *path[length:])
        return path


def fold(graph: Graph, values: Mapping[str, object]) -> Folded:
    """``values`` with every setting that is no parameter of ``graph`` put into its stage's options."""
    own = {parameter.name for parameter in graph.settings()}
    paths = {name: path for name in values.keys() - own if (path := path_of(graph, name))}
    folded = {name: value for name, value in values.items() if name not in paths}
    names: dict[Path, str] = {}
    findings: list[Finding] = []
    for name, path in paths.items():
        if values[name] is None:
            findings.append(error_at((PARAMETERS, name), None, A_VALUE))
        elif (there := _put(folded, path, values[name], findings)) is None:
            names[path] = name
        else:
            findings.append(belongs_to(name, (PARAMETERS, *path), there))
    return Folded(values=folded, names=names, findings=tuple(findings))


def path_of(graph: Graph, name: str) -> tuple[str, ...] | None:
    """The parameter, and the keys in it, of the setting ``name``; None where there is no such setting."""
    options = _options(graph)
    for prefix in sorted(options, key=len, reverse=True):
        inner = paths_in_options(options[prefix]).get(name.removeprefix(f"{prefix}_"))
        if name.startswith(f"{prefix}_") and inner is not None:
            return (f"{prefix}_{OPTIONS}", *inner)
    return None


def flat_names(graph: Graph) -> dict[tuple[str, ...], str]:
    """The one name of every setting that stands in options, by its place among the parameters."""
    own = {parameter.name for parameter in graph.settings()}
    names: dict[tuple[str, ...], str] = {}
    for prefix, stage in _options(graph).items():
        for name, inner in paths_in_options(stage).items():
            if (flat := f"{prefix}_{name}") not in own:
                names.setdefault((f"{prefix}_{OPTIONS}", *inner), flat)
    return names


def _options(graph: Graph) -> Mapping[str, str]:
    """The stages by what the parameters of their options begin with: as the rules say, or the tasks, of which
    a component of a user's own may call an argument so as well."""
    given = {
        options.parameter.removesuffix(f"_{OPTIONS}"): task.function
        for task in graph.tasks.values()
        if (options := task.arguments.get(OPTIONS, Source())).parameter
        and options.parameter.endswith(f"_{OPTIONS}")
    }
    return {prefix: stage for prefix, stage in (graph.rules.options or given).items() if stage in CONFIGS}


@cache
def paths_in_options(stage: str) -> dict[str, tuple[str, ...]]:
    """The keys below the options of ``stage`` by the name of a setting; a group's have the group's name
    before theirs where others have the same, and those of a config that is no group always."""
    cls = config_class(stage)
    assert cls is not None
    groups: Mapping[str, SettingGroup] = getattr(cls, GROUPS, {})
    hints = hints_of(cls)
    own = {entry.name: (entry.name,) for entry in dataclasses.fields(cls) if entry.name not in groups}
    within = {f"{name}_{inner}": (name, inner) for name in own for inner in _settings_of(hints[name])}
    of_groups = {name: dict(_of_group(declared, hints[name])) for name, declared in groups.items()}
    count = Counter([*own, *within, *chain.from_iterable(of_groups.values())])
    named = {
        f"{group}_{name or OPTIONS}" if count[name] > 1 or not name else name: path
        for group, settings in of_groups.items()
        for name, path in settings.items()
    }
    return named | within | own


def _settings_of(hint: object) -> Iterator[str]:
    """The settings of the config that ``hint`` is, or allows beside nothing; none of a list of configs."""
    nested = config_in(hint)
    if nested is not None and get_origin(hint) is not tuple:
        yield from (entry.name for entry in dataclasses.fields(nested))


def _of_group(group: SettingGroup, hint: object) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The places of a group's settings below the options; of the whole group under an empty name."""
    own = [option.split(".")[1:] for option in group.options if option.startswith(f"{OPTIONS}.")]
    nested = config_in(hint)
    if own and nested is not None:
        yield "", tuple(own[-1])
        for entry in dataclasses.fields(nested):
            yield entry.name, (*own[-1], entry.name)


def _put(values: dict[str, object], path: Sequence[str], value: object, findings: list[Finding]) -> object:
    """Put ``value`` at ``path``, or give what is there already; what bars the way there is a finding."""
    target = values
    for length, name in enumerate(path[:-1], start=1):
        inner = target.get(name, {})
        if not isinstance(inner, Mapping):
            findings.append(error_at((PARAMETERS, *path[:length]), inner, "a mapping of settings"))
            inner = {}
        target[name] = target = dict(inner)
    there = target.get(path[-1])
    target.setdefault(path[-1], value)
    return there
