"""What the judge said and what became of it, as one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from kubealign_components.aggregate.consistency import Opinions, overall
from kubealign_components.data.stats import Stats
from kubealign_components.reports.charts import histogram
from kubealign_components.reports.html import render

CHANCE = 0.5
"""The most consistency that a judge without an opinion reaches."""


def report_html(*, slug: str, opinions: Mapping[str, Opinions], made: Mapping[str, Any], stats: Stats) -> str:
    """A self-contained page.

    Args:
        slug: of the dataset.
        opinions: of the judge, by principle.
        made: what the manifest says of the principles that were drawn from.
        stats: of the stage.
    """
    drawn = [one["name"] for one in made["principles"]]
    rate = overall(opinions, drawn)
    return render(
        "kubealign_components/aggregate/report.html",
        slug=slug,
        judged=sum(one.count for one in opinions.values()),
        rate=rate,
        chance=rate <= CHANCE,
        stats=stats,
        opinions=[(name, opinions[name], _scores(name, opinions[name])) for name in _order(opinions, drawn)],
        telling=sum(one.consistency > CHANCE for one in opinions.values()),
        drawn=drawn,
        principles=made["principles"],
        draws={str(k + 1): n for k, n in enumerate(made["principles_per_draw"])},
        dropped=dict(sorted(stats.dropped.items())),
    )


def _order(opinions: Mapping[str, Opinions], drawn: Sequence[str]) -> list[str]:
    """The most consistent first; of equals those that are drawn from."""
    names = [name for name in drawn if name in opinions] + [name for name in opinions if name not in drawn]
    return sorted(names, key=lambda name: opinions[name].consistency, reverse=True)


def _scores(name: str, one: Opinions) -> Markup:
    counts, low, high = one.histogram()
    return histogram(f"Scores under {name}", {"judgements": counts}, low, high, x="nats")
