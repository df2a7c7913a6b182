"""The variants of a sweep, as a parameter of a pipeline: by stage what each has of its own.

variants:
  - {train: {beta: 0.05}}
  - {train: {beta: 0.1}, select: {strategy: random_pairs}}
"""

from __future__ import annotations

from collections.abc import Mapping

VARIANTS = "variants"
"""Name of the parameter."""
SWEPT = ("select", "mix", "train", "evaluate")
"""Stages in which variants may differ, in their order: what they work on is there when the sweep begins."""


def swept_stages(parameters: Mapping[str, object]) -> tuple[str, ...]:
    """The stages in which the variants among ``parameters`` differ; without a sweep there are none."""
    given = parameters.get(VARIANTS)
    variants = given if isinstance(given, list) else []
    named = {stage for variant in variants if isinstance(variant, Mapping) for stage in variant}
    own = tuple(stage for stage in SWEPT if stage in named)
    return own or (SWEPT[-2:-1] if variants else ())


def number_of(parameters: Mapping[str, object]) -> int:
    """How many variants there are among ``parameters``."""
    given = parameters.get(VARIANTS)
    return len(given) if isinstance(given, list) else 0


def decide(variants: object) -> object:
    """What of the parameter decides on a graph: the first stage that is done for each variant, and how many
    there are, which leaves room for so many chunks."""
    swept = swept_stages({VARIANTS: variants})
    return [{swept[0]: {}}] * len(variants) if swept and isinstance(variants, list) else None
