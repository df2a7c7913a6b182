"""The evaluation as one plain page: the numbers, what looks wrong, and texts side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kubealign_components.evaluate.judged import Verdict
from kubealign_components.reports.html import bar, page, table, warning

TEXTS = 5
_CLIP = 4000

_ROWS = (
    ("Mean reward", "reward_reference", "reward_aligned", "{:.4f}"),
    ("Mean length (tokens)", "length_reference", "length_aligned", "{:.1f}"),
    ("Cut at max_new_tokens", "truncated_reference", "truncated_aligned", "{:.1%}"),
)


def report_html(
    *,
    model: str,
    reference: str,
    numbers: Mapping[str, float],
    verdict: Verdict | None,
    warnings: Sequence[str],
    rows: Sequence[Any],
) -> str:
    """A self-contained page.

    Args:
        model: name of the aligned model.
        reference: name of the reference policy.
        numbers: of the evaluation.
        verdict: of the judge, if there is one.
        warnings: what looks like a collapse.
        rows: evaluation rows; the texts of the first :data:`TEXTS` are shown.
    """
    title = f"{model} against {reference}"
    body = [
        *map(warning, warnings),
        f"<p>{escape(_verdict(numbers))}</p>",
        _table(numbers, reference, model),
        *(_judged(verdict) if verdict else []),
        f"<h2>Texts of {min(TEXTS, len(rows))} held-out prompts</h2>",
        *(_texts(row, reference, model) for row in rows[:TEXTS]),
    ]
    return page(title, body)


def _verdict(numbers: Mapping[str, float]) -> str:
    text = f"On {numbers['prompts']:.0f} held-out prompts "
    if "reward_gain" in numbers:
        text += (
            f"the mean reward changed by {numbers['reward_gain']:+.4f} (95 % interval "
            f"{numbers['reward_gain_low']:+.4f} to {numbers['reward_gain_high']:+.4f}, bootstrap over "
            f"prompts); the aligned completion wins {numbers['win_rate']:.1%} of comparisons, ties half."
        )
    else:
        text += f"the mean length went to {numbers['length_ratio']:.2f} times that of the reference."
    if "preference_accuracy" in numbers:
        text += (
            f" Of {numbers['preference_pairs']:.0f} pairs that people labelled, the policy moved towards the "
            f"chosen completion in {numbers['preference_accuracy']:.1%} (95 % interval "
            f"{numbers['preference_accuracy_low']:.1%} to {numbers['preference_accuracy_high']:.1%}; 50 % is "
            "what no training gives)."
        )
    if "kl_per_completion" in numbers:
        text += (
            f" KL(aligned || reference) is {numbers['kl_per_completion']:.2f} ± "
            f"{numbers['kl_standard_error']:.2f} nats a completion, {numbers['kl_per_token']:.4f} a token."
        )
    return text


def _table(numbers: Mapping[str, float], reference: str, model: str) -> str:
    lines = [
        f"<tr><td>{name}<td>{form.format(numbers[left])}<td>{form.format(numbers[right])}"
        for name, left, right, form in _ROWS
        if left in numbers
    ]
    head = f"<tr><th><th>{escape(reference)} (reference)<th>{escape(model)} (aligned)"
    return f"<table>{head}{''.join(lines)}</table>"


def _judged(verdict: Verdict) -> list[str]:
    rates = {"All principles": verdict.overall, **verdict.by_principle}
    rows = [
        [escape(name), f"{bar(one.rate)} {one.rate:.1%}", f"{one.low:.1%} to {one.high:.1%}"]
        for name, one in rates.items()
    ]
    agree = f"; they agree in {verdict.consistency:.1%}" if verdict.consistency == verdict.consistency else ""
    return [
        "<h2>The judge</h2>",
        f"<p>{escape(verdict.judge)} compared aligned with reference completions of {verdict.prompts} "
        f"prompts, in both orders{agree}. Orders that disagree are a tie, and a tie counts half. Intervals "
        "are bootstrapped over prompts.</p>",
        table(("Principle", "The aligned one wins", "95 % interval"), rows),
    ]


def _texts(row: Mapping[str, Any], reference: str, model: str) -> str:
    messages = json.loads(row["messages"])
    prompt = "\n".join(f"{m['role']}: {_text(m)}" for m in messages)
    sides = "".join(
        f"<td><b>{escape(name)}</b> {_facts(row[side][0])}<pre>{_written(row[side][0])}</pre>"
        for name, side in ((reference, "reference"), (model, "aligned"))
    )
    return (
        f"<section><pre>{escape(_clip(prompt))}</pre><table class=texts><tr>{sides}</table>"
        f"{_difference(row['reward_difference'])}</section>"
    )


def _difference(reward: float | None) -> str:
    return "" if reward is None else f"<p>Difference of the mean rewards of this prompt: {reward:+.4f}</p>"


def _facts(completion: Mapping[str, object]) -> str:
    reward = "" if completion["reward"] is None else f"reward {completion['reward']:.4f}, "
    return f"{reward}{completion['num_tokens']} tokens, {completion['finish_reason']}"


def _written(completion: Mapping[str, Any]) -> str:
    return escape(_clip("\n".join(_text(m) for m in json.loads(completion["messages"])))) or "<i>empty</i>"


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    rest = {k: v for k, v in message.items() if k not in ("role", "content") and v}
    plain = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return plain + (f"\n{json.dumps(rest, ensure_ascii=False)}" if rest else "")


def _clip(text: str) -> str:
    return text if len(text) <= _CLIP else f"{text[:_CLIP]}… ({len(text)} characters)"
