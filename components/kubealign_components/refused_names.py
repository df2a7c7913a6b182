"""Which setting a config means by the name that it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubealign_components.config import Path


def named_below(path: Path, field: str, values: Mapping[str, object]) -> Path:
    """The path of what a check of the config at ``path``, of ``values``, calls ``field``; lists name
    themselves there."""
    names = [name for part in field.split(".") for name in _steps(part)]
    around = [part for part in path if isinstance(part, str)]
    if names and around and names[0] == around[-1]:
        names = names[1:]
    return (*path, *_whole_names(tuple(names), values))


def _whole_names(names: Path, values: object) -> Path:
    """``names`` as ``values`` have them: one may have points in it, such as a label's."""
    if not isinstance(values, Mapping):
        return names
    for end in range(1, len(names) + 1):
        name = ".".join(map(str, names[:end]))
        if name in values:
            return (name, *_whole_names(names[end:], values[name]))
    return names


def _steps(part: str) -> Iterator[str | int]:
    name, _, rest = part.partition("[")
    yield name
    for position in rest.rstrip("]").split("]["):
        if position.isdecimal():
            yield int(position)
