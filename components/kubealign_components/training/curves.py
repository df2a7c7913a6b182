"""The training curves as one self-contained HTML page."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import MODEL
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
)
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "svg{width:100%;height:auto}td,th{padding:.1rem 1rem .1rem 0;text-align:left}"
)


def training_log(model: Dataset) -> Log:
    """``(step, metrics)`` of every logged step of a trained model (``kubealign.model/v1``)."""
    return [(row["step"], json.loads(row["metrics"])) for row in model.iter_rows()]


def curves_page(uri: str) -> str:
    """HTML with the curves of the model at ``uri``; nothing in it is loaded from elsewhere."""
    model = Dataset.open(uri, MODEL)
    log = training_log(model)
    late = [m["calibration"] for _, m in log[len(log) * 4 // 5 :] if "calibration" in m]
    calibration = bin_means(late)
    extra = [lambda axis: _calibration(axis, calibration)] if calibration else []
    return page("Training curves", model, draw(log, _PANELS, extra))


def page(title: str, model: Dataset, body: str) -> str:
    """A self-contained page: what the model is, its numbers, and ``body``, which is HTML."""
    facts = {"Model": model.manifest.slug, "Fingerprint": model.manifest.fingerprint}
    facts |= {name: f"{value:.6g}" for name, value in model.manifest.stats["numbers"].items()}
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts.items())
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}"
        f"</style><h1>{escape(title)}</h1><table>{rows}</table>{body}</html>"
    )


def draw(log: Log, panels: Sequence[Panel], extra: Sequence[Callable[[Any], None]] = ()) -> str:
    """The curves as inline SVG.

    Args:
        log: of the training.
        panels: title, names of metrics, and what they are; those that the log lacks are left out.
        extra: draw further panels, each on a matplotlib axis.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = [panel for panel in panels if any(_points(log, name) for name in panel[1])]
    count = len(panels) + len(extra)
    with rc_context({"svg.hashsalt": "kubealign", "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(12, 3.2 * -(-count // 3)), layout="constrained")
        axes = [figure.add_subplot(-(-count // 3), 3, i + 1) for i in range(count)]
        for axis, (title, names, label) in zip(axes, panels):
            _curve(axis, title, {name: _points(log, name) for name in names}, label)
        for axis, plot in zip(axes[len(panels) :], extra):
            plot(axis)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _points(log: Log, name: str) -> list[tuple[int, float]]:
    return [(step, metrics[name]) for step, metrics in log if name in metrics]


def _curve(axis: Any, title: str, lines: Mapping[str, list[tuple[int, float]]], label: str) -> None:
    for name, points in lines.items():
        if points:
            axis.plot(*zip(*points), label=name.replace("_", " "), marker="." if len(points) < 30 else None)
    axis.set(title=title, xlabel="step", ylabel=label)
    if len(lines) > 1:
        axis.legend(fontsize="small")


def _calibration(axis: Any, bins: Iterable[tuple[float, float, int]]) -> None:
    actual, implied, _ = zip(*bins)
    axis.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axis.plot(actual, implied, marker="o")
    axis.set(
        title="Quantile calibration", xlabel="quantile reward", ylabel="implied by the policy (last 20 %)"
    )
