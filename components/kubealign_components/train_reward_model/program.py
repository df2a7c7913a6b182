"""How ``train_reward_model`` trains, in each process of its run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from kubealign_components.config import require
from kubealign_components.data.chat.ends import embedding_rows
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
from kubealign_components.train_reward_model.config import RewardModelConfig
from kubealign_components.train_reward_model.held_out import (
    ScoredPair,
    deciding_principle,
    score_held_out,
    steered_pairs,
)
from kubealign_components.train_reward_model.measures import (
    HeldOutPair,
    by_principle,
    calibration,
    held_out_numbers,
)
from kubealign_components.train_reward_model.model import (
    PairScores,
    load_reward_model,
    padding_id,
    rehearse_reward_model,
    save_reward_model,
    save_tokenizer,
)
from kubealign_components.train_reward_model.pairs import Pairs, tokenise_pairs
from kubealign_components.train_reward_model.trainer import RewardTrainer
from kubealign_components.training.arguments import training_arguments
from kubealign_components.training.metrics import means_of_last
from kubealign_components.training.models import check_machine
from kubealign_components.training.program import Job, Run, Trained
from kubealign_components.training.resuming import Checkpoints
from kubealign_components.training.step_trainer import Log

_TOKENIZER, _STATS = "tokenizer", "stats.json"
_SHOWN = 8
"""Held-out pairs that the report shows with their texts."""


def train(run: Run[RewardModelConfig]) -> Trained | None:
    """Train on the pairs; the first process saves the model and scores the held-out pairs.

    Raises:
        ConfigError, DataError, EngineError: settings, pairs or a model that cannot be used.
    """
    config, processes = run.config, run.processes
    check_machine(config.adapter)
    policy = processes.find_model(config.policy, config.revision)
    pairs = processes.once("pairs", lambda folder: _prepare(run.job, config, policy, folder))
    steps = _train(run, policy.path, pairs)
    if not processes.first:
        return None
    free_memory()  # of the training
    return _scored(run, steps, pairs)


def _prepare(job: Job, config: RewardModelConfig, policy: ModelFiles, folder: Path) -> None:
    """Write the tokenizer of the reward model, the tokens of the pairs and their counts to ``folder``."""
    preferences = Dataset.open(job.inputs["preferences"], PREFERENCES)
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


def _train(run: Run[RewardModelConfig], policy: Path, pairs: Path) -> Log:
    """Train, and leave the model in the folder of the first process's node; gives the log."""
    config, processes, inputs = run.config, run.processes, run.job.inputs
    start = processes.find_model(inputs["start"]).path if "start" in inputs else None
    if processes.first:
        rehearse_reward_model(config, policy)
    checkpoints = Checkpoints(run.job.checkpoints, config, processes, run.stop)
    arguments = training_arguments(config, processes.folder / "run", universal=checkpoints.universal)
    train, validation = (Pairs(pairs / f"{split}.arrow") for split in ("train", "validation"))
    set_seed(config.seed)
    tokenizer = load_tokenizer(pairs / _TOKENIZER)
    pad = padding_id(tokenizer, embedding_rows(policy))
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
        save_reward_model(config, reward_model, policy, start, pairs / _TOKENIZER, run.folder, state)
    return trainer.training_log()


def _scored(run: Run[RewardModelConfig], steps: Log, prepared: Path) -> Trained:
    """The saved model on the held-out pairs."""
    config = run.config
    preferences = Dataset.open(run.job.inputs["preferences"], PREFERENCES)
    principles = load_principles(config.principles) if config.principles else None
    model = ModelFiles(name="model", path=run.folder)
    scored = list(score_held_out(config, preferences, model, principles))
    pairs = [_measured(pair) for pair in scored]
    stats = Stats.from_json(json.loads((prepared / _STATS).read_text(encoding="utf-8")))
    _summarise(stats, steps, pairs)
    extra = {
        "adapter": False,  # the adapters are in the weights; the folder adapter/ has them once more
        "policy": run.job.notes["policy_digest"],
        "held_out": {
            "calibration": calibration(pairs),
            "by_principle": by_principle(pairs),
            "steered": list(steered_pairs(scored, principles, _SHOWN)),
        },
    }
    return Trained(steps=steps, stats=stats, extra=extra)


def _measured(pair: ScoredPair) -> HeldOutPair:
    row, (preferred, other), opposite = pair
    return HeldOutPair(
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
