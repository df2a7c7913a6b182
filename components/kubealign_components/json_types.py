"""What JSON is to the type checker; in one place, so that it is the same everywhere."""

from __future__ import annotations

from typing import Any, TypeAlias

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
"""A value that JSON can hold: for what is made here, kept or passed on."""

JsonObject: TypeAlias = dict[str, Any]
"""An object that others wrote (an API server, a model's config.json): a reader knows its keys."""
