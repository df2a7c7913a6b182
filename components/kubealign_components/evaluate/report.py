"""The evaluation as one page: the numbers, what looks wrong, and texts side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

import numpy as np
from markupsafe import Markup

from kubealign_components.data.bootstrap import ONE_PROMPT
from kubealign_components.data.schemas import Completion, EvaluationRow
from kubealign_components.engines.rewards import RewardWords
from kubealign_components.evaluate.by_source import SourceGain
from kubealign_components.evaluate.controlled import OfPrompt, interval_of
from kubealign_components.evaluate.judged import WinRates
from kubealign_components.evaluate.second_reward import SETTING, SecondRewards
from kubealign_components.evaluate.surface import SURFACES
from kubealign_components.reports.charts import scatter
from kubealign_components.reports.html import fitting, messages_text, render
from kubealign_components.reports.rounds import COLUMNS
from kubealign_components.reports.sides import length_change, sides_charts

TEXTS = 60
"""Most prompts whose texts are shown."""
_SPACED_MARK = re.compile(r" ([.,:;!?…)])")
"""Words of a stock phrase are kept apart, marks as well, which people write without the space."""

_ROWS = (
    ("Mean reward", "reward_reference", "reward_aligned", "{:.4f}"),
    ("Mean held-out reward", f"{SETTING}_reference", f"{SETTING}_aligned", "{:.4f}"),
    ("Mean length (tokens)", "length_reference", "length_aligned", "{:.1f}"),
    ("Cut at max_new_tokens", "truncated_reference", "truncated_aligned", "{:.1%}"),
    ("Said before in the same completion", "repetition_reference", "repetition_aligned", "{:.1%}"),
    ("Distinct-1 (over equally many tokens)", "distinct_1_reference", "distinct_1_aligned", "{:.3f}"),
    ("Distinct-2 (over equally many tokens)", "distinct_2_reference", "distinct_2_aligned", "{:.3f}"),
    ("Items, headings, bold words and other marks", "format_reference", "format_aligned", "{:.2f}"),
    ("With a stock phrase", "phrases_reference", "phrases_aligned", "{:.1%}"),
    ("Same answer to another prompt", "same_answer_reference", "same_answer_aligned", "{:.1%}"),
)


class _Shown(TypedDict):
    """The texts of a prompt."""

    prompt: str
    sides: list[tuple[str, str, str]]
    """Name, facts and text of either model."""
    note: str
    difference: float | None
    length: float


def report_html(
    *,
    model: str,
    reference: str,
    reward: Sequence[RewardWords] = (),
    numbers: Mapping[str, float],
    verdict: WinRates | None,
    warnings: Sequence[str],
    rows: Sequence[EvaluationRow],
    phrases: Sequence[str] = (),
    seconds: Sequence[SecondRewards] = (),
    sources: Sequence[SourceGain] = (),
    held_out: Sequence[RewardWords] = (),
    rounds: Sequence[Sequence[str]] = (),
) -> str:
    """A self-contained page.

    Args:
        model: name of the aligned model.
        reference: name of the reference policy.
        reward: what is rewarded, in words.
        numbers: of the evaluation.
        verdict: of the judge, if there is one.
        warnings: what looks like a collapse.
        rows: evaluation rows; the texts of :data:`TEXTS`, spread over all differences, are shown.
        phrases: that have become a habit of the aligned model.
        seconds: what the held-out reward gives, if there is one.
        sources: of the prompts, where there are several.
        held_out: what the held-out reward rewards, in words.
        rounds: lines of all rounds so far, where there are several.
    """
    rates = verdict.by_principle.items() if verdict else ()
    silent = [(name, rate) for name, rate in rates if rate.says_nothing]
    telling = [pair for pair in rates if pair not in silent]
    return render(
        "kubealign_components/evaluate/report.html",
        model=model,
        reference=reference,
        reward=reward,
        verdict=_verdict(numbers, rows),
        warnings=warnings,
        numbers=[
            [name, form.format(numbers[left]), form.format(numbers[right])]
            for name, left, right, form in _ROWS
            if left in numbers
        ],
        charts=[*sides_charts(rows), *_both_rewards(seconds)],
        parts_of_gain=list(_parts_of_gain(numbers)),
        equal_length=_at_equal_length(numbers),
        phrases=[_SPACED_MARK.sub(r"\1", phrase) for phrase in phrases],
        held_out=held_out,
        confirmed=_confirmed(numbers),
        sources=[source.cells() for source in sources] if len(sources) > 1 else [],
        rounds=rounds,
        round_columns=COLUMNS,
        judge=verdict,
        one_prompt=ONE_PROMPT,
        judged=[("All principles", verdict.overall), *telling, *silent] if verdict else [],
        telling=1 + len(telling),
        prompts=len(rows),
        rewarded="reward_gain" in numbers,
        texts=fitting(
            (_texts(row, (reference, model)) for row in _spread(rows)),
            lambda shown: [shown["prompt"], *(text for _, _, text in shown["sides"])],
        ),
    )


def _spread(rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """At most :data:`TEXTS` rows, in their order: spread evenly over all differences, ends included."""
    if len(rows) <= TEXTS:
        return list(rows)
    order = sorted(range(len(rows)), key=lambda i: rows[i]["reward_difference"] or 0.0)
    kept = np.linspace(0, len(rows) - 1, TEXTS).round().astype(int)
    return [rows[i] for i in sorted({order[rank] for rank in kept})]


def _verdict(numbers: Mapping[str, float], rows: Sequence[EvaluationRow]) -> str:
    text = f"On {numbers['prompts']:.0f} held-out prompts "
    if "reward_gain" in numbers:
        text += (
            f"the mean reward changed by {numbers['reward_gain']:+.4f} (95 % interval "
            f"{numbers['reward_gain_low']:+.4f} to {numbers['reward_gain_high']:+.4f}, bootstrap over "
            f"prompts); the aligned completion wins {numbers['win_rate']:.1%} of comparisons, ties half. "
            f"{_tally(rows)}"
        )
    else:
        text += f"the mean length went to {numbers['length_ratio']:.2f} times that of the reference."
    if "preference_accuracy" in numbers:
        sure = (
            f"95 % interval {interval_of(numbers, 'preference_accuracy', '.1%')}"
            if "preference_accuracy_low" in numbers
            else ONE_PROMPT
        )
        text += (
            f" Of {numbers['preference_pairs']:.0f} pairs that people labelled, the policy moved towards the "
            f"chosen completion in {numbers['preference_accuracy']:.1%} ({sure}; 50 % is what no training "
            "gives)."
        )
    if "kl_per_completion" in numbers:
        spread = f" ± {numbers['kl_standard_error']:.2f}" if "kl_standard_error" in numbers else ""
        text += (
            f" KL(aligned || reference) is {numbers['kl_per_completion']:.2f}{spread} nats a completion, "
            f"{numbers['kl_per_token']:.4f} a token."
        )
    return text


def _parts_of_gain(numbers: Mapping[str, float]) -> Iterator[list[str]]:
    """What goes with the gain: name, part, interval and share of it."""
    for surface in SURFACES:
        name = f"gain_by_{surface.name}"
        if name in numbers:
            gained = numbers["reward_gain_low"] > 0
            share = f"{round(numbers[name] / numbers['reward_gain'], 2) + 0:.0%}" if gained else ""
            yield [surface.of.capitalize(), f"{numbers[name]:+.4f}", interval_of(numbers, name), share]


def _at_equal_length(numbers: Mapping[str, float]) -> str:
    """What is left at equal length, in words; nothing where that is not known."""
    beyond, rate = "gain_beyond_length", "win_rate_length_controlled"
    if beyond not in numbers or rate not in numbers:
        return ""
    return (
        f"At equal length the mean reward changes by {numbers[beyond]:+.4f} (95 % interval "
        f"{interval_of(numbers, beyond)}), and the aligned completion wins {numbers[rate]:.1%} of the "
        f"comparisons ({interval_of(numbers, rate, '.1%')}). A token more goes with "
        f"{numbers['length_slope']:+.3g} of reward among the answers to one prompt "
        f"({interval_of(numbers, 'length_slope', '+.3g')})."
    )


def _confirmed(numbers: Mapping[str, float]) -> str:
    """What the held-out reward says, in words; nothing without one."""
    gain, agreement = f"{SETTING}_gain", f"{SETTING}_agreement"
    if gain not in numbers:
        return ""
    text = f"It changed by {numbers[gain]:+.4f} (95 % interval {interval_of(numbers, gain)})."
    if agreement in numbers:
        text += (
            f" Both rewards decide {numbers[agreement]:.1%} of the comparisons of an aligned with a "
            f"reference completion alike (95 % interval {interval_of(numbers, agreement, '.1%')}; 50 % is "
            "what unrelated rewards give)."
        )
    return text


def _both_rewards(rewards: Sequence[SecondRewards]) -> Iterator[Markup]:
    points = [(_difference(r.first), _difference(r.second)) for r in rewards if r.first is not None]
    if points:
        yield scatter(
            "Do both rewards agree?",
            points,
            x="reward difference",
            y="held-out reward difference",
            slope=True,
        )


def _difference(rewards: OfPrompt) -> float:
    return float(rewards.aligned.mean() - rewards.reference.mean())


def _tally(rows: Sequence[EvaluationRow]) -> str:
    signs = [np.sign(row["reward_difference"] or 0.0) for row in rows]
    rose, fell, stayed = (signs.count(sign) for sign in (1, -1, 0))
    return f"The mean rose on {rose} prompts, fell on {fell} and stayed on {stayed}."


def _texts(row: EvaluationRow, names: tuple[str, str]) -> _Shown:
    difference = row["reward_difference"]
    sides = [
        (name, _facts(first), messages_text(first["messages"], roles=False))
        for name, (first, *_) in zip(names, (row["reference"], row["aligned"]))
    ]
    note = "" if difference is None else f"Difference of the mean rewards of this prompt: {difference:+.4f}"
    return {
        "prompt": messages_text(row["messages"]),
        "sides": sides,
        "note": note,
        "difference": difference,
        "length": length_change(row),
    }


def _facts(completion: Completion) -> str:
    reward = "" if completion["reward"] is None else f"reward {completion['reward']:.4f}, "
    return f"{reward}{completion['num_tokens']} tokens, {completion['finish_reason']}"
