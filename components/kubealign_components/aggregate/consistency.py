"""What a judge is held to: how often its two orders agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kubealign_components.data.opinions import Opinions, overall
from kubealign_components.errors import GateError


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
