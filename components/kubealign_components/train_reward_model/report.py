"""The training of a reward model as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import MODEL
from kubealign_components.training.curves import draw, page, training_log

_PANELS = (
    ("Loss", ("loss", "eval_loss"), "mean over pairs"),
    ("Accuracy", ("reward_accuracy", "eval_reward_accuracy"), "share of pairs"),
    ("Margin", ("reward_margin", "eval_reward_margin"), "chosen − rejected"),
    ("Mean score", ("reward_mean", "eval_reward_mean"), "of both completions"),
    ("Gradient norm", ("grad_norm",), "before clipping"),
    ("Learning rate", ("learning_rate",), ""),
    ("Throughput", ("tokens_per_second",), "tokens/s"),
)


def report_page(uri: str) -> str:
    """HTML of the reward model at ``uri``: curves, calibration on held-out pairs, accuracy by principle."""
    model = Dataset.open(uri, MODEL)
    held_out = model.manifest.extra["held_out"]
    bins = held_out["calibration"]
    extra = [lambda axis: _calibration(axis, bins)] if bins else []
    body = draw(training_log(model), _PANELS, extra) + _table(held_out["by_principle"])
    return page("Reward model", model, body)


def _calibration(axis: Any, bins: Sequence[Sequence[float]]) -> None:
    confidence, accuracy, pairs = zip(*bins)
    axis.plot([0.5, 1], [0.5, 1], color="grey", linestyle=":")
    axis.plot(confidence, accuracy, marker="o")
    for x, y, n in zip(confidence, accuracy, pairs):
        axis.annotate(f"{n:.0f}", (x, y), fontsize="x-small", xytext=(3, 3), textcoords="offset points")
    axis.set(
        title="Calibration on held-out pairs",
        xlabel="confidence, σ(score difference)",
        ylabel="accuracy (number of pairs)",
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    cells = "".join(
        f"<tr><td>{escape(row['name'])}<td>{'negated' if row['negated'] else 'positive'}"
        f"<td>{row['pairs']}<td>{row['accuracy']:.3f}"
        for row in rows
    )
    return (
        "<h2>Held-out pairs by the principle that decides them</h2>"
        f"<table><tr><th>principle<th><th>pairs<th>accuracy{cells}</table>"
    )
