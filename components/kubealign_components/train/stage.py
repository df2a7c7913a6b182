"""train: align the policy on a training dataset, with no reference model in memory.

The dataset's stored token ids, reference log-probabilities and quantile rewards are all that is
used. A retry of the same run goes on from its last checkpoint; a finished one is kept.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from kubealign_components.config import semantic_params
from kubealign_components.data.chat import ChatTemplate, stored_settings
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import Provenance, derive
from kubealign_components.data.models import ModelFiles, find_model
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.program import PROGRAM, Job
from kubealign_components.training.launch import pinned, run_program
from kubealign_components.training.publishing import (
    checkpoint_uri,
    finished_run,
    published_run,
    run_folder,
)

if TYPE_CHECKING:
    from kubealign_components.training.launch import Launcher

STAGE = "train"
VERSION = 3


def run(config: TrainConfig, *, training: Dataset, output: str, launcher: Launcher | None = None) -> Stats:
    """Train and write the model to ``output``: a Hugging Face directory that is a ``kubealign.model/v1``.

    Args:
        config: the settings.
        training: ``kubealign.training/v1``.
        output: URI of the model to make.
        launcher: runs the training processes; None for this machine.

    Raises:
        ConfigError: settings that do not fit the machine or the data, or another policy than the
            dataset's.
        DataError: examples without the numbers that the objective needs.
        DriftError: the policy gives other log-probabilities than the dataset's reference ones.
        EngineError: a policy that cannot be loaded, or a loss that is not a number.
    """
    model = find_model(config.policy, config.revision)
    template = ChatTemplate(model, stored_settings(training))
    check_identity(template.identity, training)
    provenance = _provenance(config, training, model, template)
    finished = finished_run(output, provenance)
    if finished is not None:
        return finished
    run_program(
        PROGRAM,
        asdict(_job(config, training, model, provenance, output)),
        run_folder(config.work, STAGE, provenance),
        nodes=config.nodes,
        processes=config.processes,
        sharded=config.strategy != "none",
        launcher=launcher,
    )
    return published_run(output, provenance)


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
        STAGE,
        VERSION,
        params,
        inputs={"training": training},
        models={"policy": model.identity() | template.identity},
        slug=[config.objective + (f"_{transform}" if transform else ""), beta, f"lr{config.learning_rate:g}"],
    )


def _job(
    config: TrainConfig, training: Dataset, model: ModelFiles, provenance: Provenance, output: str
) -> Job:
    checkpoints = checkpoint_uri(config.work, STAGE, provenance, config.strategy) if config.save_every else ""
    return Job(
        config=asdict(pinned(config, model.path)),
        dataset=training.uri,
        output=output,
        provenance=asdict(provenance),
        checkpoints=checkpoints,
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
