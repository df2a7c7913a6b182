"""One training process of the reward model: alone in the caller's process, or one of many under torchrun."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from kubealign_components.config import from_mapping
from kubealign_components.train.arguments import training_arguments
from kubealign_components.train.checkpoints import CheckpointStore, PublishCheckpoints
from kubealign_components.train.reward.config import RewardModelConfig
from kubealign_components.train.reward.model import PairScores, load_reward_model, save_reward_model
from kubealign_components.train.reward.pairs import Pairs
from kubealign_components.train.reward.trainer import RewardTrainer

PROGRAM = "kubealign_components.train.reward.worker:work"
MODEL_FOLDER, TOKENIZER_FOLDER, PAIRS_FOLDER = "model", "tokenizer", "pairs"
LOG_FILE = "log.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a training process needs to know, in plain JSON values."""

    config: dict[str, Any]
    """Settings of :class:`RewardModelConfig`."""
    policy: str
    """Local directory of the policy."""
    folder: str
    """Local folder with the tokens of the pairs (``pairs/``) and the tokenizer (``tokenizer/``), for the
    trained model (``model/``), the log (``log.json``) and passing files."""
    start: str = ""
    """Local directory of the reward model to start from; empty for the policy with a new head."""
    processes: int = 1
    checkpoints: str = ""
    """URI of this run's checkpoints; empty for none."""
    resume: str = ""
    """Local directory of a checkpoint to go on from; empty to start at step 0."""


def work(**members: Any) -> None:
    """Train, and leave the model and its log in the job's folder (written by the first process).

    Args:
        members: those of a :class:`Job`.

    Raises:
        ConfigError, EngineError: settings or a model that cannot be used.
    """
    job = Job(**members)
    config = from_mapping(RewardModelConfig, job.config, "train_reward_model")
    folder, policy, start = Path(job.folder), Path(job.policy), Path(job.start) if job.start else None
    arguments = training_arguments(config, folder / "run", job.processes)
    train, validation = (Pairs(folder / PAIRS_FOLDER / f"{split}.arrow") for split in ("train", "validation"))
    set_seed(config.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER_FOLDER)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    reward_model = load_reward_model(config, policy, start, pad)
    callbacks = []
    if config.save_every:
        store = CheckpointStore(uri=job.checkpoints, keep=config.keep_checkpoints)
        callbacks.append(PublishCheckpoints(store))
    model = PairScores(reward_model)
    # What FSDP wraps one by one: without the names it would gather the whole model at once.
    model._no_split_modules = getattr(reward_model, "_no_split_modules", None)
    trainer = RewardTrainer(config, model, arguments, train, validation, callbacks)
    trainer.train(resume_from_checkpoint=job.resume or None)
    trainer.evaluate_at_the_end()
    state = trainer.gathered()
    # From here on a model is loaded as a whole again, also after ZeRO-3.
    unset_hf_deepspeed_config()
    if trainer.is_world_process_zero():
        save_reward_model(
            config, reward_model, policy, start, folder / TOKENIZER_FOLDER, folder / MODEL_FOLDER, state
        )
        (folder / LOG_FILE).write_text(json.dumps(trainer.training_log()))
