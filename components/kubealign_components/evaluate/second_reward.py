"""A second, held-out reward: one that nothing was trained on, and what it says of the gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kubealign_components.config import require
from kubealign_components.data.bootstrap import mean_numbers
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import canonical_json
from kubealign_components.data.lineage import steps_of
from kubealign_components.data.stats import Stats
from kubealign_components.engines.rewards import Rewarder, RewardSpec, reward_inputs, reward_params
from kubealign_components.evaluate.answers import ALIGNED, REFERENCE, ComparedPrompt
from kubealign_components.evaluate.controlled import Floats, OfPrompt

SETTING = "held_out_reward"
"""Of ``evaluate``; also what the recipe calls its identity, and the numbers begin with."""


ANOTHER = "another reward than the one that was trained on, and no function or model of it"


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondRewards:
    """What both rewards give to the answers to a prompt, those without a second reward left out."""

    first: OfPrompt | None
    """None where there is no first reward."""
    second: OfPrompt


def require_held_out(second: Rewarder, first: Rewarder | None, parents: Sequence[Dataset]) -> None:
    """Raise :class:`ConfigError` where a function or the model of ``second`` is one of the reward that is
    compared by, or of those that ``parents`` were made with, at whatever weight."""
    used = [(reward_params(first.spec), first.identity)] if first else []
    for dataset in parents:
        steps = steps_of(dataset.manifest.fingerprint, dataset.manifest.recipe)
        used += [(dict(step.params), step.models["reward"]) for step in steps if step.stage == "rewards"]
    trained_on = {part for one in used for part in _parts(*one)}
    own = _parts(reward_params(second.spec), second.identity)
    require(trained_on.isdisjoint(own), SETTING, second.spec.slug, ANOTHER)


def check_parts(second: RewardSpec, first: RewardSpec | None) -> None:
    """The same as :func:`require_held_out` by settings alone, before anything is loaded."""
    trained_on = _named(first) if first else []
    require(not any(part in trained_on for part in _named(second)), SETTING, second.slug, ANOTHER)


def _named(spec: RewardSpec) -> list[list[object]]:
    """What a reward is the sum of, as the settings name it."""
    model: list[object] = [spec.model, spec.model_revision, spec.principles, spec.principle_names]
    functions: list[list[object]] = [[one.function, one.source, one.settings] for one in spec.functions]
    return functions + ([model] if spec.model else [])


def _parts(params: Mapping[str, object], identity: Mapping[str, object]) -> set[str]:
    """What a reward is the sum of, without weights and limits: its model, and each function with settings."""
    parts = (
        {canonical_json([identity["model"], identity.get("principles")])} if "model" in identity else set()
    )
    functions, identities = params["functions"], identity["functions"]
    assert isinstance(functions, list) and isinstance(identities, Mapping)
    for one in functions:
        name = one["function"]
        parts.add(canonical_json([name.rpartition(":")[2], one["settings"], identities[name]]))
    return parts


def second_rewards(
    rewarder: Rewarder, prompts: Sequence[ComparedPrompt], stats: Stats
) -> list[SecondRewards]:
    """Both rewards of every answer that gets a second one; prompts without any on a side are left out.

    Args:
        rewarder: of the second reward; it is closed here.
        prompts: with both sides' completions.
        stats: where what is left out is counted.
    """
    sides = [_scored(rewarder, prompts, side, stats) for side in (REFERENCE, ALIGNED)]
    rewarder.close()
    made = []
    for before, after in zip(*sides, strict=True):
        if len(before) and len(after):
            first = OfPrompt(reference=before[:, 0], aligned=after[:, 0])
            second = OfPrompt(reference=before[:, 1], aligned=after[:, 1])
            unknown = bool(np.isnan(before).any() or np.isnan(after).any())
            made.append(SecondRewards(first=None if unknown else first, second=second))
    stats.counts["prompts_without_held_out_reward"] += len(prompts) - len(made)
    return made


def second_numbers(rewards: Sequence[SecondRewards], *, seed: int) -> dict[str, float]:
    """The second reward's gain, and how often it agrees with the first one.

    ``held_out_reward_agreement`` is the share of the comparisons of an aligned with a reference answer, in
    which neither reward ties, that both decide alike; one half is what unrelated rewards give.

    Args:
        rewards: of each prompt.
        seed: of the bootstrap.
    """
    if len(rewards) < 2:
        return {}
    means = np.array([(r.second.reference.mean(), r.second.aligned.mean()) for r in rewards])
    numbers = {f"{SETTING}_{side}": float(means[:, i].mean()) for i, side in enumerate((REFERENCE, ALIGNED))}
    numbers |= mean_numbers(f"{SETTING}_gain", means[:, 1] - means[:, 0], seed=seed)
    shares = [share for r in rewards if r.first and (share := _agreement(r.first, r.second)) is not None]
    if len(shares) > 1:
        numbers |= mean_numbers(f"{SETTING}_agreement", np.array(shares), seed=seed)
    return numbers | {f"{SETTING}_prompts": float(len(rewards))}


def _scored(rewarder: Rewarder, prompts: Sequence[ComparedPrompt], side: str, stats: Stats) -> list[Floats]:
    """By prompt the first and the second reward of those completions that have the second, shape (n, 2)."""
    scores = iter(rewarder.score([i for p in prompts for i in reward_inputs(p.row, p.completions(side))]))
    made = []
    for prompt in prompts:
        both = [(c["reward"], next(scores)) for c in prompt.completions(side)]
        kept = [pair for pair in both if pair[1] is not None]
        stats.counts[f"{side}_without_held_out_reward"] += len(both) - len(kept)
        made.append(np.array(kept, dtype=np.float64).reshape(-1, 2))
    return made


def _agreement(first: OfPrompt, second: OfPrompt) -> float | None:
    """Share of the comparisons of both policies that both rewards decide alike; None where there are none."""
    signs = [np.sign(own.aligned[:, None] - own.reference[None, :]) for own in (first, second)]
    product = signs[0] * signs[1]
    decided = product != 0
    return float((product[decided] > 0).mean()) if decided.any() else None
