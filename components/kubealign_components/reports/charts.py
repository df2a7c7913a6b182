"""Charts as inline SVG: drawn by matplotlib, coloured by the page's style, named for screen readers.

A chart's size does not follow its data: curves are thinned, and everything else comes as bins.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[float, float]]
POINTS = 400
"""Most points of a curve."""
TICKS = 6
"""Most numbers along the horizontal axis."""
# Colours that stand for those of the style, which differ by day and night.
_INK, _RULE = "#0000f0", "#0000ef"
_SERIES = ("#0000f1", "#0000f2", "#0000f3", "#0000f4")
_VARIABLES = {_INK: "--ink", _RULE: "--rule"} | {
    colour: f"--series-{i + 1}" for i, colour in enumerate(_SERIES)
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def curves(title: str, lines: Mapping[str, Points], *, x: str = "step", y: str = "") -> Markup:
    """Lines over a common axis; those without points are left out.

    Args:
        title: of the chart.
        lines: ``(x, y)`` in the order of x, by name.
        x: label of the axis.
        y: label of the axis, with the unit.
    """
    lines = {name: thinned(points) for name, points in lines.items() if points}

    def draw(axes: Axes) -> None:
        for name, points in lines.items():
            axes.plot(*zip(*points), label=name, marker="." if len(points) < 30 else None)
        axes.locator_params(axis="x", integer=all(float(at).is_integer() for at in ats))
        _label(axes, x, y, legend=len(lines) > 1)

    ats = [at for points in lines.values() for at, _ in points]
    ranges = [f"{name}: from {p[0][1]:.4g} to {p[-1][1]:.4g}" for name, p in lines.items()]
    return _chart(title, f"{y} by {x}. {'; '.join(ranges)}.", draw)


def histogram(title: str, counts: Mapping[str, Sequence[int]], low: float, high: float, *, x: str) -> Markup:
    """Counts of bins that cut ``low`` to ``high`` evenly, one outline a name.

    Args:
        title: of the chart.
        counts: of each bin, by name.
        low: left edge of the first bin.
        high: right edge of the last bin.
        x: label of the axis, with the unit.
    """

    def draw(axes: Axes) -> None:
        for colour, (name, values) in zip(_SERIES, counts.items()):
            edges = [low + (high - low) * i / len(values) for i in range(len(values) + 1)]
            axes.stairs(values, edges, label=name, color=colour, fill=True, alpha=0.35)
            axes.stairs(values, edges, color=colour)
        if low < 0 < high:
            axes.axvline(0, color=_INK, linestyle=":", linewidth=1)
        axes.set_ylim(bottom=0)
        _label(axes, x, "count", legend=len(counts) > 1)

    totals = "; ".join(f"{name}: {sum(values)} values" for name, values in counts.items())
    return _chart(title, f"Histogram of {x}, {low:.4g} to {high:.4g}. {totals}.", draw)


def against(title: str, points: Mapping[str, Points], *, x: str, y: str, ideal: Points = ()) -> Markup:
    """Points joined by lines, and a dotted line where they should lie.

    Args:
        title: of the chart.
        points: by name, in the order of x.
        x: label of the axis.
        y: label of the axis.
        ideal: ends of the dotted line.
    """

    def draw(axes: Axes) -> None:
        if ideal:
            axes.plot(*zip(*ideal), color=_INK, linestyle=":", linewidth=1)
        for name, those in points.items():
            if those:
                axes.plot(*zip(*those), marker="o", label=name)
        _label(axes, x, y, legend=len(points) > 1)

    return _chart(title, f"{y} against {x}.", draw)


def scatter(title: str, points: Points, *, x: str, y: str, slope: bool = False) -> Markup:
    """Points, of which :data:`POINTS` are drawn, and their least-squares line.

    Args:
        title: of the chart.
        points: in an order that says nothing, such as that of hashes.
        x: label of the axis.
        y: label of the axis.
        slope: whether to draw the line, through all points, and say how steep it is.
    """
    line = _least_squares(points) if slope else None

    def draw(axes: Axes) -> None:
        if points:
            xs, ys = zip(*points[:POINTS])
            axes.scatter(xs, ys, s=9, alpha=0.6, linewidths=0)
        if line:
            ends = [min(p[0] for p in points), max(p[0] for p in points)]
            axes.plot(ends, [line[0] * end + line[1] for end in ends], color=_SERIES[1])
        _label(axes, x, y, legend=False)

    fit = f" The slope is {line[0]:.3g}, the correlation {line[2]:+.2f}." if line else ""
    name = f"{title} (correlation {line[2]:+.2f})" if line else title
    return _chart(name, f"{y} against {x}, {len(points)} points.{fit}", draw)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """A point with an interval in both directions: mean, lower and upper end of each."""

    name: str
    """A few letters, which stand beside it."""
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    on_front: bool
    """Whether it is filled."""
    chosen: bool
    """Whether a ring is around it."""


def front(title: str, spots: Sequence[Spot], *, x: str, y: str) -> Markup:
    """Points by cost and gain with their intervals; those that no other outdoes are filled.

    Args:
        title: of the chart.
        spots: the points.
        x: label of the axis of what a gain costs.
        y: label of the axis of the gain.
    """

    def draw(axes: Axes) -> None:
        for spot in spots:
            colour = _SERIES[0] if spot.on_front else _SERIES[1]
            (cost, *cost_ends), (gain, *gain_ends) = spot.x, spot.y
            axes.plot(cost_ends, [gain, gain], color=colour, linewidth=1, alpha=0.5)
            axes.plot([cost, cost], gain_ends, color=colour, linewidth=1, alpha=0.5)
            face = colour if spot.on_front else "none"
            axes.plot(cost, gain, "o", color=colour, markerfacecolor=face, markersize=5)
            if spot.chosen:
                axes.plot(cost, gain, "o", color=_INK, markerfacecolor="none", markersize=11)
            axes.annotate(spot.name, (cost, gain), (5, 5), textcoords="offset points", fontsize="small")
        axes.axhline(0, color=_INK, linestyle=":", linewidth=1)
        _label(axes, x, y, legend=False)

    best = ", ".join(spot.name for spot in spots if spot.on_front)
    ringed = "".join(f" Chosen: {spot.name}." for spot in spots if spot.chosen)
    return _chart(title, f"{y} against {x}, {len(spots)} points; on the front: {best}.{ringed}", draw)


def counted(values: Sequence[float], bins: int = 24) -> tuple[list[int], float, float]:
    """Counts of equal bins over all of ``values``, and the edges of the outermost."""
    import numpy as np

    low, high = bounds(min(values), max(values))
    return np.histogram(np.asarray(values, dtype=np.float64), bins, (low, high))[0].tolist(), low, high


def bounds(low: float, high: float) -> tuple[float, float]:
    """``low`` and ``high`` as the edges of bins: apart by more than rounding, so that they can be cut."""
    least = max(abs(low), abs(high), 1.0) * 1e-6
    return (low, high) if high - low > least else (low - 0.5, high + 0.5)


def _least_squares(points: Points) -> tuple[float, float, float] | None:
    """Slope, intercept and correlation; None where either coordinate does not vary."""
    import numpy as np

    if len(points) < 3:
        return None
    x, y = np.asarray(points, dtype=np.float64).T
    if x.std() == 0 or y.std() == 0:
        return None
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept), float(np.corrcoef(x, y)[0, 1])


def thinned(points: Points) -> Points:
    """At most :data:`POINTS` points: means of neighbours where there are more."""
    if len(points) <= POINTS:
        return points
    size = -(-len(points) // POINTS)
    cuts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(cut[-1][0], sum(value for _, value in cut) / len(cut)) for cut in cuts]


def _label(axes: Axes, x: str, y: str, *, legend: bool) -> None:
    axes.set(xlabel=x, ylabel=y)
    if legend:
        axes.legend(fontsize="small")


def _chart(title: str, description: str, draw: Callable[[Axes], None]) -> Markup:
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "kubealign",
        "axes.prop_cycle": cycler(color=_SERIES),
        "axes.grid": True,
        "axes.formatter.limits": (-3, 5),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": _RULE,
        "legend.frameon": False,
    } | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
    with rc_context(settings):
        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.locator_params(axis="x", nbins=TICKS)  # more would overprint each other
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata=_NO_METADATA)
    return _figure(title, description, out.getvalue())


def _figure(title: str, description: str, svg: str) -> Markup:
    svg = svg[svg.index("<svg") :]
    key = f"c{hashlib.sha256((title + svg).encode()).hexdigest()[:10]}"
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{key}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    names = f'<title id="{key}">{escape(title)}</title><desc id="{key}d">{escape(description)}</desc>'
    opened, _, rest = svg.partition(">")
    svg = f'{opened} role="img" aria-labelledby="{key} {key}d">{names}{rest}'
    return Markup(f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>")
