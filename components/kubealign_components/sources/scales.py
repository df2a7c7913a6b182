"""On which scale a source's columns of verdicts are, as only all of their rows can say."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from kubealign_components.errors import DataError
from kubealign_components.sources.values import number_of, truth_of

_STRONGEST = 3
"""HelpSteer's strengths of preference go from -3 to 3."""
_BEYOND = 4
_UNDECIDED = ("", "tie", "both", "neither", "neutral", "none", "n/a", "unknown", "unsure", "skip", "null")
"""Words that leave an answer without a verdict."""
_FEW = 100
"""One word, or number, of so many may be a slip."""


class NoVerdicts(DataError):
    """A column that cannot be read as verdicts, by all of its values."""


@dataclass(slots=True)
class _Numbers:
    """The numbers of a column: how many are of each kind, and what they lie between."""

    kinds: Counter[float] = field(default_factory=Counter)
    """Of -1, 0 and 1, and of others by ±2 up to the greatest strength and ±:data:`_BEYOND` above."""
    least: float = math.inf
    greatest: float = -math.inf

    def put(self, value: float) -> None:
        beyond = _BEYOND if abs(value) > _STRONGEST else 2
        self.kinds[value if value in (-1, 0, 1) else math.copysign(beyond, value)] += 1
        self.least, self.greatest = min(self.least, value), max(self.greatest, value)

    def add(self, other: _Numbers) -> None:
        self.kinds.update(other.kinds)
        self.least, self.greatest = min(self.least, other.least), max(self.greatest, other.greatest)

    def are_more_than_slips(self, of: Collection[float]) -> bool:
        """Whether the numbers of these kinds are too many for slips."""
        return sum(self.kinds[kind] for kind in of) > self.kinds.total() / _FEW

    def __str__(self) -> str:
        return f"its values go from {self.least:g} to {self.greatest:g}"


@dataclass(slots=True)
class Scales:
    """What values columns have had so far; a column of verdicts means what all of its values allow.

    A number alone says little: 1 is good where the others are 0, bad where they go up to 5, and undecided
    amid -1 and 1. A row at a time, half of such a column would be turned round.
    """

    _strengths: defaultdict[str, _Numbers] = field(default_factory=lambda: defaultdict(_Numbers))
    _weights: defaultdict[str, _Numbers] = field(default_factory=lambda: defaultdict(_Numbers))
    _verdicts: defaultdict[str, _Numbers] = field(default_factory=lambda: defaultdict(_Numbers))
    _words: defaultdict[str, Counter[bool]] = field(default_factory=lambda: defaultdict(Counter))
    """Of columns of verdicts in words: how many are understood."""

    def signed(self, column: str, strength: float) -> None:
        """A strength of preference: for the first answer below 0, for the second above."""
        self._strengths[column].put(strength)

    def weighted(self, column: str, preference: float) -> None:
        """A preference between 1, for the first of two answers, and 2."""
        self._weights[column].put(preference)

    def verdict(self, column: str, value: object) -> None:
        """A verdict on one answer: 1, true, good, …, or 0 (or -1), false, bad, …"""
        number = float(value) if isinstance(value, bool) else number_of(value)
        if number is not None:
            self._verdicts[column].put(number)
        elif isinstance(value, str) and value.strip().lower() not in _UNDECIDED:
            self._words[column][truth_of(value) is not None] += 1

    def add(self, other: Scales) -> None:
        """What other rows have, too."""
        for mine, others in (
            (self._strengths, other._strengths),
            (self._weights, other._weights),
            (self._verdicts, other._verdicts),
        ):
            for column, numbers in others.items():
                mine[column].add(numbers)
        for column, words in other._words.items():
            self._words[column].update(words)

    def clear(self) -> None:
        """Forget everything."""
        for seen in (self._strengths, self._weights, self._verdicts, self._words):
            seen.clear()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Columns that are on another scale than they were read on: name, and why."""
        for column, seen in self._strengths.items():
            one_sided = seen.least >= 0 and seen.are_more_than_slips((1, 2, _BEYOND))
            marked = seen.least == -1 and not seen.kinds[-2] and seen.are_more_than_slips((_BEYOND,))
            if one_sided or marked:
                yield column, f"{seen}, and of strengths those below 0 are for the first of two answers"
        for column, seen in self._weights.items():
            if seen.greatest <= 1 and seen.least == 0 and seen.kinds[1]:
                yield column, f"{seen}, and those of AlpacaEval from 1, for the first output, to 2"
        for column, seen in self._verdicts.items():
            # Numbers that are none of these are left as they are, as those of classes.
            read = {-1, 0, 1} & seen.kinds.keys()
            if read and all(seen.are_more_than_slips(seen.kinds.keys() - pair) for pair in ({0, 1}, {-1, 1})):
                yield column, f"{seen}, and verdicts on an answer are 1 and 0, or 1 and -1"
        for column, words in self._words.items():
            if words[True] and words[False] > words.total() / _FEW:
                yield (
                    column,
                    f"{words[False]} of {words.total()} words are none, such as good and bad, or 1 and 0",
                )
