"""One training process of the reward model: alone in the caller's process, or one of many under torchrun."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from kubealign_components.config import from_mapping, require
from kubealign_components.data.chat.tokenizer import load_tokenizer
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.models import ModelFiles
from kubealign_components.data.principles import load_principles
from kubealign_components.data.schemas import PREFERENCES
from kubealign_components.data.stats import Stats
from kubealign_components.data.templates import load_reward_template
from kubealign_components.engines.loading import context_length, free_memory, load_config
from kubealign_components.engines.reward_model import RewardChat
from kubealign_components.engines.rewards import chosen_principles
from kubealign_components.preemption import Stop, preemptible
from kubealign_components.train_reward_model.config import RewardModelConfig
from kubealign_components.train_reward_model.held_out import deciding_principle, score_held_out
from kubealign_components.train_reward_model.measures import (
    HeldOutPair,
    by_principle,
    calibration,
    held_out_numbers,
)
from kubealign_components.train_reward_model.model import (
    PairScores,
    load_reward_model,
    rehearse_reward_model,
    save_reward_model,
    save_tokenizer,
)
from kubealign_components.train_reward_model.pairs import Pairs, tokenise_pairs
from kubealign_components.train_reward_model.trainer import RewardTrainer
from kubealign_components.training.arguments import training_arguments
from kubealign_components.training.metrics import means_of_last
from kubealign_components.training.models import check_machine
from kubealign_components.training.processes import Processes, joined
from kubealign_components.training.publishing import publish_model, stats_of
from kubealign_components.training.resuming import Checkpoints
from kubealign_components.training.step_trainer import Log

PROGRAM = "kubealign_components.train_reward_model.program:work"
_TOKENIZER, _STATS = "tokenizer", "stats.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a training process needs to know, in plain JSON values."""

    config: dict[str, Any]
    """Settings of :class:`RewardModelConfig`."""
    preferences: str
    """URI of the pairs."""
    output: str
    """URI of the model to make."""
    provenance: dict[str, Any]
    """Of that model."""
    policy_digest: str
    """What the saved model says of its policy."""
    start: str = ""
    """URI of the reward model to start from; empty for the policy with a new head."""
    checkpoints: str = ""
    """URI of this run's checkpoints; empty for none."""


def work(**members: Any) -> None:
    """Train; the first process scores the held-out pairs and publishes the model.

    Args:
        members: those of a :class:`Job`.

    Raises:
        ConfigError, DataError, EngineError: settings, pairs or a model that cannot be used.
        Preempted: SIGTERM came; a checkpoint was published where the job has a place for it.
    """
    job = Job(**members)
    config = from_mapping(RewardModelConfig, job.config, "train_reward_model")
    check_machine(config)
    with preemptible("train reward model") as stop, joined() as processes:
        policy = processes.find_model(config.policy, config.revision)
        pairs = processes.once("pairs", lambda folder: _prepare(job, config, policy, folder))
        steps = _train(job, config, processes, policy.path, pairs, stop)
        if processes.first:
            free_memory()  # of the training
            _publish(job, config, steps, pairs, processes.folder / "model")


def _prepare(job: Job, config: RewardModelConfig, policy: ModelFiles, folder: Path) -> None:
    """Write the tokenizer of the reward model, the tokens of the pairs and their counts to ``folder``."""
    preferences = Dataset.open(job.preferences, PREFERENCES)
    template = load_reward_template(config.template)
    shown = chosen_principles(config.principles, config.principle_names) if config.principles else []
    tokenizer = save_tokenizer(policy.path, folder / _TOKENIZER, template, shown)
    stats = tokenise_pairs(
        preferences,
        RewardChat(tokenizer, policy.name),
        max_length=config.max_length or context_length(load_config(policy.path), tokenizer),
        margin=config.margin,
        folder=folder,
    )
    left = stats.counts["train_pairs"]
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(stats.dropped.items())) or "none"
    require(left > 0, "preferences", preferences.manifest.slug, f"pairs to train on (dropped: {reasons})")
    (folder / _STATS).write_text(json.dumps(stats.to_json()))


def _train(
    job: Job, config: RewardModelConfig, processes: Processes, policy: Path, pairs: Path, stop: Stop
) -> Log:
    """Train, and leave the model in the folder of the first process's node; gives the log."""
    start = processes.find_model(job.start).path if job.start else None
    if processes.first:
        rehearse_reward_model(config, policy)
    checkpoints = Checkpoints(job.checkpoints, config, processes, stop)
    arguments = training_arguments(config, processes.folder / "run", universal=checkpoints.universal)
    train, validation = (Pairs(pairs / f"{split}.arrow") for split in ("train", "validation"))
    set_seed(config.seed)
    tokenizer = load_tokenizer(pairs / _TOKENIZER)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    reward_model = load_reward_model(config, policy, start, pad)
    model = PairScores(reward_model)
    # What FSDP wraps one by one: without the names it would gather the whole model at once.
    model._no_split_modules = getattr(reward_model, "_no_split_modules", None)
    trainer = RewardTrainer(config, model, arguments, train, validation, checkpoints.callbacks)
    trainer.train(resume_from_checkpoint=checkpoints.resume)
    checkpoints.pauses.check()
    trainer.evaluate_at_the_end()
    state = trainer.gathered()
    # From here on a model is loaded as a whole again, also after ZeRO-3.
    unset_hf_deepspeed_config()
    if processes.first:
        save_reward_model(
            config, reward_model, policy, start, pairs / _TOKENIZER, processes.folder / "model", state
        )
    return trainer.training_log()


def _publish(job: Job, config: RewardModelConfig, steps: Log, prepared: Path, folder: Path) -> None:
    preferences = Dataset.open(job.preferences, PREFERENCES)
    pairs = list(_held_out(config, preferences, ModelFiles(name="model", path=folder)))
    stats = stats_of(json.loads((prepared / _STATS).read_text()))
    _summarise(stats, steps, pairs)
    extra = {
        "adapter": False,  # the adapters are in the weights; the folder adapter/ has them once more
        "policy": job.policy_digest,
        "held_out": {"calibration": calibration(pairs), "by_principle": by_principle(pairs)},
    }
    publish_model(folder, job.output, job.provenance, steps, stats, extra)


def _held_out(config: RewardModelConfig, preferences: Dataset, files: ModelFiles) -> Iterator[HeldOutPair]:
    """The held-out pairs under the saved model."""
    principles = load_principles(config.principles) if config.principles else None
    for row, (preferred, other), opposite in score_held_out(config, preferences, files, principles):
        yield HeldOutPair(
            margin=preferred - other,
            principles=tuple((p["name"], p["negated"]) for p in row["principles"] or ()),
            deciding=deciding_principle(row),
            opposite_margin=opposite[0] - opposite[1] if opposite else None,
        )


def _summarise(stats: Stats, steps: Log, pairs: Sequence[HeldOutPair]) -> None:
    """Add to the counts: steps, the means of the last ones, and the measures of held-out pairs."""
    stats.counts["steps"] = steps[-1][0]
    stats.counts["held_out_without_opposite"] = sum(
        bool(pair.principles) and pair.opposite_margin is None for pair in pairs
    )
    stats.numbers = means_of_last(steps) | held_out_numbers(pairs)
