"""Whether two policies may be compared: the same prompts, sampling and rewards, on prompts kept apart."""

from __future__ import annotations

import json
from collections.abc import Sequence

from kubealign_components.data.chat import ChatTemplate, TemplateSettings
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import canonical_json
from kubealign_components.data.lineage import LineageStep, steps_of
from kubealign_components.data.models import ModelFiles
from kubealign_components.data.schemas import TokenizedRow
from kubealign_components.engines.generation import SamplingSpec, recorded
from kubealign_components.engines.rewards import Rewarder, reward_params
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.json_types import JsonObject


def check_sampling(spec: SamplingSpec, rewarded: Dataset) -> LineageStep:
    """The step that sampled the reference completions, if it did so as ``spec`` says.

    Raises:
        ConfigError: a setting differs, or nothing was sampled; names it and both values.
    """
    step = last_step(rewarded, "sample")
    if step is None:
        raise ConfigError(
            "rewarded", rewarded.uri, "a dataset whose reference completions were made by `sample`"
        )
    why = "the reference completions were sampled with it"
    _check_equal("sampling", recorded(spec), step.params["sampling"], why)
    return step


def check_rewards(rewarder: Rewarder, rewarded: Dataset) -> None:
    """Raise :class:`ConfigError` unless the rewards of ``rewarded`` are those that ``rewarder`` gives."""
    step = last_step(rewarded, "rewards")
    if step is None:
        raise ConfigError("rewarded", rewarded.uri, "a dataset that was rewarded by `rewards`")
    why = "the reference completions were rewarded with it"
    _check_equal("reward", reward_params(rewarder.spec), step.params, why)
    _check_equal("reward.identity", rewarder.identity, step.models["reward"], why)


def check_split(model: Dataset, fraction: float, seed: int) -> None:
    """Raise :class:`ConfigError` when held-out prompts of this split may have been trained on."""
    step = last_step(model, "train_ppo") or last_step(model, "mix")
    if step is None:
        return
    settings = (("validation_fraction", "validation_fraction", fraction), ("split_seed", "seed", seed))
    for name, there, ours in settings:
        if step.params[there] != ours:
            raise ConfigError(
                name,
                ours,
                f"{step.params[there]!r}, which `{step.stage}` held prompts of {model.uri} out with",
            )


def check_tokens(
    aligned: ModelFiles,
    ends: Sequence[int],
    row: TokenizedRow,
    settings: TemplateSettings | None = None,
) -> None:
    """Raise :class:`DataError` unless the aligned model begins and ends a turn as the reference did.

    Args:
        aligned: the aligned model.
        ends: the tokens that ended the reference's turns.
        row: a prompt with its stored token ids.
        settings: of the template, that the ids were made with.
    """
    check_template(ChatTemplate(aligned, settings), ends, row)


def check_template(template: ChatTemplate, ends: Sequence[int], row: TokenizedRow) -> None:
    """As :func:`check_tokens`, of the aligned model by its template."""
    aligned, own = template.model, list(template.end_ids)
    if own != list(ends):
        raise DataError(
            f"{aligned.path} ends turns with tokens {own}, the reference with {list(ends)}; give it the "
            "generation_config.json and tokenizer of the policy"
        )
    tools = json.loads(row["tools"]) if row["tools"] else None
    ids = template.prompt_ids(json.loads(row["messages"]), tools)
    if ids != list(row["prompt_token_ids"]):
        raise DataError(
            f"{aligned.path} tokenises prompt {row['prompt_id']} to {len(ids)} tokens, other than the "
            f"{len(row['prompt_token_ids'])} stored ones; give it the policy's tokenizer and chat template"
        )


def last_step(dataset: Dataset, stage: str) -> LineageStep | None:
    """The nearest step of ``stage`` on the way to ``dataset``."""
    steps = steps_of(dataset.manifest.fingerprint, dataset.manifest.recipe)
    return next((step for step in reversed(steps) if step.stage == stage), None)


def _check_equal(where: str, ours: JsonObject, theirs: JsonObject, why: str) -> None:
    for name, value in json.loads(canonical_json(ours)).items():
        if value != theirs.get(name):
            raise ConfigError(f"{where}.{name}", value, f"{theirs.get(name)!r}: {why}")
