"""train_reward_model: a scalar head on the policy's decoder, trained on pairs by Bradley and Terry's model.

A conversation is read with the principles after it, and scored at its last token. Training goes in two
runs: first on human preferences, which have no principles, then on principle-driven ones, from the first
run's adapters and head. A retry of the same run goes on from its last checkpoint; a finished one is kept.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kubealign_components.config import require, semantic_params
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import Provenance, derive
from kubealign_components.data.models import ModelFiles, find_model
from kubealign_components.data.principles import load_principles
from kubealign_components.data.schemas import MODEL
from kubealign_components.data.stats import Stats
from kubealign_components.data.templates import RewardTemplate, load_reward_template
from kubealign_components.engines.rewards import chosen_principles, principles_identity
from kubealign_components.errors import ConfigError
from kubealign_components.train.publishing import checkpoint_uri, finished_run, publish_folder
from kubealign_components.train.reward.config import RewardModelConfig
from kubealign_components.train_reward_model.measures import (
    HeldOutPair,
    by_principle,
    calibration,
    held_out_numbers,
)

if TYPE_CHECKING:
    from kubealign_components.train.step_trainer import Log

VERSION = 1
_SUMMARY_STEPS = 10
_PLACES = ("policy", "revision", "template", "principles", "principle_names")

log = logging.getLogger(__name__)


def run(
    config: RewardModelConfig, *, preferences: Dataset, start: Dataset | None = None, output: str
) -> Stats:
    """Train and write the reward model to ``output``: a Hugging Face directory that is a
    ``kubealign.model/v1``, which ``AutoModelForSequenceClassification`` and the ``rewards`` stage load.

    Args:
        config: the settings.
        preferences: ``kubealign.preferences/v1``.
        start: a reward model (``kubealign.model/v1``) of the same policy to train on; None for a new head.
        output: URI of the model to make.

    Raises:
        ConfigError: settings that do not fit the machine, the data or the model to start from.
        DataError: a row that is no pair.
        EngineError: a policy that cannot be loaded, a model to start from without head, or a loss that is
            not a number.
    """
    from kubealign_components.train.launch import launch, processes_of
    from kubealign_components.train.policy import check_machine
    from kubealign_components.train.reward.worker import LOG_FILE, MODEL_FOLDER, PROGRAM

    check_machine(config)
    processes = processes_of(config.processes)
    policy = find_model(config.policy, config.revision)
    template = load_reward_template(config.template)
    shown = chosen_principles(config.principles, config.principle_names) if config.principles else []
    source = _start_folder(config, policy, start)
    provenance = _provenance(config, preferences, start, policy, template, shown)
    finished = finished_run(output, provenance)
    if finished is not None:
        return finished
    with tempfile.TemporaryDirectory(prefix="kubealign-train-") as name:
        folder = Path(name)
        stats = _prepare(config, preferences, policy, template, shown, folder)
        job = _job(config, policy, source, provenance, folder, processes)
        launch(PROGRAM, job, folder, processes=processes, sharded=config.strategy != "none")
        steps: Log = json.loads((folder / LOG_FILE).read_text())
        pairs = list(_held_out(config, preferences, ModelFiles(name="model", path=folder / MODEL_FOLDER)))
        files = publish_folder(folder / MODEL_FOLDER, output)
    _summarise(stats, steps, pairs)
    extra = {
        "files": files,
        "adapter": False,  # the adapters are in the weights; the folder adapter/ has them once more
        "policy": policy.identity()["digest"],
        "held_out": {"calibration": calibration(pairs), "by_principle": by_principle(pairs)},
    }
    with DatasetWriter(output, MODEL, provenance) as writer:
        writer.write_rows([{"step": step, "metrics": json.dumps(metrics)} for step, metrics in steps])
        writer.commit(stats, extra)
    return stats


def _start_folder(config: RewardModelConfig, policy: ModelFiles, start: Dataset | None) -> Path | None:
    """Local directory of the reward model to start from.

    Raises:
        ConfigError: it is of another policy, or has no adapters and the settings want some.
    """
    if start is None:
        return None
    of_policy = start.manifest.extra.get("policy")
    ours = policy.identity()["digest"]
    if of_policy != ours:
        raise ConfigError(
            "start",
            start.manifest.slug,
            f"a reward model of the policy {policy.name} ({ours[:12]}), this one is of {str(of_policy)[:12]}",
        )
    folder = find_model(start.uri).path
    if config.adapter != "none" and not (folder / "adapter").is_dir():
        raise ConfigError(
            "adapter",
            config.adapter,
            f"none, to go on from {start.manifest.slug!r}: it was trained in full and has no adapters",
        )
    return folder


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
        "head": "of start" if start else f"new, {config.head}",
        "template": template.identity(),
        "own_principles": principles_identity(shown),
    }
    return derive(
        "train_reward_model",
        VERSION,
        params,
        inputs={"preferences": preferences} | ({"start": start} if start else {}),
        models={"policy": policy.identity() | {"tokenizer": policy.tokenizer_digest()}},
        slug=["reward", policy.name, f"lr{config.learning_rate:g}"],
    )


def _prepare(
    config: RewardModelConfig,
    preferences: Dataset,
    policy: ModelFiles,
    template: RewardTemplate,
    shown: Sequence[dict[str, str]],
    folder: Path,
) -> Stats:
    """Write the tokenizer of the reward model and the tokens of the pairs to ``folder``; counts."""
    from transformers import AutoConfig

    from kubealign_components.engines.reward_model import RewardChat, own_limit
    from kubealign_components.train.reward.model import save_tokenizer
    from kubealign_components.train.reward.pairs import tokenise_pairs
    from kubealign_components.train.reward.worker import PAIRS_FOLDER, TOKENIZER_FOLDER

    tokenizer = save_tokenizer(policy.path, folder / TOKENIZER_FOLDER, template, shown)
    (folder / PAIRS_FOLDER).mkdir()
    stats = tokenise_pairs(
        preferences,
        RewardChat(tokenizer, policy.name),
        max_length=config.max_length or own_limit(AutoConfig.from_pretrained(policy.path), tokenizer),
        margin=config.margin,
        folder=folder / PAIRS_FOLDER,
    )
    left = stats.counts["train_pairs"]
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(stats.dropped.items())) or "none"
    require(left > 0, "preferences", preferences.manifest.slug, f"pairs to train on (dropped: {reasons})")
    return stats


def _job(
    config: RewardModelConfig,
    policy: ModelFiles,
    start: Path | None,
    provenance: Provenance,
    folder: Path,
    processes: int,
) -> dict[str, Any]:
    from kubealign_components.train.checkpoints import CheckpointStore
    from kubealign_components.train.reward.worker import Job

    layout = f"{config.strategy}-{processes}"
    checkpoints = ""
    resume = None
    if config.save_every:
        checkpoints = checkpoint_uri(config.work, "train_reward_model", provenance, layout)
        resume = CheckpointStore(uri=checkpoints, keep=config.keep_checkpoints).newest(folder / "resume")
    if resume is not None:
        log.info("going on from %s", resume.name)
    job = Job(
        config=asdict(config),
        policy=str(policy.path),
        folder=str(folder),
        start=str(start or ""),
        processes=processes,
        checkpoints=checkpoints,
        resume=str(resume or ""),
    )
    return asdict(job)


def _held_out(config: RewardModelConfig, preferences: Dataset, files: ModelFiles) -> Iterator[HeldOutPair]:
    """The held-out pairs under the saved model."""
    from kubealign_components.engines.reward_model import free_memory
    from kubealign_components.train.reward.held_out import deciding_principle, score_held_out

    free_memory()  # of the training, where that ran in this process
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
    numbers: dict[str, list[float]] = {}
    for _, metrics in steps[-_SUMMARY_STEPS:]:
        for name, value in metrics.items():
            if isinstance(value, int | float) and name != "epoch" and not name.startswith("eval_"):
                numbers.setdefault(name, []).append(value)
    stats.numbers = {name: sum(values) / len(values) for name, values in numbers.items()}
    stats.numbers |= {k: v for k, v in steps[-1][1].items() if k.startswith("eval_") and isinstance(v, float)}
    stats.numbers |= held_out_numbers(pairs)
