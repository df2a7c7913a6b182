"""The story of a dataset or model as one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple

from kubealign_components.data.licenses import licensed
from kubealign_components.data.lineage import LineageStep, describe, steps_of, uses_of
from kubealign_components.data.manifest import Manifest
from kubealign_components.pod_use import COST, CPU_HOURS, GPU_HOURS, added
from kubealign_components.reports.graph import Node, picture
from kubealign_components.reports.html import render

USE_COLUMNS = ("stage", "GPU-hours", "CPU-hours", "cost")


def to_html(manifest: Manifest) -> str:
    """A graph of the steps, then each step's settings and models, on one self-contained page."""
    steps = steps_of(manifest.fingerprint, manifest.recipe)
    return render(
        "kubealign_components/reports/lineage.html",
        title=f"Lineage of {manifest.slug or manifest.fingerprint[:12]}",
        manifest=manifest,
        licensed=[astuple(one) for one in licensed(manifest)],
        uses=use_rows(manifest),
        graph=picture(
            {step.fingerprint: _node(step) for step in steps},
            [(parent, step.fingerprint) for step in steps for parent in step.inputs.values()],
            label=f"graph of {len(steps)} steps",
        ),
        steps=[(step, list(_details(step))) for step in reversed(steps)],
    )


def use_rows(manifest: Manifest) -> list[list[str]]:
    """Stage, GPU-hours, CPU-hours and cost of all that led to the dataset of ``manifest``, their sums last;
    nothing where no step kept them."""
    uses = uses_of(manifest)
    whole = {"all": added(uses.values())} if uses else {}
    return [
        [stage.replace("_", " "), f"{use[GPU_HOURS]:.2f}", f"{use[CPU_HOURS]:.2f}", f"{use[COST]:.2f}"]
        for stage, use in (uses | whole).items()
    ]


def _node(step: LineageStep) -> Node:
    return Node(
        title=step.stage,
        lines=(", ".join(dict.fromkeys(_subjects(step))), step.fingerprint[:8]),
        link=f"#{step.fingerprint}",
    )


def _subjects(step: LineageStep) -> Iterator[str]:
    """Names of what a step worked with: its sources, reward functions, models and principles."""
    reward = step.params.get("reward")
    functions = reward.get("functions", []) if isinstance(reward, Mapping) else []
    for one in (*step.params.get("sources", []), *step.models.values()):
        name = one.get("name") if isinstance(one, Mapping) else one
        if name:
            yield str(name)
    for one in functions:
        yield str(one["function"]).rpartition(":")[2]


def _details(step: LineageStep) -> Iterator[tuple[str, str, str]]:
    yield from (("setting", name, value) for name, value in describe(step.params))
    yield from (("model", name, value) for name, value in describe(step.models))
    yield from (("input", name, value) for name, value in sorted(step.inputs.items()))
