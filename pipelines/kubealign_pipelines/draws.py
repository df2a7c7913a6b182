"""Draws where they teach: more completions of those prompts whose best and worst are not settled.

    sample ×chunks ─ merge ─ rewards ×chunks ─ merge
           ─ (draw_more ─ sample ×chunks ─ merge ─ rewards ×chunks ─ merge ─ join_draws) for 8, 16, …

``sample_n: {from: 4, to: 16}`` asks every prompt for four completions, and those that are not resolved again
for twice as many, sixteen at most. Completions are known by prompt and number, so that none is drawn twice.
Of several rounds each does so with the draws of its own policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kfp.dsl import PipelineTask

from kubealign_components.config import did_you_mean, require
from kubealign_components.doubles import is_exact
from kubealign_components.draw_more.component import draw_more
from kubealign_components.draw_more.stage import DrawMoreConfig
from kubealign_components.errors import ConfigError
from kubealign_components.join_draws.component import join_draws
from kubealign_components.logprobs.component import logprobs
from kubealign_components.sample.component import sample
from kubealign_pipelines.pipeline_inputs import PipelineInputs

SAMPLE_N = "sample_n"
"""Name of the parameter."""
MOST = 8
"""Times as many draws at most as at first: each doubling is two fan-outs more."""
_LIKE = "such as {from: 4, to: 16}"
RANGE = {"from": "integer", "to": "integer", "same": "number", "within": "number"}
"""The keys of a range, and what JSON calls their types."""
_DEFAULTS = DrawMoreConfig()

Answered = Callable[[PipelineTask, str, int], PipelineTask]
"""Gives the rewarded completions of a task's prompts, under a name, a number of them for each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawRange:
    """How many completions are drawn of a prompt."""

    first: int
    """Of every prompt."""
    to: int
    """At most."""
    same: float
    """See :class:`DrawMoreConfig`, as for ``within``."""
    within: float

    @property
    def further(self) -> list[int]:
        """Completions of a prompt that is asked again, each time."""
        numbers, number = [], self.first
        while number < self.to:
            number = min(2 * number, self.to)
            numbers.append(number)
        return numbers


def draws_of(given: object) -> DrawRange | None:
    """The range that ``given`` for ``sample_n`` is; None for a number, of which every prompt gets as many.

    Raises:
        ConfigError: a range that cannot be used.
    """
    if not isinstance(given, Mapping):
        return None
    for name in given:
        names = f"a range of {', '.join(RANGE)}{did_you_mean(name, RANGE)}, {_LIKE}"
        require(name in RANGE, SAMPLE_N, given, names)
    first, to = (_number(given, name, None, f"a whole number for {name}, {_LIKE}") for name in ("from", "to"))
    for name, number in (("from", first), ("to", to)):
        require(is_exact(number), SAMPLE_N, given, f"a whole number for {name}, {_LIKE}")
    require(first >= 2, SAMPLE_N, given, f"from 2 or more, for a best and a worst, {_LIKE}")
    bounds = f"from fewer to more, {MOST} times as many at most, {_LIKE}"
    require(first < to <= MOST * first, SAMPLE_N, given, bounds)
    share, far = "same above 0 and below 1, such as 0.95", "within 0 or more, such as 0.1"
    same = _number(given, "same", _DEFAULTS.same, share)
    require(0 < same < 1, SAMPLE_N, given, share)
    within = _number(given, "within", _DEFAULTS.within, far)
    require(within >= 0, SAMPLE_N, given, far)
    return DrawRange(first=int(first), to=int(to), same=float(same), within=float(within))


def decide(given: object) -> object:
    """What of the parameter decides on the stages of a graph: that there are no samples, or a range."""
    return 0 if given == 0 else dict(given) if isinstance(given, Mapping) else None


def further_draws(
    inputs: PipelineInputs,
    draws: DrawRange,
    about: str = "",
    *,
    prompts: PipelineTask,
    first: PipelineTask,
    scored_first: bool,
    answered: Answered,
) -> PipelineTask:
    """The task that has every prompt with all of its rewarded completions.

    Args:
        inputs: of the pipeline.
        draws: how many.
        about: tells the tasks of one round from those of another.
        prompts: task that tokenised the prompts.
        first: task that rewarded as many completions of each as are drawn first.
        scored_first: whether log-probabilities are computed next, before selection.
        answered: samples and rewards.
    """
    joined, drawn, work = first, draws.first, {"work": inputs["work"]}
    for number in draws.further:
        name = f"of {number} {about}".rstrip()
        asked = inputs.placement(
            draw_more,
            name,
            prompts=prompts.outputs["dataset"],
            rewarded=joined.outputs["dataset"],
            drawn=drawn,
            to=draws.to,
            same=draws.same,
            within=draws.within,
            **{**work, **inputs.cut(sample)},
        )
        joined = inputs.placement(
            join_draws,
            name,
            earlier=joined.outputs["dataset"],
            later=answered(asked, name, number).outputs["dataset"],
            to=draws.to,
            **{**work, **(inputs.cut(logprobs) if scored_first and number == draws.to else {})},
        )
        drawn = number
    return joined


def _number(given: Mapping[str, object], name: str, default: float | None, expected: str) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(SAMPLE_N, given, expected)
    return value
