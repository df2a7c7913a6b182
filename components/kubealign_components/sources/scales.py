"""On which scale a source's columns of verdicts are, as only all of their rows can say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from kubealign_components.sources.values import number_of, truth_of

MOST_VALUES = 64
"""So many values of a column are kept, and those beyond them that are its least and its greatest."""
_STRONGEST = 3
"""HelpSteer's strengths of preference go from -3 to 3."""
_UNDECIDED = ("", "tie", "both", "neither", "neutral", "none", "n/a", "unknown", "unsure", "skip", "null")
"""Words that leave an answer without a verdict."""
_FEW = 100
"""One word of so many may be a slip."""


@dataclass(slots=True)
class Scales:
    """What values columns have had so far; a column of verdicts means what all of its values allow.

    A number alone says little: 1 is good where the others are 0, bad where they go up to 5, and undecided
    amid -1 and 1. A row at a time, half of such a column would be turned round.
    """

    _strengths: dict[str, set[float]] = field(default_factory=dict)
    _verdicts: dict[str, set[float]] = field(default_factory=dict)
    _words: dict[str, Counter[bool]] = field(default_factory=dict)
    """Of columns of verdicts in words: how many are understood."""

    def signed(self, column: str, strength: float) -> None:
        """A strength of preference: for the first answer below 0, for the second above."""
        _add(self._strengths.setdefault(column, set()), strength)

    def verdict(self, column: str, value: object) -> None:
        """A verdict on one answer: 1, true, good, …, or 0 (or -1), false, bad, …"""
        number = float(value) if isinstance(value, bool) else number_of(value)
        if number is not None:
            _add(self._verdicts.setdefault(column, set()), number)
        elif isinstance(value, str) and value.strip().lower() not in _UNDECIDED:
            self._words.setdefault(column, Counter())[truth_of(value) is not None] += 1

    def clear(self) -> None:
        """Forget everything."""
        for seen in (self._strengths, self._verdicts, self._words):
            seen.clear()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Columns that are on another scale than they were read on: name, and why."""
        for column, values in self._strengths.items():
            below = {value for value in values if value < 0}
            if max(values) > 0 and (not below or (below == {-1} and max(values) > _STRONGEST)):
                yield (
                    column,
                    f"{_range(values)}, and of strengths those below 0 are for the first of two answers",
                )
        for column, values in self._verdicts.items():
            if not values <= {0, 1} and not values <= {-1, 1}:
                yield column, f"{_range(values)}, and verdicts on an answer are 1 and 0, or 1 and -1"
        for column, words in self._words.items():
            if words[True] and words[False] > words.total() / _FEW:
                yield (
                    column,
                    f"{words[False]} of {words.total()} words are none, such as good and bad, or 1 and 0",
                )


def _range(values: set[float]) -> str:
    return f"its values go from {min(values):g} to {max(values):g}"


def _add(values: set[float], value: float) -> None:
    if len(values) < MOST_VALUES:
        values.add(value)
        return
    for extreme in (min(values), max(values)):
        if (value < extreme) if extreme == min(values) else (value > extreme):
            values.discard(extreme)
            values.add(value)
            return
