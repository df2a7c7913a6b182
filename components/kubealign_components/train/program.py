"""How ``train`` trains, in each process of its run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from kubealign_components.data.chat import stored_settings
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import TRAINING
from kubealign_components.data.stats import Stats
from kubealign_components.engines.packing import LogprobModel
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.data import Examples, require_examples, write_examples
from kubealign_components.train.trainer import AlignmentTrainer
from kubealign_components.training.arguments import training_arguments
from kubealign_components.training.changed import require_changed
from kubealign_components.training.metrics import means_of_last
from kubealign_components.training.models import check_machine, compute_dtype, load_policy
from kubealign_components.training.program import Run, Trained
from kubealign_components.training.rehearsal import rehearse_saving
from kubealign_components.training.resuming import Checkpoints
from kubealign_components.training.rows import Rows
from kubealign_components.training.saving import save_policy
from kubealign_components.training.schedule import planned_steps, steps_in
from kubealign_components.training.step_trainer import Log


def train(run: Run[TrainConfig]) -> Trained | None:
    """Train on the examples of the dataset; the first process saves the policy.

    Raises:
        DriftError: policy and reference disagree before the first step.
        ConfigError, DataError, EngineError: settings, data or a model that cannot be used.
    """
    job, config, processes = run.job, run.config, run.processes
    check_machine(config.adapter)
    source = processes.find_model(config.policy, config.revision).path
    if processes.first:
        rehearse_saving(config, source, merge_adapter=config.merge_adapter)
    training = Dataset.open(job.inputs["training"], TRAINING)
    examples = processes.once("examples", partial(write_examples, training, config))
    train, validation = (
        Examples(Rows.mapped(examples / f"{split}.arrow")) for split in ("train", "validation")
    )
    require_examples(train, "train")
    last_step = _last_step(config, len(train))
    checkpoints = Checkpoints(job.checkpoints, config, processes, run.stop, last_step=last_step)
    arguments = training_arguments(
        config, processes.folder / "run", universal=checkpoints.universal, last_step=last_step
    )
    set_seed(config.seed)
    policy = load_policy(config, source)
    model = LogprobModel(policy, compute_dtype(config.dtype))
    # What FSDP wraps one by one: without the names it would gather the whole model at once.
    model._no_split_modules = getattr(policy, "_no_split_modules", None)
    trainer = AlignmentTrainer(
        config, model, arguments, train, validation, checkpoints.callbacks, **job.notes
    )
    if config.objective == "kto":
        trainer.measure_mismatches()
    trainer.train(resume_from_checkpoint=checkpoints.resume)
    checkpoints.pauses.check()
    trainer.evaluate_at_the_end()
    state = trainer.gathered()
    # From here on a model is loaded as a whole again, also after ZeRO-3.
    unset_hf_deepspeed_config()
    if not processes.first:
        return None
    template = stored_settings(training)
    _save(run, policy, source, state, template.text)
    steps = trainer.training_log()
    apart = config.adapter != "none" and not config.merge_adapter
    extra = {"adapter": apart, "chat_template": template.named()}
    return Trained(steps=steps, stats=_summary(training, steps), extra=extra)


def _last_step(config: TrainConfig, examples: int) -> int:
    """The step that training stops after, where it is to stop before all that are planned; else 0."""
    steps = planned_steps(config, examples)
    last = steps_in(config.stop_after, steps)
    return last if last < steps else 0


def _save(
    run: Run[TrainConfig],
    policy: object,
    source: Path,
    state: Mapping[str, object] | None,
    template: str | None,
) -> None:
    config = run.config
    save_policy(
        policy,
        source,
        run.folder,
        name=config.policy,
        adapter=config.adapter,
        merge_adapter=config.merge_adapter,
        save_dtype=config.save_dtype,
        state=state,
        template=template,
    )
    require_changed(source, run.folder, config.learning_rate)


def _summary(training: Dataset, steps: Log) -> Stats:
    """Counts, and the means of the last steps."""
    stats = Stats(rows_in=training.rows, rows_out=training.rows, numbers=means_of_last(steps))
    stats.counts.update(f"{split}_examples" for split in training.table(["split"])["split"].to_pylist())
    stats.counts["steps"] = steps[-1][0]
    return stats
