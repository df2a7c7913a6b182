"""What stages have to know of each other's settings for an estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kubealign_components.engines.judge import JudgeSpec, judging_principles
from kubealign_components.errors import KubeAlignError
from kubealign_pipelines.graph import Task
from kubealign_pipelines.variants import swept_stages

PROMPT_LIMIT = 2048
"""Tokens of the longest prompt where no stage of the pipeline limits them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What stages have to know of each other's settings."""

    prompt_limit: int
    """Most tokens of a prompt."""
    completions: int
    """Of each prompt that is rewarded."""
    selected: int
    """Completions of each prompt that are trained on."""
    pairs: int
    """Pairs of each prompt that are trained on; 0 where single completions are."""
    scored: int
    """Completions of each prompt whose log-probability is computed."""
    share: float = 1.0
    """Of the prompts that are not held out, which a round samples."""
    validation_fraction: float = 0.0
    """Share of the prompts that is held out, of which every round samples all."""
    asked: float = 1.0
    """Share of the prompts that the task works on."""

    @classmethod
    def of(cls, configs: Mapping[str, Any], values: Mapping[str, object]) -> Recipe:
        """The recipe of the stages' configs by function; ``evaluate`` samples as ``sample`` did."""
        sampler = configs.get("evaluate") or configs.get("sample")  # a pipeline of one's own may have neither
        filtered, sampled, drawn, select = map(configs.get, ("filter", "sample", "draw_more", "select"))
        completions = drawn.to if drawn else sampler.sampling.n if sampler else 1
        pairs = select.pairs_per_prompt if select is not None and select.pairwise else 0
        selected = min(completions if sampled else 2 * pairs, 2 * pairs) if pairs else completions
        before = values.get("logprobs_order") == "before" or "select" in swept_stages(values)
        return cls(
            prompt_limit=filtered.max_prompt_len if filtered else PROMPT_LIMIT,
            completions=completions,
            selected=selected,
            pairs=pairs,
            scored=completions if before else selected,
            share=sampled.share if sampled else 1.0,
            validation_fraction=sampled.validation_fraction if sampled else 0.0,
        )

    def of_task(self, function: str, number: int) -> Recipe:
        """This recipe for the ``number``-th task of a stage, counted from 1: log-probabilities and training
        are of what all rounds so far have sampled."""
        share = min(self.share * number, 1.0) if function in ("logprobs", "train") else self.share
        return replace(self, asked=share + (1 - share) * self.validation_fraction)


def new_draws(taken: Sequence[tuple[Task, Any]]) -> dict[str, int]:
    """Where draws go on for some prompts, the completions of each that are new to a task that samples, by
    what stands behind the stage in its title, as if every prompt were asked each time."""
    if all(task.function != "draw_more" for task, _ in taken):
        return {}
    drawn = {
        task.title.removeprefix("sample"): c.sampling.n for task, c in taken if task.function == "sample"
    }
    numbers = sorted({*drawn.values()})  # of several rounds each has all
    before = dict(zip(numbers, [0, *numbers]))
    return {about: n - before[n] for about, n in drawn.items()}


def of_new_draws(task: Task, config: Any, recipe: Recipe, new: Mapping[str, int]) -> tuple[Any, Recipe]:
    """Settings and recipe of ``task`` with what is ``new`` to it: the rest it takes over."""
    number = new.get(task.title.removeprefix(task.function), 0)
    if number and task.function == "sample":
        config = replace(config, sampling=replace(config.sampling, n=number))
    if number and task.function == "rewards":
        recipe = replace(recipe, completions=number)
    return config, recipe


def questions_on_pair(judge: JudgeSpec, usual: int) -> int:
    """Questions on a pair, in both orders, that the model of ``judge`` itself answers; ``usual`` where
    neither functions nor an endpoint judge in its place."""
    if judge.endpoint or not judge.functions:
        return 0 if judge.endpoint else usual
    by_functions = {one.principle for one in judge.functions}
    try:
        return 2 * len(set(judging_principles(judge).names) - by_functions)
    except KubeAlignError:  # its file cannot be read from here
        return max(usual - 2 * len(by_functions), 0)
