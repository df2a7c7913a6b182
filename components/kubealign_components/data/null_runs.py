"""Null runs: selections whose rewards were shuffled within prompts, so that what they gain is noise."""

from __future__ import annotations

from kubealign_components.data.fingerprint import Recipe

SHUFFLED = "shuffled"
"""The setting ``rewards`` of ``select`` in such a run."""
NULL_RUN = "This is a null run: rewards were shuffled within each prompt before any completion was chosen."


def is_null_run(recipe: Recipe) -> bool:
    """Whether shuffled rewards led to what ``recipe`` made."""
    steps = (step for step in recipe.values() if step["stage"] == "select")
    return any(step["params"].get("rewards") == SHUFFLED for step in steps)
