"""The evaluation as one plain page: the numbers, what looks wrong, and texts side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

TEXTS = 5
_CLIP = 4000

_ROWS = (
    ("Mean reward", "reward_reference", "reward_aligned", "{:.4f}"),
    ("Mean length (tokens)", "length_reference", "length_aligned", "{:.1f}"),
    ("Cut at max_new_tokens", "truncated_reference", "truncated_aligned", "{:.1%}"),
)


def report_html(
    *, model: str, reference: str, numbers: Mapping[str, float], warnings: Sequence[str], rows: Sequence[Any]
) -> str:
    """A self-contained page.

    Args:
        model: name of the aligned model.
        reference: name of the reference policy.
        numbers: of the evaluation.
        warnings: what looks like a collapse.
        rows: evaluation rows; the texts of the first :data:`TEXTS` are shown.
    """
    title = f"{model} against {reference}"
    body = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p class=warning>{escape(text)}</p>" for text in warnings),
        f"<p>{escape(_verdict(numbers))}</p>",
        _table(numbers, reference, model),
        f"<h2>Texts of {min(TEXTS, len(rows))} held-out prompts</h2>",
        *(_texts(row, reference, model) for row in rows[:TEXTS]),
    ]
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style>\n" + "\n".join(body) + "\n</html>\n"
    )


def _verdict(numbers: Mapping[str, float]) -> str:
    text = (
        f"On {numbers['prompts']:.0f} held-out prompts the mean reward changed by "
        f"{numbers['reward_gain']:+.4f} (95 % interval {numbers['reward_gain_low']:+.4f} to "
        f"{numbers['reward_gain_high']:+.4f}, bootstrap over prompts); the aligned completion wins "
        f"{numbers['win_rate']:.1%} of comparisons, ties half."
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
    ]
    head = f"<tr><th><th>{escape(reference)} (reference)<th>{escape(model)} (aligned)"
    return f"<table>{head}{''.join(lines)}</table>"


def _texts(row: Mapping[str, Any], reference: str, model: str) -> str:
    messages = json.loads(row["messages"])
    prompt = "\n".join(f"{m['role']}: {_text(m)}" for m in messages)
    sides = "".join(
        f"<td><b>{escape(name)}</b> {_facts(row[side][0])}<pre>{_written(row[side][0])}</pre>"
        for name, side in ((reference, "reference"), (model, "aligned"))
    )
    return (
        f"<section><pre>{escape(_clip(prompt))}</pre><table class=texts><tr>{sides}</table>"
        f"<p>Difference of the mean rewards of this prompt: {row['reward_difference']:+.4f}</p></section>"
    )


def _facts(completion: Mapping[str, Any]) -> str:
    return (
        f"reward {completion['reward']:.4f}, {completion['num_tokens']} tokens, {completion['finish_reason']}"
    )


def _written(completion: Mapping[str, Any]) -> str:
    return escape(_clip("\n".join(_text(m) for m in json.loads(completion["messages"])))) or "<i>empty</i>"


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    rest = {k: v for k, v in message.items() if k not in ("role", "content") and v}
    plain = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return plain + (f"\n{json.dumps(rest, ensure_ascii=False)}" if rest else "")


def _clip(text: str) -> str:
    return text if len(text) <= _CLIP else f"{text[:_CLIP]}… ({len(text)} characters)"


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;
color:#1c2330;background:#fff}
h2{margin:1.6rem 0 .3rem;font-size:1.1rem}table{border-collapse:collapse}
td,th{border-top:1px solid #dde1e8;padding:.2rem .8rem;text-align:left;vertical-align:top}
table.texts{width:100%;table-layout:fixed}section{border-top:2px solid #8a93a5;margin-top:1rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85em;margin:.4rem 0}
.warning{background:#fff3d6;border-left:4px solid #d79b00;padding:.4rem .8rem}
"""
