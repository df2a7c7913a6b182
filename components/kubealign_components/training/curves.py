"""The training curves as one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import MODEL
from kubealign_components.reports import charts
from kubealign_components.reports.html import message_page, render
from kubealign_components.training.config import LOGISTIC
from kubealign_components.training.metrics import bin_means

Log = Sequence[tuple[int, Mapping[str, Any]]]
Panel = tuple[str, tuple[str, ...], str]
"""Title of a chart, the metrics that it shows, and the label of its axis."""

_PANELS: tuple[Panel, ...] = (
    ("Loss", ("loss", "eval_loss"), "mean over examples"),
    ("Reward margin", ("reward_margin", "eval_reward_margin"), "chosen − rejected"),
    ("Reward accuracy", ("reward_accuracy", "eval_reward_accuracy"), "share of pairs"),
    ("Log-ratio", ("chosen_log_ratio", "rejected_log_ratio"), "nats a completion"),
    ("KL estimate", ("kl_estimate", "eval_kl_estimate"), "−log-ratio on its samples, nats"),
    ("Gradient norm", ("grad_norm",), "before clipping"),
    ("Learning rate", ("learning_rate",), ""),
    ("Throughput", ("tokens_per_second",), "tokens/s"),
    ("Memory", ("memory_gib",), "most so far, GiB"),
)


def training_log(model: Dataset) -> Log:
    """``(step, metrics)`` of every logged step of a trained model (``kubealign.model/v1``)."""
    return [(row["step"], json.loads(row["metrics"])) for row in model.iter_rows()]


def curves_page(uri: str) -> str:
    """HTML with the curves of the model at ``uri``; nothing in it is loaded from elsewhere."""
    model = Dataset.open(uri, MODEL)
    if model.ended_early:
        return message_page(model.manifest.slug, model.ended_early)
    log = training_log(model)
    logistic = model.manifest.provenance.step["params"].get("objective") in LOGISTIC
    shown = [*draw(log, _PANELS), *_calibration(log, logistic=logistic)]
    return page("kubealign_components/training/curves.html", model, charts=shown)


def page(template: str, model: Dataset, **values: object) -> str:
    """A page on a trained model: its name and numbers, and what the template makes of ``values``."""
    numbers = model.manifest.stats["numbers"]
    facts = [(name.replace("_", " "), f"{value:.6g}") for name, value in numbers.items()]
    return render(template, manifest=model.manifest, facts=facts, **values)


def draw(log: Log, panels: Sequence[Panel]) -> list[Markup]:
    """The curves, one chart a panel; panels are left out whose metrics the log lacks."""
    lines = [
        (title, {name.replace("_", " "): _points(log, name) for name in names}, label)
        for title, names, label in panels
    ]
    return [charts.curves(title, shown, y=label) for title, shown, label in lines if any(shown.values())]


def _points(log: Log, name: str) -> list[tuple[int, float]]:
    return [(step, metrics[name]) for step, metrics in log if name in metrics]


def _calibration(log: Log, *, logistic: bool) -> Iterator[Markup]:
    """On the validation split as it was last, without one on the last fifth of the training."""
    held_out = [metrics["eval_calibration"] for _, metrics in log if "eval_calibration" in metrics][-1:]
    late = [metrics["calibration"] for _, metrics in log[len(log) * 4 // 5 :] if "calibration" in metrics]
    bins = bin_means(held_out or late)
    if not bins:
        return
    of = "held-out" if held_out else "last 20 %"
    points = [(binned, other) for binned, other, _ in bins]
    if logistic:
        pairs = ", ".join(str(count) for *_, count in bins)
        yield charts.against(
            "Calibration",
            {f"bins of {pairs} pairs": points},
            x="confidence, σ(reward margin)",
            y=f"share rightly ordered ({of})",
            ideal=[(0.5, 0.5), (1, 1)],
        )
    else:
        yield charts.against(
            "Quantile calibration",
            {"bins": points},
            x="quantile reward",
            y=f"implied by the policy ({of})",
            ideal=[(0, 0), (1, 1)],
        )
