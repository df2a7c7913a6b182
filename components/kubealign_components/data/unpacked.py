"""Rows for people: what a dataset keeps as JSON text, as the lists and mappings that it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import pyarrow as pa

from kubealign_components.json_types import JsonObject

JSON_TEXT = {"messages", "tools", "metadata", "metrics"}
"""Columns that hold JSON text, of rows and of the completions in them."""


def unpacked(row: Mapping[str, object]) -> JsonObject:
    """``row`` with its JSON texts read, those of its completions too."""
    return {name: _unpacked(name, value) for name, value in row.items()}


def json_columns(schema: pa.Schema) -> Iterator[str]:
    """The columns of ``schema`` that :func:`unpacked` changes."""
    for field in schema:
        inner = field.type.value_type if pa.types.is_list(field.type) else field.type
        names = {inner.field(i).name for i in range(inner.num_fields)} if pa.types.is_struct(inner) else set()
        if JSON_TEXT & {field.name, *names}:
            yield field.name


def _unpacked(name: str, value: object) -> object:
    if name in JSON_TEXT and isinstance(value, str):
        return json.loads(value)
    if isinstance(value, list):
        return [unpacked(item) if isinstance(item, Mapping) else item for item in value]
    return value
