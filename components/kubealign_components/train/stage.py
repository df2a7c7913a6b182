"""train: align the policy on a training dataset, with no reference model in memory.

The dataset's stored token ids, reference log-probabilities and quantile rewards are all that is
used. A retry of the same run goes on from its last checkpoint; a finished one is kept.
"""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path

from kubealign_components.config import semantic_params
from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import Provenance, derive
from kubealign_components.data.models import ModelFiles, find_model
from kubealign_components.data.schemas import MODEL
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError
from kubealign_components.train.checkpoints import CheckpointStore
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.launch import launch, processes_of
from kubealign_components.train.policy import check_machine
from kubealign_components.train.publishing import checkpoint_uri, finished_run, publish_folder
from kubealign_components.train.step_trainer import Log
from kubealign_components.train.worker import LOG_FILE, MODEL_FOLDER, PROGRAM, Job

VERSION = 2
_SUMMARY_STEPS = 10

log = logging.getLogger(__name__)


def run(config: TrainConfig, *, training: Dataset, output: str) -> Stats:
    """Train and write the model to ``output``: a Hugging Face directory that is a ``kubealign.model/v1``.

    Args:
        config: the settings.
        training: ``kubealign.training/v1``.
        output: URI of the model to make.

    Raises:
        ConfigError: settings that do not fit the machine or the data, or another policy than the
            dataset's.
        DataError: examples without the numbers that the objective needs.
        DriftError: the policy gives other log-probabilities than the dataset's reference ones.
        EngineError: a policy that cannot be loaded, or a loss that is not a number.
    """
    check_machine(config)
    processes = processes_of(config.processes)
    model = find_model(config.policy, config.revision)
    template = ChatTemplate(model)
    check_identity(template.identity, training)
    provenance = _provenance(config, training, model, template)
    finished = finished_run(output, provenance)
    if finished is not None:
        return finished
    with tempfile.TemporaryDirectory(prefix="kubealign-train-") as folder:
        job = _job(config, training, model, provenance, Path(folder), processes)
        launch(PROGRAM, asdict(job), Path(folder), processes=processes, sharded=config.strategy != "none")
        files = publish_folder(Path(folder) / MODEL_FOLDER, output)
        steps: Log = json.loads((Path(folder) / LOG_FILE).read_text())
    stats = _summary(training, steps)
    with DatasetWriter(output, MODEL, provenance) as writer:
        writer.write_rows([{"step": step, "metrics": json.dumps(metrics)} for step, metrics in steps])
        writer.commit(
            stats, {"files": files, "adapter": config.adapter != "none" and not config.merge_adapter}
        )
    return stats


def check_identity(identity: dict[str, str], training: Dataset) -> None:
    """Raise :class:`ConfigError` unless policy, tokenizer and template are those of the dataset."""
    for name, digest in identity.items():
        expected = training.manifest.identity.get(name)
        if digest != expected:
            raise ConfigError(
                "policy",
                f"{name} {digest[:12]}",
                f"the model that {training.manifest.slug!r} was made with, of {name} {str(expected)[:12]}: "
                "its token ids and log-probabilities belong to that one",
            )


def _provenance(
    config: TrainConfig, training: Dataset, model: ModelFiles, template: ChatTemplate
) -> Provenance:
    # What the policy is, not where it lies. The dataset's identity stays: the token ids are its own.
    params = {k: v for k, v in semantic_params(config).items() if k not in ("policy", "revision")}
    beta = f"beta{config.beta:g}" + ("len" if config.length_normalise else "")
    transform = config.transform if config.objective == "qrpo" else ""
    return derive(
        "train",
        VERSION,
        params,
        inputs={"training": training},
        models={"policy": model.identity() | template.identity},
        slug=[config.objective + (f"_{transform}" if transform else ""), beta, f"lr{config.learning_rate:g}"],
    )


def _job(
    config: TrainConfig,
    training: Dataset,
    model: ModelFiles,
    provenance: Provenance,
    folder: Path,
    processes: int,
) -> Job:
    layout = f"{config.strategy}-{processes}"
    checkpoints = checkpoint_uri(config.work, "train", provenance, layout) if config.save_every else ""
    resume = None
    if checkpoints:
        store = CheckpointStore(uri=checkpoints, keep=config.keep_checkpoints)
        resume = store.newest(folder / "resume")
    if resume is not None:
        log.info("going on from %s", resume.name)
    return Job(
        config=asdict(config),
        dataset=training.uri,
        policy=str(model.path),
        folder=str(folder),
        processes=processes,
        checkpoints=checkpoints,
        resume=str(resume or ""),
        drift_hint=_drift_hint(config, training),
    )


def _drift_hint(config: TrainConfig, training: Dataset) -> str:
    """What can still differ once policy, tokenizer and template are known to agree."""
    scored = [step for step in training.manifest.recipe.values() if step["stage"] == "logprobs"]
    how = "; ".join(json.dumps(step["params"], sort_keys=True) for step in scored) or "in an unknown way"
    quantised = " Its base is quantised to 4 bits here, which the reference was not." * (
        config.adapter == "qlora"
    )
    return (
        "Weights, tokenizer and template have the digests of the dataset's, so what differs is how the "
        f"log-probabilities were computed: here with dtype {config.dtype}, there {how}.{quantised} "
        "Score again with the logprobs stage (source: scorer, the same dtype), or raise max_initial_drift."
    )


def _summary(training: Dataset, steps: Log) -> Stats:
    """Counts, and the means of the last steps."""
    stats = Stats(rows_in=training.rows, rows_out=training.rows)
    stats.counts.update(f"{split}_examples" for split in training.table(["split"])["split"].to_pylist())
    stats.counts["steps"] = steps[-1][0]
    numbers: dict[str, list[float]] = {}
    for _, metrics in steps[-_SUMMARY_STEPS:]:
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "epoch":
                numbers.setdefault(name, []).append(value)
    stats.numbers = {name: sum(values) / len(values) for name, values in numbers.items()}
    stats.numbers |= {k: v for k, v in steps[-1][1].items() if k.startswith("eval_") and isinstance(v, float)}
    return stats
