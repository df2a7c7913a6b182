"""What a row says, whatever its format: the columns it has, and the example that comes of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kubealign_components.data.sources.messages import Malformed, Message

METADATA_CHARS = 256
"""Longer strings of a source's own columns are not kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Offline:
    """A completion that came with the source."""

    messages: list[Message]
    label: str | None = None
    """chosen, rejected, or null."""
    score: float | None = None
    model: str | None = None


@dataclass(kw_only=True, slots=True)
class Example:
    """What a row of any format says."""

    messages: list[Message]
    completions: list[Offline] = field(default_factory=list)
    whole: bool = False
    """One unusable completion makes the row unusable, as in a pair."""
    tools: list[dict[str, Any]] | None = None
    answers: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    """Completions that were left out, by reason."""


class Columns:
    """A row whose columns are taken by name; what nobody took is metadata."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self._taken: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the column is there and not null."""
        return self.peek(name) is not None

    def peek(self, name: str) -> Any:
        """The column, without taking it."""
        return self._row.get(name)

    def take(self, *names: str) -> Any:
        """The first of the columns that is there and not null."""
        name = next((n for n in names if self.has(n)), None)
        if name is None:
            return None
        self._taken.add(name)
        return self._row[name]

    def rest(self) -> dict[str, Any]:
        """The other columns that are small scalars."""
        return {k: v for k, v in self._row.items() if k not in self._taken and _is_small(v)}


def answers_of(value: object) -> list[str]:
    """Verifiable answers as text, one or a list of them; numbers without a needless ``.0``.

    Raises:
        Malformed: bad_answer, for anything but text and numbers.
    """
    listed = value if isinstance(value, list) else [] if value is None else [value]
    texts = [_answer_text(item) for item in listed if item is not None]
    return list(dict.fromkeys(text for text in texts if text))


def _answer_text(value: object) -> str:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return str(int(value))
    if not isinstance(value, str | int | float):
        raise Malformed("bad_answer")
    return str(value).strip()


def number_of(value: object) -> float | None:
    """A finite number, also when it is written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def name_of(value: object) -> str | None:
    """Text that is not empty, or None."""
    return value if isinstance(value, str) and value else None


def _is_small(value: object) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= METADATA_CHARS
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**63)
