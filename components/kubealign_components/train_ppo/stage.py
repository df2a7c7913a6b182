"""train_ppo: align the policy by proximal policy optimisation, under a reward model, functions, or both.

One base model is in memory, with an adapter for each of policy, value and reward. A retry of the same
run goes on from its last checkpoint; a finished one is kept.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kubealign_components.config import semantic_params
from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import Provenance, derive, digest
from kubealign_components.data.models import (
    ADAPTER_CONFIG,
    ModelFiles,
    find_adapter,
    find_model,
    require_policy,
)
from kubealign_components.data.schemas import MODEL
from kubealign_components.data.stats import Stats
from kubealign_components.engines.rewards import Rewarder, RewardSpec
from kubealign_components.errors import ConfigError
from kubealign_components.train.checkpoints import CheckpointStore
from kubealign_components.train.launch import launch, processes_of
from kubealign_components.train.ppo.config import PpoConfig
from kubealign_components.train.ppo.model import check_machine
from kubealign_components.train.ppo.prompts import PrincipleDraw
from kubealign_components.train.ppo.worker import MODEL_FOLDER, OUTCOME_FILE, PROGRAM, Job
from kubealign_components.train.publishing import checkpoint_uri, finished_run, publish_folder
from kubealign_components.train.reward.model import ADAPTER_FOLDER

VERSION = 1
_SUMMARY_STEPS = 10
_PLACES = ("policy", "revision", "policy_adapter", "principles", "interventions")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Models:
    """What a run starts from, as folders on this machine."""

    policy: ModelFiles
    adapter: ModelFiles | None
    reward_model: Path | None


def run(config: PpoConfig, *, prompts: Dataset, reward_model: Dataset | None = None, output: str) -> Stats:
    """Train and write the aligned policy to ``output``: a Hugging Face directory, ``kubealign.model/v1``.

    Args:
        config: the settings.
        prompts: ``kubealign.tokenized/v1``, tokenised for the policy.
        reward_model: ``kubealign.model/v1`` with an ``adapter/`` on the policy's base (``train_reward_model``
            with adapter lora or qlora); None for reward functions alone.
        output: URI of the model to make.

    Raises:
        ConfigError: settings that do not fit the machine, the data or each other, prompts of another
            policy, or a reward model on another base or without ``adapter/``.
        DataError: prompts without tokens, or metadata that cannot be used.
        EngineError: a model that cannot be loaded, a missing head, or numbers that are not finite.
    """
    check_machine(config)
    processes = processes_of(config.processes)
    if reward_model is None and not config.functions:
        raise ConfigError("functions", config.functions, "a reward function, or a reward model as input")
    models = _models(config, reward_model)
    require_policy(models.policy, prompts)
    provenance = _provenance(config, prompts, reward_model, models)
    finished = finished_run(output, provenance)
    if finished is not None:
        return finished
    with tempfile.TemporaryDirectory(prefix="kubealign-ppo-") as folder:
        job = _job(config, prompts, models, provenance, Path(folder))
        launch(PROGRAM, asdict(job), Path(folder), processes=processes, sharded=False)
        files = publish_folder(Path(folder) / MODEL_FOLDER, output)
        outcome = json.loads((Path(folder) / OUTCOME_FILE).read_text())
    stats = _summary(prompts, outcome)
    with DatasetWriter(output, MODEL, provenance) as writer:
        writer.write_rows([{"step": step, "metrics": json.dumps(m)} for step, m in outcome["log"]])
        extra = {"files": files, "adapter": not config.merge_adapter, "samples": outcome["samples"]}
        writer.commit(stats, extra)
    return stats


def _models(config: PpoConfig, reward_model: Dataset | None) -> _Models:
    policy = find_model(config.policy, config.revision)
    return _Models(
        policy=policy,
        adapter=find_adapter(config.policy_adapter, "policy_adapter") if config.policy_adapter else None,
        reward_model=_reward_folder(reward_model, policy) if reward_model else None,
    )


def _reward_folder(reward_model: Dataset, policy: ModelFiles) -> Path:
    """The reward model's folder on this machine.

    Raises:
        ConfigError: it was trained whole, or on another base than the policy.
    """
    folder = find_model(reward_model.uri).path
    if not (folder / ADAPTER_FOLDER / ADAPTER_CONFIG).is_file():
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
    return folder


def _provenance(
    config: PpoConfig, prompts: Dataset, reward_model: Dataset | None, models: _Models
) -> Provenance:
    params = {k: v for k, v in semantic_params(config).items() if k not in _PLACES}
    used: dict[str, Any] = {"policy": models.policy.identity() | ChatTemplate(models.policy).identity}
    if models.adapter:
        used["policy_adapter"] = models.adapter.adapter_identity()
    if config.functions:
        used["rewards"] = Rewarder(RewardSpec(functions=config.functions)).identity
    if reward_model:
        used["reward_model"] = {"digest": digest(reward_model.manifest.extra.get("files", {}))}
        used |= PrincipleDraw(config).identity
    inputs = {"prompts": prompts} | ({"reward_model": reward_model} if reward_model else {})
    return derive(
        "train_ppo",
        VERSION,
        params,
        inputs=inputs,
        models=used,
        slug=["ppo", f"kl{config.kl_coef:g}", f"lr{config.learning_rate:g}"],
    )


def _job(
    config: PpoConfig,
    prompts: Dataset,
    models: _Models,
    provenance: Provenance,
    folder: Path,
) -> Job:
    # A checkpoint holds whole adapters: it fits any number of processes.
    checkpoints = checkpoint_uri(config.work, "train_ppo", provenance, "ppo") if config.work else ""
    resume = None
    if checkpoints:
        resume = CheckpointStore(uri=checkpoints, keep=config.keep_checkpoints).newest(folder / "resume")
    if resume is not None:
        log.info("going on from %s", resume.name)
    return Job(
        config=asdict(config),
        prompts=prompts.uri,
        policy=str(models.policy.path),
        folder=str(folder),
        policy_adapter=str(models.adapter.path) if models.adapter else "",
        reward_model=str(models.reward_model or ""),
        checkpoints=checkpoints,
        resume=str(resume or ""),
    )


def _summary(prompts: Dataset, outcome: Mapping[str, Any]) -> Stats:
    """Counts, the means of the last steps, and the evaluation."""
    steps: list[tuple[int, dict[str, float]]] = outcome["log"]
    stats = Stats(rows_in=prompts.rows, rows_out=prompts.rows - outcome["too_long"])
    stats.drop("prompt_too_long", outcome["too_long"])
    stats.counts.update({"steps": steps[-1][0]})
    stats.counts.update({name: outcome[name] for name in ("train_prompts", "held_out_prompts")})
    numbers: dict[str, list[float]] = {}
    for _, metrics in steps[-_SUMMARY_STEPS:]:
        for name, value in metrics.items():
            numbers.setdefault(name, []).append(value)
    stats.numbers = {name: sum(values) / len(values) for name, values in numbers.items()}
    return stats
