"""The variants of a sweep, or rounds, on one page: which was chosen by what rule, the front, every number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from kubealign_components.choose.config import ChooseConfig
from kubealign_components.choose.variants import ROUND, EndedVariant, Variant, letter, setting_text
from kubealign_components.data.choice_rows import ChoiceRow
from kubealign_components.reports.charts import Spot, front
from kubealign_components.reports.html import render

FEW = 30
"""Held-out prompts below which a reader is told that there are few."""


def report_html(
    rows: Sequence[ChoiceRow],
    variants: Sequence[Variant],
    config: ChooseConfig,
    *,
    among: int = 0,
    ended: Sequence[EndedVariant] = (),
) -> str:
    """A self-contained page.

    Args:
        rows: one a variant, then those that were dropped before.
        variants: the former.
        config: by which one was chosen.
        among: variants that there were before some were dropped; 0 where none were.
        ended: those that ended early.
    """
    every, rows = rows, rows[: len(variants)]
    chosen = next((row for row in rows if row["chosen"]), None)
    names = [] if config.rounds else list(json.loads(rows[0]["settings"]))
    prompts, kind = len(variants[0].gains), config.kind
    marks = [
        one.name.removeprefix(f"{ROUND} ") if config.rounds else letter(i) for i, one in enumerate(variants)
    ]
    return render(
        "kubealign_components/choose/report.html",
        kind=kind,
        count=len(rows),
        chosen=chosen,
        among=config.rounds if config.rounds > len(rows) else among,
        rung=rows[0]["rung"] if config.reduction_factor or (among and not config.rounds) else 0,
        verdict=_further(rows, prompts) if config.reduction_factor else _verdict(chosen, prompts, kind),
        rule=_rule(config),
        notes=[*_notes(rows, chosen, prompts, kind), *_lost(variants, marks, kind)],
        charts=list(_charts(rows, marks)),
        head=[kind, *_spaced(names), *_head(chosen)],
        numbers=[_cells(mark, row, names, chosen) for mark, row in zip(marks, rows, strict=True)],
        numeric=list(range(1 + len(names), 1 + len(names) + len(_head(chosen)))),
        dropped=[_fate(row, names) for row in every if row["dropped"] is not None],
        fates=["variant", *_spaced(names), "rung", "share of its steps", "gain in reward", "why"],
        stopped=ended[0].reason if ended and config.rounds else "",
        ended=[] if config.rounds else [[one.name, one.reason] for one in ended],
        models=[
            (row["variant"] if config.rounds else f"{mark}: {row['variant']}", row["model"])
            for mark, row in zip(marks, rows, strict=True)
        ],
    )


def ended_html(ended: Sequence[EndedVariant], config: ChooseConfig) -> str:
    """The page where all ended early: what became of each."""
    return render(
        "kubealign_components/choose/ended.html",
        kind=config.kind,
        ended=[[one.name, one.reason] for one in ended],
    )


def _verdict(chosen: ChoiceRow | None, prompts: int, kind: str) -> str:
    if chosen is None:
        return f"No {kind} keeps to the limits, so none is chosen."
    text = (
        f"Chosen is {chosen['variant']}: on {prompts} held-out prompts its mean reward changed by "
        f"{chosen['gain']:+.4f}, {chosen['gain_low']:+.4f} to {chosen['gain_high']:+.4f}"
    )
    if chosen["kl"] is not None:
        text += f", at a KL of {chosen['kl']:.2f} nats a completion"
    return f"{text} and a mean length of {chosen['length']:.1f} tokens."


def _further(rows: Sequence[ChoiceRow], prompts: int) -> str:
    """Who of a rung is trained further."""
    kept = [row["variant"] for row in rows if row["dropped"] is None]
    return (
        f"{len(kept)} of {len(rows)} variants are trained further, after {rows[0]['share']:.1%} of their "
        f"steps and by their rewards on {prompts} held-out prompts: {'; '.join(kept)}."
    )


def _fate(row: ChoiceRow, names: Sequence[str]) -> list[str]:
    """The cells of a variant that was dropped."""
    settings = json.loads(row["settings"])
    gain = _between(row["gain"], row["gain_low"], row["gain_high"], "+.4f")
    own = [setting_text(settings[name]) for name in names]
    return [row["variant"], *own, str(row["rung"]), f"{row['share']:.1%}", gain, str(row["dropped"])]


def _spaced(names: Sequence[str]) -> list[str]:
    return [name.replace("_", " ") for name in names]


def _rule(config: ChooseConfig) -> str:
    limits = [
        f"a KL of at most {config.max_kl:g} nats a completion" if config.max_kl is not None else "",
        f"at most {config.max_length_ratio:g} times the reference's length"
        if config.max_length_ratio is not None
        else "",
    ]
    among = " and ".join(filter(None, limits))
    among += f" by the upper end of its 95 % interval, for all {config.kind}s at once" if among else ""
    if config.reduction_factor:
        first = f"variants with {among} before others and then " if among else ""
        return (
            f"The rule: one in {config.reduction_factor} is trained further, {first}by the lower bound of "
            "the gain; of equal ones, the nearest to the reference."
        )
    limited = f", among {config.kind}s with {among}" if among else ""
    rule = f"the highest lower bound of the gain{limited}; of equal ones, the nearest to the reference"
    return f"The rule: {rule}."


def _notes(rows: Sequence[ChoiceRow], chosen: ChoiceRow | None, prompts: int, kind: str) -> Iterator[str]:
    if chosen is not None and chosen["gain_low"] <= 0:
        yield (
            f"No {kind} is shown to be better than the reference: the chosen one's interval holds 0. More "
            "held-out prompts would make the intervals shorter."
        )
    equal = [row["variant"] for row in rows if row["behind_low"] <= 0 and not row["chosen"]]
    if chosen is not None and equal:
        yield (
            f"{len(equal)} of the {len(rows) - 1} others cannot be told from the chosen one on these "
            f"prompts: {'; '.join(equal)}. Where they are cheaper in KL or length, take one of them."
        )
    if prompts < FEW:
        yield f"{prompts} held-out prompts are few for {len(rows)} {kind}s: bounds on so few are wide."


def _lost(variants: Sequence[Variant], marks: Sequence[str], kind: str) -> Iterator[str]:
    """Which variants have no answers to prompts that others have answers to."""
    lost = [(mark, variant) for mark, variant in zip(marks, variants, strict=True) if variant.lost]
    if lost:
        names = "; ".join(f"{name} ({variant.name}) lacks {variant.lost}" for name, variant in lost)
        left_out = variants[0].prompts + variants[0].lost - len(variants[0].gains)
        yield f"{left_out} held-out prompts are not compared, as not every {kind} has them: {names}."


def _head(chosen: ChoiceRow | None) -> list[str]:
    """Headings of the numbers."""
    behind = ["behind the chosen one"] if chosen is not None else []
    return ["gain in reward", "KL, nats a completion", "tokens a completion", *behind]


def _cells(name: str, row: ChoiceRow, names: Sequence[str], chosen: ChoiceRow | None) -> list[str]:
    settings = json.loads(row["settings"])
    words = [name, *(["chosen"] if row["chosen"] else []), *(["front"] if row["on_front"] else [])]
    kl = "" if row["kl"] is None else _between(row["kl"], row["kl_low"], row["kl_high"], ".3f")
    numbers = [
        _between(row["gain"], row["gain_low"], row["gain_high"], "+.4f"),
        kl,
        _between(row["length"], row["length_low"], row["length_high"], ".1f"),
    ]
    if chosen is not None:
        behind = _between(row["behind"], row["behind_low"], row["behind_high"], "+.4f")
        numbers.append("" if row["chosen"] else behind)
    return [", ".join(words), *(setting_text(settings[name]) for name in names), *numbers]


def _between(mean: float, low: float | None, high: float | None, form: str) -> str:
    ends = "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"
    return f"{mean:{form}}{ends}"


def _charts(rows: Sequence[ChoiceRow], marks: Sequence[str]) -> Iterator[Markup]:
    gains = [(row["gain"], row["gain_low"], row["gain_high"]) for row in rows]
    kinds = [(mark, row["on_front"], row["chosen"]) for mark, row in zip(marks, rows, strict=True)]
    lengths = [(row["length"], row["length_low"], row["length_high"]) for row in rows]
    kls = [(row["kl"], row["kl_low"], row["kl_high"]) for row in rows]
    estimated = [
        (kl, low, high) for kl, low, high in kls if kl is not None and low is not None and high is not None
    ]
    if len(estimated) == len(rows):
        yield _front("Gain in reward against KL", estimated, gains, kinds, "KL, nats a completion")
    yield _front("Gain in reward against length", lengths, gains, kinds, "tokens a completion")


def _front(
    title: str,
    costs: Sequence[tuple[float, float, float]],
    gains: Sequence[tuple[float, float, float]],
    kinds: Sequence[tuple[str, bool, bool]],
    x: str,
) -> Markup:
    spots = [
        Spot(name=name, x=cost, y=gain, on_front=good, chosen=chosen)
        for cost, gain, (name, good, chosen) in zip(costs, gains, kinds, strict=True)
    ]
    return front(title, spots, x=x, y="gain in reward")
