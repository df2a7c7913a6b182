"""What ``filter`` would leave of the prompts that are at hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.stats import Stats
from kubealign_components.filter.tokens import PROMPT_TOO_LONG, Tokeniser
from kubealign_components.json_types import JsonObject
from kubealign_pipelines.checking.findings import Finding, error_at
from kubealign_pipelines.checking.stages import Checked, Stage

LOOKED_AT = 512
"""Most prompts that are tokenised for a check: a second's work."""


def filtered(
    checked: Checked, template: ChatTemplate | None, rows: Sequence[JsonObject]
) -> tuple[list[JsonObject], list[Finding]]:
    """The prompts of ``rows`` that ``filter`` would keep, and what there is to tell where it would keep none.

    Of more than :data:`LOOKED_AT` prompts that many are looked at, and all are given back if one is kept;
    where none of them is, others may be: that is a warning.

    Args:
        checked: the settings.
        template: of the policy; without one nothing is known.
        rows: of the prompts' dataset.
    """
    stage = next(iter(checked.of("filter")), None)
    if stage is None or template is None or not rows:
        return list(rows), []
    stats, looked_at = Stats(), list(rows[:LOOKED_AT])
    kept = Tokeniser(template, stage.config.limits, stats)(copy.deepcopy(looked_at))
    if not kept:
        finding = _nothing_left(stage, template, looked_at, stats)
        return [], [replace(finding, warning=len(looked_at) < len(rows))]
    return (kept if len(looked_at) == len(rows) else list(rows)), []


def _nothing_left(stage: Stage, template: ChatTemplate, rows: Sequence[JsonObject], stats: Stats) -> Finding:
    which = f"the {len(rows)} prompts" if len(rows) < LOOKED_AT else f"the first {len(rows)} prompts"
    if stats.dropped.keys() == {PROMPT_TOO_LONG}:
        expected = f"room for a prompt: all of {which} have more tokens under the policy's template"
        return error_at(stage.path(("max_prompt_len",)), stage.config.max_prompt_len, expected)
    reasons = ", ".join(f"{count} {reason}" for reason, count in stats.dropped.items())
    expected = f"a policy, a template and limits with which one of {which} stays: all are dropped ({reasons})"
    return error_at(stage.path(("policy",)), template.model.name, expected)
