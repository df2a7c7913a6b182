"""What a reward model's scores of held-out pairs say of it.

*Swap sensitivity* is how often the decision changes when the two completions change places. A reward model
sees one conversation at a time, so that happens on a tie and only there. What tells whether principles are
followed is *principle sensitivity*: how often the preferred completion changes when every principle of the
pair becomes its opposite. A model that ignores principles has 0; one that goes by nothing else has about 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BINS = 10
"""Of the calibration: by how likely the model takes the completion that it prefers to be the better one, in
[0.5, 0.55), … [0.95, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutPair:
    """Scores of one held-out pair."""

    margin: float
    """Score of the preferred completion minus that of the other one."""
    principles: tuple[tuple[str, bool], ...] = ()
    """Name of each principle, and whether it was negated."""
    deciding: str | None = None
    """Name of the principle that decided which one is preferred; None where that is not known."""
    opposite_margin: float | None = None
    """The margin under the opposite of every principle; None where one has none."""

    @property
    def correct(self) -> float:
        """1 where the preferred completion has the higher score, one half on a tie."""
        return (math.copysign(1, self.margin) + 1) / 2 if self.margin else 0.5

    @property
    def negated(self) -> bool | None:
        """Whether it goes by a negated principle: the deciding one, or all of them where that is not known;
        None where there are none, or some of either kind."""
        kinds = {negated for name, negated in self.principles if self.deciding in (None, name)}
        return kinds.pop() if len(kinds) == 1 else None


def held_out_numbers(pairs: Sequence[HeldOutPair]) -> dict[str, float]:
    """The measures of ``pairs``; those over no pair are left out.

    * ``held_out_accuracy``: share of pairs whose preferred completion has the higher score; ties count half.
    * ``held_out_accuracy_positive``, ``…_negated``: the same over pairs that go by a positive, and by a
      negated principle.
    * ``principle_sensitivity``, ``swap_sensitivity``: see the module's text.
    * ``calibration_error``: expected calibration error, the mean over pairs of the distance between
      confidence and accuracy of their bin.
    """
    opposed = [pair for pair in pairs if pair.opposite_margin is not None]
    measured = {
        "held_out_accuracy": [pair.correct for pair in pairs],
        "held_out_accuracy_positive": [pair.correct for pair in pairs if pair.negated is False],
        "held_out_accuracy_negated": [pair.correct for pair in pairs if pair.negated is True],
        "principle_sensitivity": [float(pair.margin * (pair.opposite_margin or 0.0) < 0) for pair in opposed],
        "swap_sensitivity": [float(pair.margin == 0) for pair in pairs],
    }
    numbers = {name: sum(values) / len(values) for name, values in measured.items() if values}
    if pairs:
        bins = calibration(pairs)
        numbers["calibration_error"] = sum(abs(c - a) * n for c, a, n in bins) / sum(n for *_, n in bins)
    return numbers


def calibration(pairs: Sequence[HeldOutPair]) -> list[tuple[float, float, int]]:
    """``(mean confidence, accuracy, pairs)`` of each of :data:`BINS` that has any.

    Confidence is the probability that a Bradley-Terry model with these scores gives to its own decision:
    σ(|margin|), from one half on.
    """
    members: dict[int, list[tuple[float, float]]] = {}
    for pair in pairs:
        confidence = 1 / (1 + math.exp(-abs(pair.margin)))
        index = min(int((confidence - 0.5) * 2 * BINS), BINS - 1)
        members.setdefault(index, []).append((confidence, pair.correct))
    return [
        (sum(c for c, _ in of_bin) / len(of_bin), sum(a for _, a in of_bin) / len(of_bin), len(of_bin))
        for _, of_bin in sorted(members.items())
    ]


def by_principle(pairs: Sequence[HeldOutPair]) -> list[dict[str, Any]]:
    """By each principle and way round: pairs that it decides (or all that have it, where that is not known),
    and the accuracy on them."""
    results: dict[tuple[str, bool], list[float]] = {}
    for pair in pairs:
        for name, negated in pair.principles:
            if pair.deciding in (None, name):
                results.setdefault((name, negated), []).append(pair.correct)
    return [
        {"name": name, "negated": negated, "pairs": len(values), "accuracy": sum(values) / len(values)}
        for (name, negated), values in sorted(results.items())
    ]
