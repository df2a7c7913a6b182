"""The training of a reward model as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import MODEL
from kubealign_components.reports.charts import against
from kubealign_components.training.curves import draw, page, training_log

_PANELS = (
    ("Loss", ("loss", "eval_loss"), "mean over pairs"),
    ("Accuracy", ("reward_accuracy", "eval_reward_accuracy"), "share of pairs"),
    ("Margin", ("reward_margin", "eval_reward_margin"), "chosen − rejected"),
    ("Mean score", ("reward_mean", "eval_reward_mean"), "of both completions"),
    ("Gradient norm", ("grad_norm",), "before clipping"),
    ("Learning rate", ("learning_rate",), ""),
    ("Throughput", ("tokens_per_second",), "tokens/s"),
    ("Memory", ("memory_gib",), "most so far, GiB"),
)


def report_page(uri: str) -> str:
    """HTML of the reward model at ``uri``: curves, calibration on held-out pairs, accuracy by principle."""
    model = Dataset.open(uri, MODEL)
    held_out = model.manifest.extra["held_out"]
    bins = held_out["calibration"]
    return page(
        "kubealign_components/train_reward_model/report.html",
        model,
        charts=draw(training_log(model), _PANELS) + ([_calibration(bins)] if bins else []),
        principles=held_out["by_principle"],
        steered=held_out.get("steered", []),
    )


def _calibration(bins: Sequence[Sequence[float]]) -> Markup:
    pairs = ", ".join(f"{n:.0f}" for _, _, n in bins)
    return against(
        "Calibration on held-out pairs",
        {f"bins of {pairs} pairs": [(confidence, accuracy) for confidence, accuracy, _ in bins]},
        x="confidence, σ(score difference)",
        y="accuracy",
        ideal=[(0.5, 0.5), (1, 1)],
    )
