"""train_reward_model: a scalar head on the policy's decoder, trained on pairs by Bradley and Terry's model.

A conversation is read with the principles after it, and scored at its last token. Training goes in two
runs: first on human preferences, which have no principles, then on principle-driven ones, from the first
run's adapters and head. A retry of the same run goes on from its last checkpoint; a finished one is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from kubealign_components.config import semantic_params
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import Provenance, derive
from kubealign_components.data.models import ModelFiles, find_model
from kubealign_components.data.stats import Stats
from kubealign_components.data.templates import RewardTemplate, load_reward_template
from kubealign_components.engines.dtypes import resolved_dtype, saved_dtype_name
from kubealign_components.engines.rewards import chosen_principles, principles_identity
from kubealign_components.errors import ConfigError
from kubealign_components.train_reward_model.config import RewardModelConfig
from kubealign_components.training.launch import Where, pinned, trained_on
from kubealign_components.training.program import Job, Program, Run, Trained, train_model
from kubealign_components.training.publishing import checkpoint_uri

if TYPE_CHECKING:
    from kubealign_components.training.launch import Launcher

STAGE = "train_reward_model"
VERSION = 5
_PLACES = ("policy", "revision", "template", "principles", "principle_names")


def run(
    config: RewardModelConfig,
    *,
    preferences: Dataset,
    start: Dataset | None = None,
    output: str,
    launcher: Launcher | None = None,
) -> Stats:
    """Train and write the reward model to ``output``: a Hugging Face directory that is a
    ``kubealign.model/v1``, which ``AutoModelForSequenceClassification`` and the ``rewards`` stage load.

    Args:
        config: the settings.
        preferences: ``kubealign.preferences/v1``.
        start: a reward model (``kubealign.model/v1``) of the same policy to train on; None for a new head.
        output: URI of the model to make.
        launcher: runs the training processes; None for this machine.

    Raises:
        ConfigError: settings that do not fit the machine, the data or the model to start from.
        DataError: a row that is no pair.
        EngineError: a policy that cannot be loaded, a model to start from without head, or a loss that is
            not a number.
    """
    config = replace(config, dtype=resolved_dtype(config.dtype, trained_on(launcher)))
    policy = find_model(config.policy, config.revision, weights=False)
    template = load_reward_template(config.template)
    shown = chosen_principles(config.principles, config.principle_names) if config.principles else []
    _check_start(config, policy, start)
    provenance = _provenance(config, preferences, start, policy, template, shown)
    sharded = config.strategy != "none"
    return train_model(
        PROGRAM,
        config,
        _job(config, preferences, start, policy, provenance, output),
        provenance,
        where=Where(nodes=config.nodes, processes=config.processes, sharded=sharded),
        launcher=launcher,
    )


def _check_start(config: RewardModelConfig, policy: ModelFiles, start: Dataset | None) -> None:
    """Refuse a reward model to start from that does not fit.

    Raises:
        ConfigError: it is of another policy, or has no adapters and the settings want some.
    """
    if start is None:
        return
    of_policy = start.manifest.extra.get("policy")
    ours = policy.identity()["digest"]
    if of_policy != ours:
        raise ConfigError(
            "start",
            start.manifest.slug,
            f"a reward model of the policy {policy.name} ({ours[:12]}), this one is of {str(of_policy)[:12]}",
        )
    files = start.manifest.extra.get("files", {})
    if config.adapter != "none" and not any(name.startswith("adapter/") for name in files):
        raise ConfigError(
            "adapter",
            config.adapter,
            f"none, to go on from {start.manifest.slug!r}: it was trained in full and has no adapters",
        )


def _provenance(
    config: RewardModelConfig,
    preferences: Dataset,
    start: Dataset | None,
    policy: ModelFiles,
    template: RewardTemplate,
    shown: Sequence[dict[str, str]],
) -> Provenance:
    # What policy, template and principles are, not where they lie.
    params = {name: value for name, value in semantic_params(config).items() if name not in _PLACES}
    params |= {
        "dtype": config.dtype,
        "save_dtype": saved_dtype_name(config.save_dtype, policy.path, policy.elsewhere),
        "head": "of start" if start else f"new, {config.head}",
        "template": template.identity(),
        "own_principles": principles_identity(shown),
    }
    return derive(
        STAGE,
        VERSION,
        params,
        inputs={"preferences": preferences} | ({"start": start} if start else {}),
        models={"policy": policy.identity() | {"tokenizer": policy.tokenizer_digest()}},
        slug=["reward", policy.name, f"lr{config.learning_rate:g}"],
    )


def _job(
    config: RewardModelConfig,
    preferences: Dataset,
    start: Dataset | None,
    policy: ModelFiles,
    provenance: Provenance,
    output: str,
) -> Job:
    checkpoints = checkpoint_uri(config.work, STAGE, provenance, config.strategy) if config.work else ""
    return Job(
        stage=STAGE,
        config=asdict(pinned(config, policy.path)),
        inputs={"preferences": preferences.uri} | ({"start": start.copy} if start else {}),
        output=output,
        provenance=asdict(provenance),
        checkpoints=checkpoints,
        notes={"policy_digest": policy.identity()["digest"]},
    )


def _train(run: Run[RewardModelConfig]) -> Trained | None:
    from kubealign_components.train_reward_model.program import train

    return train(run)


PROGRAM = Program(stage=STAGE, config=RewardModelConfig, train=_train)
