"""Successive halving of a sweep: its rungs, at each of which fewer variants are trained further.

    (train ─ evaluate) ×20 ─ choose ─ (train ─ evaluate) ×7 ─ choose ─ (train ─ evaluate) ×3 ─ choose

Of a rung's variants one in ``halving`` goes on, from its checkpoint, to ``halving`` times the steps; those of
the last rung are trained to their end. There are as many rungs as it takes for few to be left: Jamieson and
Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS (2016).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from kubealign_components.json_types import JsonObject
from kubealign_pipelines.rules import Choice

_RUNG = re.compile(r"-rung-(\d+)$")
"""How a task of a rung is called that is not the last one, see :attr:`Rung.about`."""
REDUCTION_FACTOR = "reduction_factor"
"""Argument of ``choose`` at a rung after which variants are trained further."""

HALVING = Choice(
    name="halving",
    values=(0, *range(2, 11)),
    meaning="Of a sweep: one variant in so many, by the lower bound of its gain, is trained further, to so"
    " many times the steps, rung by rung; 0 trains all to their end.",
    has_stages=False,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One of a sweep's trainings of those variants that are left."""

    number: int
    """From 1."""
    variants: int
    share: float
    """Of the steps of a training that are done when it ends."""
    factor: int
    """One in so many variants goes on; 0 at the last one."""

    @property
    def about(self) -> str:
        """What tells its tasks from those of others; those of the last one are named as without rungs."""
        return f"rung {self.number}" if self.factor else ""


def rung_of(task: str) -> int:
    """At which rung the task called ``task`` stands, from 1; 0 at the last one, and without halving."""
    number = _RUNG.search(task)
    return int(number[1]) if number else 0


def factor_of(parameters: Mapping[str, object]) -> int:
    """The choice among ``parameters``; 0 where it cannot be used, of which others tell."""
    value = parameters.get(HALVING.name)
    return next((int(one) for one in HALVING.values if one == value and HALVING.allows(value)), 0)


def rungs_of(variants: int, factor: int) -> list[Rung]:
    """The rungs of a sweep of ``variants``; one alone where ``factor`` is 0 or more than they are."""
    last = 0
    while factor and factor ** (last + 1) <= variants:
        last += 1
    return [
        Rung(
            number=number + 1,
            variants=left_of(variants, factor, number),
            share=float(factor) ** (number - last) if factor else 1.0,
            factor=factor if number < last else 0,
        )
        for number in range(last + 1)
    ]


def times_halved(tasks: JsonObject, loop: str) -> tuple[int, int]:
    """How often variants were dropped before the task ``loop`` of the compiled ``tasks``, and one in how many
    went on; (0, 0) where none were, or where it is no loop over variants."""
    given = tasks[loop].get("inputs", {}).get("parameters", {})
    items = tasks[loop].get("parameterIterator", {}).get("items", {}).get("inputParameter", "")
    choice = tasks.get(given.get(items, {}).get("taskOutputParameter", {}).get("producerTask", ""), {})
    inputs = choice.get("inputs", {})
    factor = inputs.get("parameters", {}).get(REDUCTION_FACTOR, {}).get("runtimeValue", {}).get("constant")
    if factor is None:
        return 0, 0
    before = inputs["artifacts"]["evaluations"]["taskOutputArtifact"]["producerTask"]
    return times_halved(tasks, before)[0] + 1, int(factor)


def left_of(variants: int, factor: int, times: int) -> int:
    """How many of ``variants`` are left when one in ``factor`` went on so many ``times``."""
    divided_by: int = max(factor, 1) ** times
    return -(-variants // divided_by)
