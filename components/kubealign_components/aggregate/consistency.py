"""How much the judge's opinions are worth: how often its two orders agree, and how its scores spread."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kubealign_components.errors import GateError

if TYPE_CHECKING:
    from kubealign_components.data.schemas import JudgedRow

BINS = 40


class Opinions:
    """The judgements of a dataset under one principle.

    A judgement is consistent when both orders prefer the same completion. Whoever looks at the position
    alone is never consistent. Whoever answers at random is half of the time, if it likes no position, and
    less often if it does: so half is the most that no opinion at all gives.
    """

    def __init__(self) -> None:
        self.consistent = 0
        self._position = 0.0
        self._scores = array("f")

    def add(self, s12: float, s21: float) -> None:
        """One judgement, by its log-odds in both orders."""
        self.consistent += s12 * s21 > 0
        self._position += (s12 - s21) / 2
        self._scores.append((s12 + s21) / 2)

    @property
    def count(self) -> int:
        """How many judgements there are."""
        return len(self._scores)

    @property
    def consistency(self) -> float:
        """Share of judgements whose orders agree; NaN without any."""
        return self.consistent / self.count if self.count else float("nan")

    @property
    def prefers_first_shown(self) -> float:
        """Mean log-odds, in nats, for what is shown first, whatever it is; NaN without any judgement."""
        return self._position / self.count if self.count else float("nan")

    def histogram(self) -> tuple[list[int], float, float]:
        """Counts of the debiased scores in even bins, and the nats at which the bins begin and end.

        The bins are symmetrical about 0 and hold 99 % of the scores; the outer ones take the rest.
        """
        scores = np.frombuffer(self._scores, dtype=np.float32)
        edge = float(np.quantile(np.abs(scores), 0.99)) if len(scores) else 0.0
        edge = edge or 1.0
        counts, _ = np.histogram(np.clip(scores, -edge, edge), bins=BINS, range=(-edge, edge))
        return counts.tolist(), -edge, edge


def survey(row: JudgedRow, opinions: dict[str, Opinions]) -> None:
    """Add the judgements of a ``kubealign.judged/v1`` row to what is ``opinions`` by principle."""
    for judgement in row["judgements"] or ():
        opinions.setdefault(judgement["principle"], Opinions()).add(judgement["s12"], judgement["s21"])


def overall(opinions: Mapping[str, Opinions], names: Sequence[str]) -> float:
    """Consistency under all of the principles ``names`` together; NaN without any judgement."""
    chosen = [opinions[name] for name in names if name in opinions]
    count = sum(one.count for one in chosen)
    return sum(one.consistent for one in chosen) / count if count else float("nan")


def check_consistency(
    opinions: Mapping[str, Opinions], names: Sequence[str], *, least: float, least_each: float
) -> None:
    """Hold the judge to a consistency, over all of the principles ``names`` and under each of them.

    Args:
        opinions: of the judge, by principle.
        names: of the principles that count.
        least: share of judgements over all of them; 0 for any.
        least_each: share of judgements under each; 0 for any.

    Raises:
        GateError: it is lower, or there is no judgement; lists the rates by principle.
    """
    rate = overall(opinions, names)
    passes = not least or rate >= least
    low = [name for name in names if least_each and not _rate(opinions, name) >= least_each]
    if passes and not low:
        return
    rates = ", ".join(f"{name} {_percent(_rate(opinions, name))}" for name in names)
    failed = (
        f"min_consistency={least:g} or more"
        if not passes
        else f"min_principle_consistency={least_each:g} or more under {', '.join(low)} too"
    )
    raise GateError(
        f"the judge's two orders agree on {_percent(rate)} of its judgements, expected {failed}; "
        f"by principle: {rates}. A judge without an opinion reaches at most 50 %, one that looks at "
        "the position alone 0 %: take a stronger judge or a clearer question, or leave principles out"
    )


def _rate(opinions: Mapping[str, Opinions], name: str) -> float:
    return opinions[name].consistency if name in opinions else float("nan")


def _percent(rate: float) -> str:
    return f"{rate:.1%}" if rate == rate else "none at all"
