"""Successive halving: which variants of a rung are trained further, and what became of the others.

One in ``reduction_factor`` goes on, at least one: those with the highest lower bounds of the gain, variants
that keep to the limits before others, as the one of all is chosen in the end. Jamieson and Talwalkar,
Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS (2016); Li et al., Hyperband,
JMLR 18 (2018).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kubealign_components.choose.variants import EndedVariant, Variant
from kubealign_components.data.bounds import Floats
from kubealign_components.data.choice_rows import ENDED, ChoiceRow
from kubealign_components.data.dataset import Dataset

_RUNG, _AMONG, _NAMES = "rung", "variants", "settings"
"""What the manifest of a choice says of its rung."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierRungs:
    """What there was before a rung; nothing before the first one."""

    number: int = 0
    """How many rungs."""
    among: int = 0
    """Variants of the first of them, which are all."""
    names: Sequence[str] = ()
    """Of the settings in which these differ."""
    dropped: Sequence[ChoiceRow] = field(default=())
    ended: Sequence[EndedVariant] = field(default=())
    """Variants that ended early."""

    @classmethod
    def of(cls, earlier: Dataset | None) -> EarlierRungs:
        """Those that ended with the choice ``earlier``."""
        if earlier is None:
            return cls()
        extra = earlier.manifest.extra
        return cls(
            number=int(extra[_RUNG]),
            among=int(extra[_AMONG]),
            names=[str(name) for name in extra[_NAMES]],
            dropped=[row for row in earlier.iter_rows(of=ChoiceRow) if row["dropped"] is not None],
            ended=[EndedVariant(name=name, reason=reason) for name, reason in extra.get(ENDED, ())],
        )

    def then(self, variants: Sequence[Variant], ended: Sequence[EndedVariant]) -> Mapping[str, object]:
        """What the manifest of the choice among ``variants``, those of the next rung but for those that
        ``ended`` early, says of it."""
        names = self.names or list(variants[0].settings)
        among = self.among or len(variants) + len(ended)
        every = [(one.name, one.reason) for one in (*self.ended, *ended)]
        of_ended = {ENDED: every} if every else {}
        return {_RUNG: self.number + 1, _AMONG: among, _NAMES: list(names), **of_ended}


def order_of(variants: Sequence[Variant], low: Floats, keeping: Sequence[bool]) -> list[int]:
    """The positions of ``variants``, best first: those that keep to the limits, the highest lower bound of
    the gain, of equal ones the nearest to the reference."""

    def rank(position: int) -> tuple[bool, float, float]:
        kl = variants[position].kl
        return not keeping[position], -float(low[position]), math.inf if kl is None else kl

    return sorted(range(len(variants)), key=rank)


def reasons(
    order: Sequence[int], low: Floats, keeping: Sequence[bool], factor: int, *, ended: int = 0
) -> dict[int, str]:
    """Why each of the variants that are not trained further is not, by position.

    Args:
        order: of their positions, best first.
        low: lower bounds of their gains.
        keeping: which of them keep to the limits.
        factor: one in so many goes on.
        ended: how many of the rung ended early: they are some of those that do not.
    """
    kept = min(math.ceil((len(order) + ended) / factor), len(order))
    last = min(float(low[position]) for position in order[:kept])
    why = {}
    for position in order[kept:]:
        bound = f"its lower bound {low[position]:+.4f} is not above {last:+.4f}, the lowest that went on"
        outdone = keeping[position] or not any(keeping[one] for one in order[:kept])
        why[position] = bound if outdone else "it does not keep to the limits"
    return why
