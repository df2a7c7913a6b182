"""What the judge said and what became of it, as one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from kubealign_components.data.opinions import CHANCE, Opinions, Survey, overall
from kubealign_components.data.stats import Stats
from kubealign_components.json_types import JsonObject
from kubealign_components.reports.charts import histogram
from kubealign_components.reports.html import render
from kubealign_components.reports.judgements import agreement_rows, by_consistency


def report_html(*, slug: str, survey: Survey, made: JsonObject, stats: Stats) -> str:
    """A self-contained page.

    Args:
        slug: of the dataset.
        survey: what the judge's opinions are worth.
        made: what the manifest says of the principles that were drawn from.
        stats: of the stage.
    """
    drawn = [one["name"] for one in made["principles"]]
    opinions, names = survey.opinions, _order(survey.opinions, drawn)
    rate = overall(opinions, drawn)
    return render(
        "kubealign_components/aggregate/report.html",
        slug=slug,
        judged=sum(one.count for one in opinions.values()),
        rate=rate,
        chance=rate <= CHANCE,
        stats=stats,
        opinions=[(name, opinions[name], _scores(name, opinions[name])) for name in names],
        agreement=agreement_rows(survey, names),
        telling=sum(one.consistency > CHANCE for one in opinions.values()),
        drawn=drawn,
        principles=made["principles"],
        draws={str(k + 1): n for k, n in enumerate(made["principles_per_draw"])},
        dropped=dict(sorted(stats.dropped.items())),
    )


def _order(opinions: Mapping[str, Opinions], drawn: Sequence[str]) -> list[str]:
    """The most consistent first; of equals those that are drawn from."""
    return by_consistency({name: opinions[name] for name in (*drawn, *opinions) if name in opinions})


def _scores(name: str, one: Opinions) -> Markup:
    counts, low, high = one.histogram()
    return histogram(f"Scores under {name}", {"judgements": counts}, low, high, x="nats")
