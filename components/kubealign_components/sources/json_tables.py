"""Rows within the one value that a JSON file holds: a table as pandas and others write them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from kubealign_components.sources.messages import ROLE_KEYS
from kubealign_components.sources.row_formats import SIGNS

N = TypeVar("N")
"""Numbers of rows, as integers or texts."""

_COLUMNS = frozenset(name for signs in SIGNS.values() for sign in signs for name in sign)


def rows_in(value: object, columns: Mapping[str, str] = MappingProxyType({})) -> list[object]:
    """The rows of a table that is the only value of its file; of another value, that value.

    A table is an object of columns (``{"prompt": {"0": …, "1": …}}`` or ``{"prompt": […]}``), an object of
    rows by number (``{"0": {"prompt": …}}``), a list of rows, or an object with a list of rows: what stands
    beside it (``{"version": "1.0", "data": [{"prompt": …}]}``) is said of every row. A row may have a list of
    objects of its own, such as its completions.

    Args:
        value: of the file.
        columns: what columns with other names than the formats' mean, by name.
    """
    if isinstance(value, list):
        return value if _are_rows(value) else [value]
    if not isinstance(value, Mapping) or not value:
        return [value]
    members = list(value.values())
    if all(isinstance(member, Mapping) for member in members):
        return _numbered(value, columns) or [value]
    if all(isinstance(member, list) for member in members) and not any(map(_has_objects, members)):
        return _of_columns({str(name): dict(enumerate(member)) for name, member in value.items()}) or [value]
    lists = [name for name, member in value.items() if _are_rows(member)]
    if len(lists) != 1 or lists[0] in columns or any(columns.get(name, name) in _COLUMNS for name in value):
        return [value]
    shared = {name: member for name, member in value.items() if name not in lists}
    return [{**shared, **row} for row in value[lists[0]]]


def _numbered(value: Mapping[str, Mapping[str, object]], columns: Mapping[str, str]) -> list[object]:
    """Rows by number, or of columns whose cells have the numbers of their rows; none of other objects."""
    if all(name.isdecimal() and name not in columns for name in value):
        return list(value.values())
    return _of_columns(value) if all(n.isdecimal() for column in value.values() for n in column) else []


def _of_columns(columns: Mapping[str, Mapping[N, object]]) -> list[object]:
    """The rows of columns that all have the same cells; none where they have not."""
    first, *others = columns.values()
    if any(other.keys() != first.keys() for other in others):
        return []
    return [{name: column[cell] for name, column in columns.items()} for cell in first]


def _are_rows(value: object) -> bool:
    """Whether ``value`` is a list of objects that are no turns of a chat, whatever its roles are called."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(item, Mapping) and item.keys().isdisjoint(ROLE_KEYS) for item in value)


def _has_objects(items: list[object]) -> bool:
    return any(isinstance(item, Mapping) for item in items)
