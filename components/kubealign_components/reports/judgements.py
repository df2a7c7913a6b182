"""The page of what a judge said: whether its two orders agree, how sure it is, and whether it is the position
that it likes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.opinions import CHANCE, Opinions, Survey, overall, survey, symmetrical
from kubealign_components.data.schemas import JudgementRow
from kubealign_components.reports.charts import POINTS, histogram, scatter
from kubealign_components.reports.html import fitting, messages_text, render
from kubealign_components.reports.rows import EXAMPLES, Side, dropped_texts, licence_facts, side_of
from kubealign_components.reports.samples import spread_rows

Example = tuple[str, list[Side], list[list[str]]]
"""Prompt, both completions, and what the judge said of them."""


def judgements_page(dataset: Dataset) -> str:
    """A self-contained page about ``dataset`` (``kubealign.judged/v1``).

    Args:
        dataset: judged prompts.
    """
    manifest, judged = dataset.manifest, survey(dataset)
    stats, names = manifest.stats, by_consistency(judged.opinions)
    return render(
        "kubealign_components/reports/judgements.html",
        manifest=manifest,
        judged=sum(one.count for one in judged.opinions.values()),
        pairs=judged.pairs,
        rate=overall(judged.opinions, names),
        chance=overall(judged.opinions, names) <= CHANCE,
        charts=list(_charts(judged.opinions.values())),
        principles=[(name, judged.opinions[name]) for name in names],
        telling=sum(judged.opinions[name].consistency > CHANCE for name in names),
        agreement=agreement_rows(judged, names),
        facts=[
            *licence_facts(manifest),
            *((n.replace("_", " "), str(v)) for n, v in stats["counts"].items()),
        ],
        dropped=sorted(stats["dropped"].items(), key=lambda pair: -pair[1]),
        dropped_texts=fitting(dropped_texts(manifest.extra), lambda shown: [shown[2]]),
        examples=fitting(_examples(dataset), lambda shown: [shown[0], *(str(one[2]) for one in shown[1])]),
    )


def by_consistency(opinions: Mapping[str, Opinions]) -> list[str]:
    """The principles, the most consistent first; equals as they stand."""
    return sorted(opinions, key=lambda name: opinions[name].consistency, reverse=True)


def agreement_rows(judged: Survey, names: Sequence[str]) -> list[list[str]]:
    """A row a principle: its number and name, then on which share of pairs it prefers what each of the others
    does, in the same order; nothing of a single principle."""
    if len(names) < 2:
        return []
    return [
        [
            f"{number} {one}",
            *("" if one == other else _percent(judged.agreement(one, other)) for other in names),
        ]
        for number, one in enumerate(names, 1)
    ]


def _percent(share: float) -> str:
    return "none" if np.isnan(share) else f"{share:.0%}"


def _charts(opinions: Iterable[Opinions]) -> Iterator[Markup]:
    """Scores, the liking for a position, and one order against the other, over all principles."""
    each = list(opinions)
    if not any(one.count for one in each):
        return
    scores, positions = (
        np.concatenate([getattr(one, name) for one in each]) for name in ("scores", "positions")
    )
    for title, values, unit in (
        ("Debiased scores", scores, "nats for the first completion"),
        ("Liking for a position", positions, "nats for what is shown first"),
    ):
        counts, low, high = symmetrical(values)
        yield histogram(title, {"judgements": counts}, low, high, x=unit)
    orders = np.concatenate([one.orders for one in each], axis=1)
    shown = orders[:, :: max(1, orders.shape[1] // POINTS)]
    points = [(float(x), float(y)) for x, y in shown.T]
    yield scatter(
        "One order against the other",
        points,
        x="nats for the first completion, shown first",
        y="the same, shown second",
        slope=True,
    )


def _examples(dataset: Dataset) -> Iterator[Example]:
    """Prompts that lie evenly over the shards, each with its first judged pair."""
    for row in spread_rows(dataset, ["messages", "completions", "judgements"], EXAMPLES):
        judgements: list[JudgementRow] = row["judgements"] or []
        if judgements:
            first, second = (judgements[0][name] for name in ("first", "second"))
            of_pair = [one for one in judgements if (one["first"], one["second"]) == (first, second)]
            sides = [side_of(f"completion {i + 1}", row["completions"][i]) for i in (first, second)]
            yield messages_text(row["messages"]), sides, [_said(one, first, second) for one in of_pair]


def _said(one: JudgementRow, first: int, second: int) -> list[str]:
    """Principle, the preferred completion, the score, and both orders."""
    preferred = (first if one["score"] > 0 else second) + 1
    return [
        one["principle"],
        f"completion {preferred}" if one["consistent"] else "depends on the order",
        f"{one['score']:+.2f}",
        f"{one['s12']:+.2f}",
        f"{one['s21']:+.2f}",
    ]
