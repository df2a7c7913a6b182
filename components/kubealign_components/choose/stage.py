"""choose: set the variants of a sweep beside each other and choose one.

Chosen is the highest lower bound of the gain in reward, among the variants that keep to the limits. The
bounds hold for all variants at once, so they hold for the one that was chosen for its bound, too; so do the
upper ends by which limits are kept. At a rung of successive halving those are chosen that are trained further
(``halving.py``); then the bounds hold for those that were dropped before as well, had they gone on.

Rounds of alignment are chosen among in the same way, by bounds that hold for as many as there were to be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from kubealign_components.choose.config import ChooseConfig
from kubealign_components.choose.halving import EarlierRungs, order_of, reasons
from kubealign_components.choose.report import ended_html, report_html
from kubealign_components.choose.variants import Variant, ended_variants, variants_of
from kubealign_components.config import semantic_params
from kubealign_components.data.bounds import Floats, on_front, pairwise_intervals, simultaneous_intervals
from kubealign_components.data.choice_rows import CHOICE, ChoiceRow
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import Provenance, canonical_json, derive
from kubealign_components.data.finished import once, output_request
from kubealign_components.data.stats import Stats
from kubealign_components.errors import GateError
from kubealign_components.reports.html import REPORT, copy_report, write_report
from kubealign_components.store import join

VERSION = 4


def run(
    config: ChooseConfig,
    *,
    evaluations: Sequence[Dataset],
    earlier: Dataset | None = None,
    output: str,
    report: str | None = None,
) -> Stats:
    """Compare the ``evaluations`` of variants; write ``kubealign.choice/v1`` to ``output``, a row a variant.

    Args:
        config: the settings.
        evaluations: ``kubealign.evaluation/v1`` of the variants, with one reward and in any order; of what is
            there twice, such as variants that differ in nothing that matters, one counts. Those that ended
            early are told of, and not chosen.
        earlier: ``kubealign.choice/v1`` of the rung before, of successive halving.
        output: URI of the dataset to make; the report lies beside its rows.
        report: path of a second copy of the report, for the Kubeflow UI.

    Raises:
        ConfigError: an evaluation without a reward, or by another one.
        DataError: fewer than two held-out prompts are in all of them.
        GateError: no variant keeps to the limits, or the chosen one's gain is below ``min_gain``; output and
            report are written before. Or all ended early; the report is.
    """
    apart = {one.manifest.fingerprint: one for one in evaluations}
    # Those who collect them promise no order.
    ordered = [apart[fingerprint] for fingerprint in sorted(apart)]
    provenance = _provenance(config, ordered, earlier)
    request = output_request(config, provenance, output, REPORT)
    before = EarlierRungs.of(earlier)
    if all(one.ended_early for one in ordered):
        _fail_without_any(ordered, config, before, output, report)
    stats = once(request, lambda: _make(config, ordered, before, len(evaluations), provenance, output))
    copy_report(output, report)
    if not config.reduction_factor:
        _check_gates(config, stats, output)
    return stats


def _fail_without_any(
    evaluations: Sequence[Dataset],
    config: ChooseConfig,
    before: EarlierRungs,
    output: str,
    report: str | None,
) -> NoReturn:
    """Write the page alone, and fail with what became of all: there is nothing to choose from."""
    early = ended_variants(evaluations, [], rounds=config.rounds > 0)
    write_report(ended_html([*before.ended, *early], config), output)
    copy_report(output, report)
    reasons = "; ".join(f"{one.name}: {one.reason}" for one in early)
    where = f"all are in {join(output, REPORT)}"
    raise GateError(f"no {config.kind} of {len(evaluations)} came to its end: {reasons}; {where}")


def survivors(choice: Dataset) -> list[str]:
    """Fingerprints of the evaluations of those variants of a rung that are trained further."""
    return [row["evaluation"] for row in choice.iter_rows(of=ChoiceRow) if row["dropped"] is None]


def _provenance(config: ChooseConfig, evaluations: Sequence[Dataset], earlier: Dataset | None) -> Provenance:
    inputs = {f"evaluation_{number}": one for number, one in enumerate(evaluations, start=1)}
    inputs |= {} if earlier is None else {"earlier": earlier}
    # Each round may have stayed near another policy.
    settled = ("reference",)
    return derive("choose", VERSION, semantic_params(config), inputs=inputs, settled=settled, slug=["choice"])


def _make(
    config: ChooseConfig,
    evaluations: Sequence[Dataset],
    before: EarlierRungs,
    given: int,
    provenance: Provenance,
    output: str,
) -> Stats:
    sound = [one for one in evaluations if not one.ended_early]
    ended = [one for one in evaluations if one.ended_early]
    early = ended_variants(ended, sound, rounds=config.rounds > 0)
    variants = variants_of(sound, before.names, rounds=config.rounds > 0)
    among = max(before.among, config.rounds)
    compared = compare(variants, config, among=among, ended=len(early))
    own = [_row(compared, position, config, before.number + 1) for position in range(len(variants))]
    rows = [*own, *before.dropped]
    stats = Stats(rows_in=given + len(before.dropped))
    stats.drop("ended_early", len(ended))
    stats.drop("same_as_another", given - len(ended) - len(variants))
    stats.numbers.update(_numbers(compared))
    with DatasetWriter(output, CHOICE, provenance) as writer:
        writer.write_rows(rows)
        stats.rows_out = writer.rows
        writer.commit(stats, before.then(variants, early))
    early = [*before.ended, *early]
    write_report(report_html(rows, variants, config, among=among, ended=early), output)
    return stats


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Variants, and what can be said of all of them together."""

    variants: Sequence[Variant]
    low: Floats
    """Lower ends of the gains, for all variants at once, shape (variants,)."""
    high: Floats
    pairs: tuple[Floats, Floats]
    """Ends of the differences of any two rewards, for all pairs at once, shape (variants, variants)."""
    front: Sequence[bool]
    chosen: int | None
    """Position of the chosen one; None where none keeps to the limits, or others are to come of them."""
    leading: int
    """Position of the one that the others are behind."""
    dropped: Mapping[int, str] = field(default_factory=dict)
    """Why each of those is dropped that are not trained further, by position."""


