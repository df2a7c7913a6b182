"""The spread of each principle's scores over a whole dataset, in one pass and exactly.

Sums are kept as whole multiples of 2**-40, so that neither the order of the rows nor how they are
chunked changes the last bit of a scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

from kubealign_components.errors import DataError

_BITS = 40
VARIANCE, STD, NONE = "variance", "std", "none"
SCALES = (VARIANCE, STD, NONE)


class Moments:
    """Count, sum and sum of squares of the values of one principle."""

    __slots__ = ("count", "squares", "total")

    def __init__(self) -> None:
        self.count = self.total = self.squares = 0

    def add(self, values: Iterable[float]) -> None:
        """Take in values, which must be finite."""
        for value in values:
            steps = round(math.ldexp(value, _BITS))
            self.count += 1
            self.total += steps
            self.squares += steps * steps

    def variance(self) -> float:
        """Mean squared distance from the mean (of the population, not of a sample)."""
        if not self.count:
            return 0.0
        spread = Fraction(self.squares, self.count) - Fraction(self.total, self.count) ** 2
        return float(spread / (1 << 2 * _BITS))

    def scale(self, kind: str) -> float:
        """What scores are divided by: ``variance`` (as published), ``std`` or ``none`` (1).

        Scores that are all equal have no spread, and are left as they are.
        """
        variance = self.variance() if kind != NONE else 0.0
        if not variance:
            return 1.0
        return variance if kind == VARIANCE else math.sqrt(variance)


def require_finite(value: float | None, prompt: str, principle: str) -> float:
    """``value``, which a judge must have given as a finite number.

    Raises:
        DataError: it is null, NaN or infinite.
    """
    if value is None or not math.isfinite(value):
        raise DataError(
            f"prompt {prompt}: the judge's score under {principle!r} is {value}, expected a finite number; "
            "judge again"
        )
    return value
