"""What a run may ask of its gain: the gates of ``evaluate``, each by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kubealign_components.evaluate.audit import collapses, finding_on
from kubealign_components.evaluate.controlled import interval_of
from kubealign_components.evaluate.second_reward import SETTING
from kubealign_components.evaluate.surface import REPETITION, SURFACES, Surface

Numbers = Mapping[str, float]

GAIN, HELD_OUT, VARIED = "gain", "held_out_gain", "varied_answers"
BEYOND = {f"beyond_{surface.name}": surface for surface in SURFACES}
REQUIREMENTS = (GAIN, HELD_OUT, *BEYOND, VARIED)
"""What can be required."""


def unmet(required: Sequence[str], numbers: Numbers) -> list[str]:
    """Why ``numbers`` do not meet each of ``required`` that they do not, by its name.

    Args:
        required: some of :data:`REQUIREMENTS`.
        numbers: of an evaluation.
    """
    reasons = {name: _reason(name, numbers) for name in required}
    return [f"{name}: {reason}" for name, reason in reasons.items() if reason]


def _reason(name: str, numbers: Numbers) -> str:
    """Why ``name`` is not met; empty where it is."""
    if name == GAIN:
        return _no_gain("mean reward", "reward_gain", numbers)
    if name == HELD_OUT:
        return _no_gain("mean held-out reward", f"{SETTING}_gain", numbers)
    if name == VARIED:
        return collapses(numbers).get("same_answer", "")
    surface = BEYOND[name]
    looped = collapses(numbers).get(REPETITION.name, "") if surface is REPETITION else ""
    return finding_on(surface, numbers) or looped or _none_beyond(surface, numbers)


def _none_beyond(surface: Surface, numbers: Numbers) -> str:
    """Why there is no gain that is shown to be one beyond ``surface``; a reward that has not risen has none,
    and one that no comparison could part is as it is."""
    if reason := _no_gain("mean reward", "reward_gain", numbers):
        return reason
    name = f"gain_beyond_{surface.name}"
    return _no_gain(f"mean reward at equal {surface.name}", name, numbers) if name in numbers else ""


def _no_gain(what: str, name: str, numbers: Numbers) -> str:
    if name not in numbers:
        return f"there is no {what} to compare: too few completions have one"
    if numbers[f"{name}_low"] > 0:
        return ""
    return (
        f"the {what} changed by {numbers[name]:+.4f} (95 % interval {interval_of(numbers, name)}), expected "
        "an interval above 0"
    )
