"""What the judge said and what became of it, as one plain page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kubealign_components.aggregate.consistency import Opinions, overall
from kubealign_components.data.stats import Stats
from kubealign_components.reports.html import bar, histogram, page, table, warning

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
    judged = sum(one.count for one in opinions.values())
    body = [
        f"<p>{judged} judgements of {stats.counts['pairs']} pairs of {stats.counts['prompts']} prompts; on "
        f"{rate:.1%} of those under the principles that are drawn from, both orders prefer the same "
        f"completion. {stats.rows_out} labelled pairs were made of {stats.rows_in} draws.</p>"
        if judged
        else warning("There is no judgement, so there is nothing to label."),
        *([warning(_near_chance(rate))] if rate <= CHANCE else []),
        "<h2>Consistency and scores by principle</h2>",
        "<p>Consistent: both orders prefer the same completion. The score is the mean log-odds of both "
        "orders, in nats; a preference for what is shown first cancels in it, and has its own column.</p>",
        _principles(opinions, drawn),
        "<h2>Which principle decided</h2>",
        _dominant(made["principles"]),
        "<h2>Principles in a draw</h2>",
        _counted({str(k + 1): n for k, n in enumerate(made["principles_per_draw"])}, "Principles", "Draws"),
        "<h2>Draws that made no pair</h2>",
        _counted(dict(sorted(stats.dropped.items())), "Reason", "Draws"),
    ]
    return page(f"Judgements of {slug}", body)


def _near_chance(rate: float) -> str:
    return (
        f"The two orders agree on {rate:.1%} of the judgements. A judge without an opinion reaches 50 %, "
        "less if it likes a position: these labels are mostly noise. min_consistency stops such a run."
    )


def _principles(opinions: Mapping[str, Opinions], drawn: Sequence[str]) -> str:
    order = [name for name in drawn if name in opinions]
    order += [name for name in opinions if name not in drawn]
    rows = []
    for name in order:
        one = opinions[name]
        note = "" if name in drawn else " <small>(judged, not drawn from)</small>"
        rows.append(
            [
                escape(name) + note,
                str(one.count),
                f"{bar(one.consistency)} {one.consistency:.1%}",
                f"{one.prefers_first_shown:+.3f}",
                histogram(*one.histogram(), unit="nats"),
            ]
        )
    return table(("Principle", "Judgements", "Consistent", "For what is first", "Debiased scores"), rows)


def _dominant(principles: Sequence[Mapping[str, Any]]) -> str:
    most = max((one["dominant"] for one in principles), default=0) or 1
    rows = [
        [
            escape(one["name"]),
            f"{bar(one['dominant'] / most)} {one['dominant']}",
            f"{one['scale']:.4g}",
        ]
        for one in principles
    ]
    return table(("Principle", "Pairs that it decided", "Scores divided by"), rows)


def _counted(counts: Mapping[str, int], what: str, how_many: str) -> str:
    most = max(counts.values(), default=0) or 1
    rows = [[escape(name), f"{bar(count / most)} {count}"] for name, count in counts.items()]
    return table((what, how_many), rows) if rows else "<p>None.</p>"