def compare(variants: Sequence[Variant], config: ChooseConfig, *, among: int = 0, ended: int = 0) -> Compared:
    """What can be said of ``variants`` together, and which of them is chosen, or trained further.

    Args:
        variants: those that there are.
        config: the settings.
        among: how many they were picked from, where others were dropped before.
        ended: how many others ended early, which count among those that are dropped.
    """
    low, high = simultaneous_intervals(
        np.array([one.gains for one in variants]), seed=config.seed, among=among
    )
    costs = np.array(
        [[-one.gains.mean(), math.nan if one.kl is None else one.kl, one.length] for one in variants]
    )
    costs = costs[:, ~np.isnan(costs).any(axis=0)]
    keeping = _keeping(variants, config, among)
    order, factor = order_of(variants, low, keeping), config.reduction_factor
    able = not factor and keeping[order[0]]
    return Compared(
        variants=variants,
        low=low,
        high=high,
        pairs=pairwise_intervals(np.array([one.rewards for one in variants]), seed=config.seed, among=among),
        front=[bool(one) for one in on_front(costs)],
        chosen=order[0] if able else None,
        leading=order[0],
        dropped=reasons(order, low, keeping, factor, ended=ended) if factor else {},
    )


def _keeping(variants: Sequence[Variant], config: ChooseConfig, among: int) -> list[bool]:
    """Which may be chosen: those of which the upper end of KL and of length keeps to the limit, so that none
    passes for a lucky estimate; a KL of which that end is not known keeps to no limit."""
    keeping = np.ones(len(variants), dtype=np.bool_)
    if config.max_kl is not None:
        highest = [one.kl_at_most(among=max(among, len(variants))) for one in variants]
        keeping &= np.array(highest) <= config.max_kl
    if config.max_length_ratio is not None:
        over = [one.lengths - config.max_length_ratio * one.reference_lengths for one in variants]
        keeping &= simultaneous_intervals(np.array(over), seed=config.seed, among=among)[1] <= 0
    return keeping.tolist()


def _row(compared: Compared, position: int, config: ChooseConfig, rung: int) -> ChoiceRow:
    variant, chosen = compared.variants[position], compared.chosen
    first = position if chosen is None and not config.reduction_factor else compared.leading
    kl_low, kl_high = variant.kl_interval or (None, None)
    length_low, length_high = variant.length_interval(config.seed)
    low, high = compared.pairs
    return {
        "variant": variant.name,
        "settings": canonical_json(variant.settings),
        "evaluation": variant.evaluation.manifest.fingerprint,
        "model": variant.model.get("uri", ""),
        "model_fingerprint": variant.model.get("fingerprint"),
        "gain": float(variant.gains.mean()),
        "gain_low": float(compared.low[position]),
        "gain_high": float(compared.high[position]),
        "kl": variant.kl,
        "kl_low": kl_low,
        "kl_high": kl_high,
        "length": variant.length,
        "length_low": length_low,
        "length_high": length_high,
        "behind": float(compared.variants[first].rewards.mean() - variant.rewards.mean()),
        "behind_low": float(low[first, position]),
        "behind_high": float(high[first, position]),
        "on_front": compared.front[position],
        "chosen": position == chosen,
        "rung": rung,
        "share": variant.share,
        "dropped": compared.dropped.get(position),
    }


def _numbers(compared: Compared) -> dict[str, float]:
    """The numbers of the whole, and those of the chosen one's evaluation."""
    prompts = len(compared.variants[0].gains)
    numbers = {
        "variants": float(len(compared.variants)),
        "on_front": float(sum(compared.front)),
        **({"dropped": float(len(compared.dropped))} if compared.dropped else {}),
        "compared_prompts": float(prompts),
        "prompts_not_compared": float(compared.variants[0].prompts + compared.variants[0].lost - prompts),
    }
    if compared.chosen is None:
        return numbers
    chosen = compared.variants[compared.chosen]
    bounds = {
        "gain": float(chosen.gains.mean()),
        "gain_low": float(compared.low[compared.chosen]),
        "gain_high": float(compared.high[compared.chosen]),
    }
    return numbers | {f"chosen_{name}": value for name, value in bounds.items()}


def _check_gates(config: ChooseConfig, stats: Stats, output: str) -> None:
    where = f"what all have is in {join(output, REPORT)}"
    if "chosen_gain" not in stats.numbers:
        raise GateError(
            f"no {config.kind} keeps to max_kl={config.max_kl} and "
            f"max_length_ratio={config.max_length_ratio} with the upper end of its interval; {where}"
        )
    low = stats.numbers["chosen_gain_low"]
    if config.min_gain is not None and low < config.min_gain:
        raise GateError(
            f"the chosen {config.kind}'s mean reward changed by {stats.numbers['chosen_gain']:+.4f}, at "
            f"least {low:+.4f} by a bound that holds for all {config.kind}s at once; expected at least "
            f"min_gain={config.min_gain:+.4f}; {where}"
        )
