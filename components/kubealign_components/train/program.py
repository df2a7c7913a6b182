"""One training process: alone in the caller's process, or one of many under torchrun on one or more nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from kubealign_components.config import from_mapping
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import TRAINING
from kubealign_components.data.stats import Stats
from kubealign_components.engines.packing import LogprobModel
from kubealign_components.preemption import Stop, preemptible
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.data import Examples, require_examples, write_examples
from kubealign_components.train.trainer import AlignmentTrainer
from kubealign_components.training.arguments import training_arguments
from kubealign_components.training.changed import require_changed
from kubealign_components.training.config import INCLUSIVE
from kubealign_components.training.metrics import means_of_last
from kubealign_components.training.models import check_machine, load_policy
from kubealign_components.training.processes import Processes, joined
from kubealign_components.training.publishing import publish_model
from kubealign_components.training.rehearsal import rehearse_saving
from kubealign_components.training.resuming import Checkpoints
from kubealign_components.training.rows import Rows
from kubealign_components.training.saving import save_policy
from kubealign_components.training.step_trainer import Log

PROGRAM = "kubealign_components.train.program:work"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a training process needs to know, in plain JSON values."""

    config: dict[str, Any]
    """Settings of :class:`TrainConfig`."""
    dataset: str
    """URI of the training dataset."""
    output: str
    """URI of the model to make."""
    provenance: dict[str, Any]
    """Of that model."""
    checkpoints: str = ""
    """URI of this run's checkpoints; empty for none."""
    quantile_rule: str = INCLUSIVE
    """How the dataset's quantile rewards were counted."""
    max_drift: float | None = None
    """Largest mean |log-ratio| per token before the first step, in nats; None where policy and reference are
    different models."""
    drift_hint: str = ""


def work(**members: Any) -> None:
    """Train; the first process publishes the model.

    Args:
        members: those of a :class:`Job`.

    Raises:
        DriftError: policy and reference disagree before the first step.
        ConfigError, DataError, EngineError: settings, data or a model that cannot be used.
        Preempted: SIGTERM came; a checkpoint was published where the job has a place for it.
    """
    job = Job(**members)
    config = from_mapping(TrainConfig, job.config, "train")
    check_machine(config)
    with preemptible("train") as stop, joined() as processes:
        _train(job, config, processes, stop)


def _train(job: Job, config: TrainConfig, processes: Processes, stop: Stop) -> None:
    source = processes.find_model(config.policy, config.revision).path
    if processes.first:
        rehearse_saving(config, source, merge_adapter=config.merge_adapter)
    checkpoints = Checkpoints(job.checkpoints, config, processes, stop)
    arguments = training_arguments(config, processes.folder / "run", universal=checkpoints.universal)
    examples = processes.once(
        "examples", partial(write_examples, Dataset.open(job.dataset, TRAINING), config)
    )
    train, validation = (
        Examples(Rows.mapped(examples / f"{split}.arrow")) for split in ("train", "validation")
    )
    require_examples(train, "train")
    set_seed(config.seed)
    policy = load_policy(config, source)
    model = LogprobModel(policy)
    # What FSDP wraps one by one: without the names it would gather the whole model at once.
    model._no_split_modules = getattr(policy, "_no_split_modules", None)
    trainer = AlignmentTrainer(
        config,
        model,
        arguments,
        train,
        validation,
        checkpoints.callbacks,
        rule=job.quantile_rule,
        max_drift=job.max_drift,
        drift_hint=job.drift_hint,
    )
    if config.objective == "kto":
        trainer.measure_mismatches()
    trainer.train(resume_from_checkpoint=checkpoints.resume)
    checkpoints.pauses.check()
    trainer.evaluate_at_the_end()
    state = trainer.gathered()
    # From here on a model is loaded as a whole again, also after ZeRO-3.
    unset_hf_deepspeed_config()
    if processes.first:
        _publish(job, config, source, policy, state, trainer.training_log(), processes.folder / "model")


def _publish(
    job: Job,
    config: TrainConfig,
    source: Path,
    policy: Any,
    state: Mapping[str, Any] | None,
    steps: Log,
    folder: Path,
) -> None:
    save_policy(
        policy,
        source,
        folder,
        name=config.policy,
        adapter=config.adapter,
        merge_adapter=config.merge_adapter,
        save_dtype=config.save_dtype,
        state=state,
    )
    require_changed(source, folder, config.learning_rate)
    extra = {"adapter": config.adapter != "none" and not config.merge_adapter}
    stats = _summary(Dataset.open(job.dataset, TRAINING), steps)
    publish_model(folder, job.output, job.provenance, steps, stats, extra)


def _summary(training: Dataset, steps: Log) -> Stats:
    """Counts, and the means of the last steps."""
    stats = Stats(rows_in=training.rows, rows_out=training.rows, numbers=means_of_last(steps))
    stats.counts.update(f"{split}_examples" for split in training.table(["split"])["split"].to_pylist())
    stats.counts["steps"] = steps[-1][0]
    return stats
