"""train_ppo: align the policy by proximal policy optimisation, under a reward model, functions, or both.

One base model is in memory, with an adapter for each of policy, value and reward. A retry of the same
run goes on from its last checkpoint; a finished one is kept.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from kubealign_components.config import semantic_params
from kubealign_components.data.chat import DeferredTemplate, stored_settings
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import Provenance, derive, digest
from kubealign_components.data.model_files import ADAPTER_CONFIG, ADAPTER_FOLDER
from kubealign_components.data.models import (
    ModelFiles,
    find_adapter,
    find_model,
    require_policy,
)
from kubealign_components.data.stats import Stats
from kubealign_components.engines.dtypes import resolved_dtype, saved_dtype_name
from kubealign_components.engines.rewards import Rewarder, RewardSpec, function_params
from kubealign_components.errors import ConfigError
from kubealign_components.store import join, store_for
from kubealign_components.train_ppo.config import PpoConfig
from kubealign_components.train_ppo.prompts import PrincipleDraw
from kubealign_components.training.launch import Where, pinned, trained_on
from kubealign_components.training.program import Job, Program, Run, Trained, train_model
from kubealign_components.training.publishing import checkpoint_uri

if TYPE_CHECKING:
    from kubealign_components.training.launch import Launcher

STAGE = "train_ppo"
VERSION = 7
_PLACES = ("policy", "revision", "policy_adapter", "principles", "interventions")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Models:
    """What a run starts from, as folders on this machine."""

    policy: ModelFiles
    adapter: ModelFiles | None


def run(
    config: PpoConfig,
    *,
    prompts: Dataset,
    reward_model: Dataset | None = None,
    output: str,
    launcher: Launcher | None = None,
) -> Stats:
    """Train and write the aligned policy to ``output``: a Hugging Face directory, ``kubealign.model/v1``.

    Args:
        config: the settings.
        prompts: ``kubealign.tokenized/v1``, tokenised for the policy.
        reward_model: ``kubealign.model/v1`` with an ``adapter/`` on the policy's base (``train_reward_model``
            with adapter lora or qlora); None for reward functions alone.
        output: URI of the model to make.
        launcher: runs the training processes; None for this machine.

    Raises:
        ConfigError: settings that do not fit the machine, the data or each other, prompts of another
            policy, or a reward model on another base or without ``adapter/``.
        DataError: prompts without tokens, or metadata that cannot be used.
        EngineError: a model that cannot be loaded, a missing head, or numbers that are not finite.
    """
    if reward_model is None and not config.functions:
        raise ConfigError("functions", config.functions, "a reward function, or a reward model as input")
    config = replace(config, dtype=resolved_dtype(config.dtype, trained_on(launcher)))
    models = _models(config, reward_model)
    require_policy(models.policy, prompts)
    provenance = _provenance(config, prompts, reward_model, models)
    return train_model(
        PROGRAM,
        config,
        _job(config, prompts, reward_model, models, provenance, output),
        provenance,
        where=Where(nodes=config.nodes, processes=config.processes, sharded=False),
        launcher=launcher,
    )


def _models(config: PpoConfig, reward_model: Dataset | None) -> _Models:
    policy = find_model(config.policy, config.revision, weights=False)
    if reward_model:
        _check_reward_model(reward_model, policy)
    return _Models(
        policy=policy,
        adapter=find_adapter(config.policy_adapter, "policy_adapter") if config.policy_adapter else None,
    )


def _check_reward_model(reward_model: Dataset, policy: ModelFiles) -> None:
    """Refuse a reward model without adapter on the policy's base.

    Raises:
        ConfigError: it was trained whole, or on another base than the policy.
    """
    if not store_for(reward_model.uri).exists(join(reward_model.uri, ADAPTER_FOLDER, ADAPTER_CONFIG)):
        raise ConfigError(
            "reward_model",
            reward_model.uri,
            f"a folder {ADAPTER_FOLDER}/ in it, which a reward model that was trained whole lacks: train it "
            "with adapter=lora or qlora on the policy's base, or use it in the rewards stage instead",
        )
    base = reward_model.manifest.provenance.step["models"].get("policy", {}).get("digest")
    if base is not None and base != policy.identity()["digest"]:
        raise ConfigError(
            "reward_model",
            reward_model.uri,
            f"one on the base {policy.name} with digest {policy.identity()['digest'][:12]}: its adapter was "
            f"trained on a base with digest {base[:12]}",
        )


def _provenance(
    config: PpoConfig, prompts: Dataset, reward_model: Dataset | None, models: _Models
) -> Provenance:
    params = {k: v for k, v in semantic_params(config).items() if k not in _PLACES}
    params["functions"] = function_params(config.functions)
    params["save_dtype"] = saved_dtype_name(config.save_dtype, models.policy.path, models.policy.elsewhere)
    template = DeferredTemplate(models.policy, stored_settings(prompts))
    used: dict[str, object] = {"policy": models.policy.identity() | template.identity}
    if models.adapter:
        used["policy_adapter"] = models.adapter.adapter_identity()
    if config.functions:
        with closing(Rewarder(RewardSpec(functions=config.functions))) as rewarder:
            used["rewards"] = rewarder.identity
    if reward_model:
        used["reward_model"] = {"digest": digest(reward_model.manifest.extra.get("files", {}))}
        used |= PrincipleDraw(config).identity
    inputs = {"prompts": prompts} | ({"reward_model": reward_model} if reward_model else {})
    return derive(
        STAGE,
        VERSION,
        params,
        inputs=inputs,
        models=used,
        slug=["ppo", f"kl{config.kl_coef:g}", f"lr{config.learning_rate:g}"],
    )


def _job(
    config: PpoConfig,
    prompts: Dataset,
    reward_model: Dataset | None,
    models: _Models,
    provenance: Provenance,
    output: str,
) -> Job:
    inputs = {"prompts": prompts.uri} | ({"reward_model": reward_model.copy} if reward_model else {})
    return Job(
        stage=STAGE,
        config=asdict(pinned(config, models.policy.path)),
        inputs=inputs,
        output=output,
        provenance=asdict(provenance),
        checkpoints=checkpoint_uri(config.work, STAGE, provenance, "ppo") if config.work else "",
    )


def _train(run: Run[PpoConfig]) -> Trained | None:
    from kubealign_components.train_ppo.program import train

    return train(run)


PROGRAM = Program(stage=STAGE, config=PpoConfig, train=_train)
