"""The story of a dataset or model, read from its recipe: every step, setting and model that led to it.

A recipe is complete in itself, so the story can be told when every ancestor has been deleted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kubealign_components.data.fingerprint import Recipe
from kubealign_components.data.licenses import licensed
from kubealign_components.data.manifest import Manifest
from kubealign_components.data.origins import USE_OF_PODS
from kubealign_components.pod_use import Use, added


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


def uses_of(manifest: Manifest) -> dict[str, Use]:
    """Hours and cost of the pods that led to the dataset of ``manifest``, by stage in the order of the steps;
    none where no step kept them."""
    uses: dict[str, list[Use]] = {}
    for step in steps_of(manifest.fingerprint, manifest.recipe):
        if use := manifest.origins.get(step.fingerprint, {}).get(USE_OF_PODS):
            uses.setdefault(step.stage, []).append(use)
    return {stage: added(of_stage) for stage, of_stage in uses.items()}


def steps_of(fingerprint: str, recipe: Recipe) -> list[LineageStep]:
    """The steps that led to ``fingerprint``, sources first and that step last.

    Args:
        fingerprint: of the dataset.
        recipe: of the same manifest, checked by :func:`kubealign_components.data.fingerprint.check_recipe`.
    """
    steps: dict[str, LineageStep] = {}

    def visit(name: str) -> int:
        if name not in steps:
            step = recipe[name]
            level = 1 + max((visit(parent) for parent in step["inputs"].values()), default=0)
            steps[name] = LineageStep(
                fingerprint=name,
                stage=step["stage"],
                version=step["version"],
                params=step["params"],
                models=step["models"],
                inputs=step["inputs"],
                level=level,
            )
        return steps[name].level

    visit(fingerprint)
    return sorted(steps.values(), key=lambda step: step.level)


def to_json(manifest: Manifest) -> dict[str, object]:
    """The story as plain JSON values."""
    return {
        "fingerprint": manifest.fingerprint,
        "schema": manifest.schema,
        "slug": manifest.slug,
        "rows": manifest.rows,
        "identity": manifest.identity,
        "parents": list(manifest.parents),
        "licenses": [asdict(one) for one in licensed(manifest)],
        "steps": [asdict(step) for step in steps_of(manifest.fingerprint, manifest.recipe)],
    }


def describe(values: Mapping[str, object]) -> list[tuple[str, str]]:
    """Names and readable values, in name order; nested values as compact JSON."""
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in sorted(values.items())
    ]
