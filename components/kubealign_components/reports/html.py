"""Plain self-contained HTML pages: what reports have in common."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from kubealign_components.store import join, store_for

REPORT = "report.html"
"""A page beside the rows that it is about."""


def page(title: str, body: Sequence[str]) -> str:
    """A page; nothing in it is loaded from elsewhere.

    Args:
        title: plain text, which is also the page's heading.
        body: pieces of HTML.
    """
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style>\n<h1>{escape(title)}</h1>\n" + "\n".join(body) + "\n</html>\n"
    )


def warning(text: str) -> str:
    """A sentence that must not be overlooked."""
    return f"<p class=warning>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of HTML cells under plain headings."""
    cells = "".join("<tr>" + "".join(f"<td>{cell}" for cell in row) for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(text)}' for text in head)}{cells}</table>"


def bar(share: float) -> str:
    """A horizontal bar, 0 to 1 of its cell."""
    return f"<span class=bar style='width:{max(0.0, min(share, 1.0)) * 12:.2f}rem'></span>"


def histogram(counts: Sequence[int], low: float, high: float, unit: str = "") -> str:
    """Bars of ``counts`` as inline SVG; their bins cut ``low`` to ``high`` evenly.

    Args:
        counts: of each bin.
        low: left edge of the first bin.
        high: right edge of the last bin.
        unit: of the axis.
    """
    most, width = max([*counts, 1]), 300 / max(len(counts), 1)
    bars = "".join(
        f"<rect x={i * width:.1f} y={60 - 60 * n / most:.1f} width={width - 0.5:.1f} "
        f"height={60 * n / most:.1f} />"
        for i, n in enumerate(counts)
    )
    zero = 300 * -low / (high - low) if low < 0 < high else None
    line = "" if zero is None else f"<line x1={zero:.1f} x2={zero:.1f} y1=0 y2=60 />"
    return (
        f"<svg viewBox='0 0 300 74' role=img>{bars}{line}<text x=0 y=72>{low:.3g}</text>"
        f"<text x=300 y=72 text-anchor=end>{high:.3g}{escape(unit and f' {unit}')}</text></svg>"
    )


def write_report(text: str, output: str, copy: str | None) -> None:
    """Write a page beside the dataset at ``output``, and to the path ``copy`` for the Kubeflow UI."""
    store_for(output).publish(join(output, REPORT), text.encode())
    if copy is not None:
        Path(copy).parent.mkdir(parents=True, exist_ok=True)
        Path(copy).write_text(text, encoding="utf-8")


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;
color:#1c2330;background:#fff}
h2{margin:1.6rem 0 .3rem;font-size:1.1rem}table{border-collapse:collapse}
td,th{border-top:1px solid #dde1e8;padding:.2rem .8rem;text-align:left;vertical-align:top}
table.texts{width:100%;table-layout:fixed}section{border-top:2px solid #8a93a5;margin-top:1rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85em;margin:.4rem 0}
.warning{background:#fff3d6;border-left:4px solid #d79b00;padding:.4rem .8rem}
.bar{display:inline-block;height:.7rem;background:#5b7bb0}svg{width:20rem;height:auto}
svg rect{fill:#5b7bb0}svg line{stroke:#1c2330;stroke-dasharray:3}svg text{font-size:11px;fill:#55607a}
"""
