"""The run as one page: numbers, curves by step, rollouts, and answers before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kubealign_components.data.bootstrap import ONE_PROMPT
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import MODEL
from kubealign_components.training.curves import Panel, draw, page, training_log

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
    ("Memory", ("memory_gib",), "most so far, GiB"),
)


def report_page(uri: str) -> str:
    """HTML of the aligned policy at ``uri``; nothing in it is loaded from elsewhere."""
    model = Dataset.open(uri, MODEL)
    shown = model.manifest.extra["samples"]
    return page(
        "kubealign_components/train_ppo/report.html",
        model,
        verdict=_verdict(model.manifest.stats["numbers"]),
        charts=draw(training_log(model), _PANELS),
        held_out=[(entry["prompt"], _sides(entry)) for entry in shown["held_out"]],
        rollouts=[(entry["prompt"], _sides(entry)) for entry in shown["rollouts"]],
    )


def _verdict(numbers: Mapping[str, float]) -> str:
    if "eval_gain" not in numbers:
        return "No prompts were held out, so whether the policy learned is not known."
    changed = (
        f"changed by {numbers['eval_gain']:+.4f}, from {numbers['eval_score_before']:.4f} to "
        f"{numbers['eval_score_after']:.4f}"
    )
    if "eval_gain_low" not in numbers:
        return f"On the one held-out prompt the score {changed}; {ONE_PROMPT}."
    return (
        f"On {numbers['eval_prompts']:.0f} held-out prompts the mean score {changed} (95 % interval "
        f"{numbers['eval_gain_low']:+.4f} to {numbers['eval_gain_high']:+.4f}, bootstrap over prompts)."
    )


def _sides(entry: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [(side, _facts(entry[side]), entry[side]["text"]) for side in ("before", "after") if side in entry]


def _facts(sample: Mapping[str, Any]) -> str:
    parts = ", ".join(
        f"{part.replace('_', ' ')} {value:+.3f}" for part, value in sample["parts"].items() if value
    )
    facts = f"score {sample['score']:.3f} ({parts or 'all parts 0'}), {sample['tokens']} tokens"
    return facts + (f"; {', '.join(sample['principles'])}" if sample["principles"] else "")
