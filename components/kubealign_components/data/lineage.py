"""The story of a dataset or model, read from its recipe: every step, setting and model that led to it.

A recipe is complete in itself, so the story can be told when every ancestor has been deleted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from kubealign_components.data.fingerprint import Recipe
from kubealign_components.data.manifest import Manifest

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y = 210, 52, 40, 34


@dataclass(frozen=True, kw_only=True, slots=True)
class LineageStep:
    """One stage's work on the way to a dataset."""

    fingerprint: str
    stage: str
    version: int
    params: dict[str, Any]
    """Semantic settings."""
    models: dict[str, Any]
    """Identities of models, tokenizers, templates and reward functions, by role."""
    inputs: dict[str, str]
    """Fingerprints of the steps whose rows came in, by role."""
    level: int
    """1 for a source, else one more than the highest level among the inputs."""


def steps_of(fingerprint: str, recipe: Recipe) -> list[LineageStep]:
    """The steps that led to ``fingerprint``, sources first and that step last.

    Args:
        fingerprint: of the dataset.
        recipe: of the same manifest, checked by :func:`kubealign_components.data.fingerprint.check_recipe`.
    """
    found: dict[str, LineageStep] = {}

    def visit(name: str) -> int:
        if name not in found:
            step = recipe[name]
            level = 1 + max((visit(parent) for parent in step["inputs"].values()), default=0)
            found[name] = LineageStep(
                fingerprint=name,
                stage=step["stage"],
                version=step["version"],
                params=step["params"],
                models=step["models"],
                inputs=step["inputs"],
                level=level,
            )
        return found[name].level

    visit(fingerprint)
    return sorted(found.values(), key=lambda step: step.level)


def to_json(manifest: Manifest) -> dict[str, object]:
    """The story as plain JSON values."""
    return {
        "fingerprint": manifest.fingerprint,
        "schema": manifest.schema,
        "slug": manifest.slug,
        "rows": manifest.rows,
        "identity": manifest.identity,
        "parents": list(manifest.parents),
        "steps": [asdict(step) for step in steps_of(manifest.fingerprint, manifest.recipe)],
    }


def to_html(manifest: Manifest) -> str:
    """The story as one self-contained page: a graph of the steps, then each step's settings and models."""
    steps = steps_of(manifest.fingerprint, manifest.recipe)
    title = f"Lineage of {manifest.slug or manifest.fingerprint[:12]}"
    head = (
        f"<p><code>{escape(manifest.schema)}</code>, {escape(str(manifest.rows))} rows, "
        f"fingerprint <code>{manifest.fingerprint}</code></p>"
    )
    body = "\n".join(_details(step) for step in reversed(steps))
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style>\n<h1>{escape(title)}</h1>\n{head}\n{_graph(steps)}\n{body}\n</html>\n"
    )


def describe(values: Mapping[str, object]) -> list[tuple[str, str]]:
    """Names and readable values, in name order; nested values as compact JSON."""
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in sorted(values.items())
    ]


def _graph(steps: Sequence[LineageStep]) -> str:
    places = _layout(steps)
    width = max(x for x, _ in places.values()) + BOX_WIDTH + 1
    height = max(y for _, y in places.values()) + BOX_HEIGHT + 1
    edges = [_edge(places[parent], places[s.fingerprint]) for s in steps for parent in s.inputs.values()]
    boxes = [_box(step, *places[step.fingerprint]) for step in steps]
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="graph of {len(steps)} steps">{"".join(edges)}{"".join(boxes)}</svg>'
    )


def _layout(steps: Sequence[LineageStep]) -> dict[str, tuple[int, int]]:
    """Top left corner of each step's box: one row a level."""
    taken: dict[int, int] = {}
    places: dict[str, tuple[int, int]] = {}
    for step in steps:
        column = taken.setdefault(step.level, 0)
        taken[step.level] += 1
        places[step.fingerprint] = (
            1 + column * (BOX_WIDTH + GAP_X),
            1 + (step.level - 1) * (BOX_HEIGHT + GAP_Y),
        )
    return places


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1 = start[0] + BOX_WIDTH // 2, start[1] + BOX_HEIGHT
    x2, y2 = end[0] + BOX_WIDTH // 2, end[1]
    middle = (y1 + y2) // 2
    return f'<path d="M{x1} {y1}C{x1} {middle} {x2} {middle} {x2} {y2}"/>'


def _box(step: LineageStep, x: int, y: int) -> str:
    names = ", ".join(_model_name(model) for model in step.models.values())
    label = f"{names[:27]}…" if len(names) > 28 else names
    return (
        f'<a href="#{step.fingerprint}"><rect x="{x}" y="{y}" width="{BOX_WIDTH}" '
        f'height="{BOX_HEIGHT}" rx="6"/>'
        f'<text x="{x + 10}" y="{y + 21}" class="stage">{escape(step.stage)}</text>'
        f'<text x="{x + BOX_WIDTH - 10}" y="{y + 21}" text-anchor="end">{step.fingerprint[:8]}</text>'
        f'<text x="{x + 10}" y="{y + 41}">{escape(label)}</text></a>'
    )


def _details(step: LineageStep) -> str:
    rows = [("settings", name, value) for name, value in describe(step.params)]
    rows += [("model", name, value) for name, value in describe(step.models)]
    rows += [("input", name, value) for name, value in sorted(step.inputs.items())]
    table = "".join(
        f"<tr><td>{kind}<td>{escape(name)}<td><code>{escape(value)}</code>" for kind, name, value in rows
    )
    return (
        f'<section id="{step.fingerprint}"><h2>{escape(step.stage)} '
        f"<small>version {escape(str(step.version))}, "
        f"<code>{step.fingerprint}</code></small></h2><table>{table}</table></section>"
    )


def _model_name(identity: object) -> str:
    return str(identity.get("name", "")) if isinstance(identity, Mapping) else str(identity)


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;
color:#1c2330;background:#fff}
h2{margin:1.6rem 0 .3rem;font-size:1.1rem}small{font-weight:400;color:#667}
table{border-collapse:collapse;width:100%}
td{border-top:1px solid #dde1e8;padding:.2rem .6rem;vertical-align:top}
td:first-child{color:#667;width:5rem}code{font-size:.85em;overflow-wrap:anywhere}
svg{max-width:100%;height:auto;margin:1rem 0}path{fill:none;stroke:#8a93a5;stroke-width:1.5}
rect{fill:#eef2fb;stroke:#5b74b8}text{font-size:12px;fill:#445}text.stage{font-weight:600;font-size:14px;fill:#1c2330}
"""
