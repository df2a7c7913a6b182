"""One training process: alone in the caller's process, or one of many under torchrun."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from kubealign_components.config import from_mapping
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import TRAINING
from kubealign_components.engines.packing import LogprobModel
from kubealign_components.train.arguments import training_arguments
from kubealign_components.train.checkpoints import CheckpointStore, PublishCheckpoints
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.data import load_examples, require_examples
from kubealign_components.train.policy import load_policy, save_policy
from kubealign_components.train.trainer import AlignmentTrainer

PROGRAM = "kubealign_components.train.worker:work"

MODEL_FOLDER = "model"
LOG_FILE = "log.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a training process needs to know, in plain JSON values."""

    config: dict[str, Any]
    """Settings of :class:`TrainConfig`."""
    dataset: str
    """URI of the training dataset."""
    policy: str
    """Local directory of the policy."""
    folder: str
    """Local folder for the trained model (``model/``), the log (``log.json``) and passing files."""
    processes: int = 1
    checkpoints: str = ""
    """URI of this run's checkpoints; empty for none."""
    resume: str = ""
    """Local directory of a checkpoint to go on from; empty to start at step 0."""
    drift_hint: str = ""


def work(**members: Any) -> None:
    """Train, and leave the model and its log in the job's folder (written by the first process).

    Args:
        members: those of a :class:`Job`.

    Raises:
        DriftError: policy and reference disagree before the first step.
        ConfigError, DataError, EngineError: settings, data or a model that cannot be used.
    """
    job = Job(**members)
    config = from_mapping(TrainConfig, job.config, "train")
    folder = Path(job.folder)
    arguments = training_arguments(config, folder / "run", job.processes)
    dataset = Dataset.open(job.dataset, TRAINING)
    train = load_examples(dataset, "train", config)
    require_examples(train, "train")
    set_seed(config.seed)
    policy = load_policy(config, Path(job.policy))
    callbacks = []
    if config.save_every:
        store = CheckpointStore(uri=job.checkpoints, keep=config.keep_checkpoints)
        callbacks.append(PublishCheckpoints(store))
    model = LogprobModel(policy)
    # What FSDP wraps one by one: without the names it would gather the whole model at once.
    model._no_split_modules = getattr(policy, "_no_split_modules", None)
    trainer = AlignmentTrainer(
        config,
        model,
        arguments,
        train,
        load_examples(dataset, "validation", config),
        callbacks,
        job.drift_hint,
    )
    trainer.train(resume_from_checkpoint=job.resume or None)
    trainer.evaluate_at_the_end()
    state = trainer.gathered()
    # From here on a model is loaded as a whole again, also after ZeRO-3.
    unset_hf_deepspeed_config()
    if trainer.is_world_process_zero():
        save_policy(config, policy, Path(job.policy), folder / MODEL_FOLDER, state)
        (folder / LOG_FILE).write_text(json.dumps(trainer.training_log()))
