"""The run as one plain page: numbers, curves by step, rollouts, and answers before and after."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import MODEL
from kubealign_components.training.curves import Panel, draw, training_log

_PANELS: tuple[Panel, ...] = (
    ("Score", ("score",), "mean of the rollouts"),
    ("Parts", ("reward_model", "reward_functions", "length_bonus", "stop_penalty"), "what the score sums"),
    ("KL", ("kl",), "nats a completion, to the reference"),
    ("KL penalty", ("kl_penalty",), "coefficient · KL"),
    ("KL coefficient", ("kl_coef",), ""),
    ("Policy loss", ("policy_loss",), "mean over tokens"),
    ("Value loss", ("value_loss",), "mean over tokens"),
    ("Clipped", ("policy_clip_fraction", "value_clip_fraction"), "share of tokens"),
    ("Change in a step", ("approx_kl",), "nats a token"),
    ("Entropy", ("entropy_per_token",), "nats a token"),
    ("Value explained variance", ("value_explained_variance",), ""),
    ("Length", ("completion_tokens",), "tokens"),
    ("Ended by themselves", ("ended",), "share of rollouts"),
    ("Gradient norms", ("policy_grad_norm", "value_grad_norm"), "before clipping"),
    ("Learning rate", ("learning_rate",), ""),
    ("Throughput", ("tokens_per_second",), "tokens/s"),
)
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "svg{width:100%;height:auto}td,th{padding:.1rem 1rem .1rem 0;text-align:left;vertical-align:top}"
    "table.texts{width:100%;table-layout:fixed}section{border-top:2px solid #8a93a5;margin-top:1rem}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85em;margin:.4rem 0}"
)


def report_page(uri: str) -> str:
    """HTML of the aligned policy at ``uri``; nothing in it is loaded from elsewhere."""
    model = Dataset.open(uri, MODEL)
    numbers, extra = model.manifest.stats["numbers"], model.manifest.extra
    facts = {"Model": model.manifest.slug, "Fingerprint": model.manifest.fingerprint}
    facts |= {name: f"{value:.6g}" for name, value in numbers.items()}
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts.items())
    shown = extra["samples"]
    body = [
        "<h1>PPO</h1>",
        f"<p>{escape(_verdict(numbers))}</p>",
        f"<table>{rows}</table>",
        draw(training_log(model), _PANELS),
        "<h2>Held-out prompts before and after</h2>" * bool(shown["held_out"]),
        *map(_section, shown["held_out"]),
        "<h2>Rollouts of the last step</h2>" * bool(shown["rollouts"]),
        *map(_section, shown["rollouts"]),
    ]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>PPO</title><style>{_STYLE}</style>"
        + "".join(body)
        + "</html>"
    )


def _verdict(numbers: Mapping[str, float]) -> str:
    if "eval_gain" not in numbers:
        return "No prompts were held out, so whether the policy learned is not known."
    return (
        f"On {numbers['eval_prompts']:.0f} held-out prompts the mean score changed by "
        f"{numbers['eval_gain']:+.4f}, from {numbers['eval_score_before']:.4f} to "
        f"{numbers['eval_score_after']:.4f} (95 % interval {numbers['eval_gain_low']:+.4f} to "
        f"{numbers['eval_gain_high']:+.4f}, bootstrap over prompts)."
    )


def _section(entry: Mapping[str, Any]) -> str:
    sides = "".join(_side(side, entry[side]) for side in ("before", "after") if side in entry)
    return (
        f"<section><pre>{escape(entry['prompt'])}</pre><table class=texts><tr>{sides}</tr></table></section>"
    )


def _side(name: str, told: Mapping[str, Any]) -> str:
    parts = ", ".join(
        f"{part.replace('_', ' ')} {value:+.3f}" for part, value in told["parts"].items() if value
    )
    facts = f"score {told['score']:.3f} ({parts or 'all parts 0'}), {told['tokens']} tokens"
    principles = f"<br>{escape(', '.join(told['principles']))}" if told["principles"] else ""
    text = escape(told["text"]) or "<i>empty</i>"
    return f"<td><b>{name}</b> {escape(facts)}{principles}<pre>{text}</pre></td>"
