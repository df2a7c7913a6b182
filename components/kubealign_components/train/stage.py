"""train: align the policy on a training dataset, with no reference model in memory.

The dataset's stored token ids, reference log-probabilities and quantile rewards are all that is
used. A retry of the same run goes on from its last checkpoint; a finished one is kept.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from kubealign_components.config import semantic_params
from kubealign_components.data.chat import DeferredTemplate, stored_settings
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.early_end import brings_nothing, end_early, pass_on
from kubealign_components.data.fingerprint import Provenance, derive
from kubealign_components.data.models import ModelFiles, find_model
from kubealign_components.data.schemas import MODEL
from kubealign_components.data.stats import Stats
from kubealign_components.engines.dtypes import device_type, resolved_dtype, saved_dtype_name
from kubealign_components.errors import ConfigError, Diverged, Unmoved
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.quantiles import quantile_rule
from kubealign_components.training.config import INCLUSIVE
from kubealign_components.training.launch import Where, pinned, trained_on
from kubealign_components.training.program import Job, Program, Run, Trained, train_model
from kubealign_components.training.publishing import STOP_AFTER, checkpoint_uri
from kubealign_components.training.regime import (
    UNKNOWN_DRIFT,
    Regime,
    differences,
    nearest_steps,
    regime,
)

if TYPE_CHECKING:
    from kubealign_components.training.launch import Launcher

log = logging.getLogger(__name__)

STAGE = "train"
VERSION = 7
WHOLE = 1.0
"""Share of the steps of a training that goes through with them."""


def run(
    config: TrainConfig,
    *,
    training: Dataset,
    output: str,
    launcher: Launcher | None = None,
    sweep: bool = False,
) -> Stats:
    """Train and write the model to ``output``: a Hugging Face directory that is a ``kubealign.model/v1``.

    Args:
        config: the settings.
        training: ``kubealign.training/v1``.
        output: URI of the model to make.
        launcher: runs the training processes; None for this machine.
        sweep: whether it is a variant of a sweep, which goes on without one that has no examples, diverges or
            moves nothing: then ``output`` says why there is no model.

    Raises:
        ConfigError: settings that do not fit the machine or the data, or another policy than the
            dataset's.
        DataError: examples without the numbers that the objective needs.
        DriftError: the policy gives other log-probabilities than the dataset's reference ones.
        EngineError: a policy that cannot be loaded, or a loss that is not a number.
    """
    nothing = brings_nothing(training, sweep=sweep)
    if nothing and not sweep:
        return pass_on("training", training, stage=STAGE, version=VERSION, schema=MODEL, output=output)
    device = device_type(trained_on(launcher))
    config = replace(config, dtype=resolved_dtype(config.dtype, device))
    if nothing:
        own = _settings(config)
        return pass_on(
            "training", training, stage=STAGE, version=VERSION, schema=MODEL, output=output, params=own
        )
    model = find_model(config.policy, config.revision, weights=False)
    template = DeferredTemplate(model, stored_settings(training))
    reference = model
    if config.reference:
        reference = find_model(config.reference, config.reference_revision, weights=False)
    same = check_identity(template.identity, reference.identity()["digest"], training)
    drift = expected_drift(config, training, device) if same else None
    provenance = _provenance(config, training, model, template)
    # Where training stops decides on its model, not on the way there: a later stop goes on from an earlier.
    whole = _provenance(replace(config, stop_after=WHOLE), training, model, template)
    checkpoints = checkpoint_uri(config.work, STAGE, whole, config.strategy) if config.work else ""
    sharded = config.strategy != "none"
    try:
        return train_model(
            PROGRAM,
            config,
            _job(config, training, model, provenance, output, drift, checkpoints),
            provenance,
            where=Where(nodes=config.nodes, processes=config.processes, sharded=sharded),
            launcher=launcher,
        )
    except (Diverged, Unmoved) as error:
        if not sweep:
            raise
        return _without_model(str(error), provenance, training, output)


def _without_model(reason: str, provenance: Provenance, training: Dataset, output: str) -> Stats:
    """What a variant of a sweep leaves that came to no model: not under the name that its model would have,
    so that nobody takes it for that."""
    log.warning("this variant of the sweep ends without a model: %s", reason)
    step = provenance.step
    return end_early(
        reason,
        stage=STAGE,
        version=VERSION,
        schema=MODEL,
        output=output,
        inputs={"training": training},
        params=step["params"],
        models=step["models"],
    )


def check_identity(identity: dict[str, str], reference: str, training: Dataset) -> bool:
    """Whether training starts at the model that the dataset's log-probabilities are of.

    Args:
        identity: digests of the policy, its tokenizer and its template.
        reference: digest of the model that the log-probabilities are said to be of.
        training: the dataset.

    Raises:
        ConfigError: tokenizer or template are not the dataset's, or it was made with another reference.
    """
    theirs = training.manifest.identity
    scored = theirs.get("reference", theirs.get("policy"))
    asked = reference != identity["policy"]
    models = {name: digest for name, digest in identity.items() if name != "policy"} | {"policy": reference}
    for name, digest in sorted(models.items()):
        expected = scored if name == "policy" else theirs.get(name)
        if digest != expected:
            raise ConfigError(
                "reference" if asked and name == "policy" else "policy",
                f"{name} {digest[:12]}",
                f"the model that {training.manifest.slug!r} was made with, of {name} {str(expected)[:12]}: "
                "its token ids and log-probabilities belong to that one. To start at another policy with the "
                "same tokenizer, name that one as reference",
            )
    return not asked


def expected_drift(config: TrainConfig, training: Dataset, device: str) -> float:
    """The largest difference from the stored log-probabilities that is no mistake, nats per token.

    Args:
        config: the settings, their dtype resolved.
        training: the dataset.
        device: type of what is trained on.

    Raises:
        ConfigError: the reference was scored in another regime than training has, and no
            ``max_initial_drift`` was given.
    """
    if config.max_initial_drift is not None:
        return config.max_initial_drift
    manifest, dtype = training.manifest, config.dtype
    steps = list(nearest_steps("logprobs", manifest.fingerprint, manifest.recipe))
    if not steps or any(step["params"]["source"] == "sampler" for step in steps):
        return UNKNOWN_DRIFT
    ours = regime(config.adapter, dtype, device, config.strategy)
    for step in steps:
        _check_regime(ours, step["params"].get("regime", {}), config)
    # However weights are sharded, those of a forward pass are put together: only gradients add up otherwise.
    return 0.0


def _check_regime(ours: Regime, theirs: dict[str, str], config: TrainConfig) -> None:
    apart = differences(ours, theirs)
    if apart:
        differing = ", ".join(
            f"{name} {own} (the reference: {other})" for name, (own, other) in apart.items()
        )
        raise ConfigError(
            "dtype",
            config.dtype,
            f"training in the numbers that the reference was scored in; training has {differing}. Score "
            f"again with logprobs options dtype: {ours['compute']}, adapter: {config.adapter} and strategy: "
            f"{config.strategy} on the same kind of device, or accept the difference with "
            f"max_initial_drift: {UNKNOWN_DRIFT}",
        )


def _provenance(
    config: TrainConfig, training: Dataset, model: ModelFiles, template: DeferredTemplate
) -> Provenance:
    params, stops = _settings(config), config.stop_after < WHOLE
    params["save_dtype"] = saved_dtype_name(config.save_dtype, model.path, model.elsewhere)
    beta = f"beta{config.beta:g}" + ("len" if config.length_normalise else "")
    transform = config.transform if config.objective == "qrpo" else ""
    return derive(
        STAGE,
        VERSION,
        params,
        inputs={"training": training},
        models={"policy": model.identity() | template.identity},
        slug=[
            config.objective + (f"_{transform}" if transform else ""),
            beta,
            f"lr{config.learning_rate:g}",
            f"after{config.stop_after:.3g}" if stops else "",
        ],
    )


def _settings(config: TrainConfig) -> dict[str, object]:
    """Those that a model depends on, but for what the policy is, which is not where it lies."""
    elsewhere = ("policy", "revision", "reference", "reference_revision")
    params = {k: v for k, v in semantic_params(config).items() if k not in elsewhere}
    if config.stop_after >= WHOLE:
        params.pop(STOP_AFTER)  # which is of models that training stopped at
    return params


def _job(
    config: TrainConfig,
    training: Dataset,
    model: ModelFiles,
    provenance: Provenance,
    output: str,
    drift: float | None,
    checkpoints: str,
) -> Job:
    return Job(
        stage=STAGE,
        config=asdict(pinned(config, model.path)),
        inputs={"training": training.uri},
        output=output,
        provenance=asdict(provenance),
        checkpoints=checkpoints,
        notes={
            "rule": quantile_rule(training) if config.objective == "qrpo" else INCLUSIVE,
            "max_drift": drift,
            "drift_hint": _drift_hint(config, training),
        },
    )


def _drift_hint(config: TrainConfig, training: Dataset) -> str:
    """What can still differ once policy, tokenizer and template are known to agree."""
    scored = [step for step in training.manifest.recipe.values() if step["stage"] == "logprobs"]
    how = "; ".join(json.dumps(step["params"], sort_keys=True) for step in scored) or "in an unknown way"
    return (
        "Weights, tokenizer and template have the digests of the dataset's, so what differs is how the "
        f"log-probabilities were computed: here with dtype {config.dtype} and adapter {config.adapter}, "
        f"there {how}. Another model of GPU or version of torch is enough. Score again with the logprobs "
        "stage (source: scorer, the same dtype and adapter, the same machines), or set max_initial_drift."
    )


def _train(run: Run[TrainConfig]) -> Trained | None:
    from kubealign_components.train.program import train

    return train(run)


PROGRAM = Program(stage=STAGE, config=TrainConfig, train=_train)
