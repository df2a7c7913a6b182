"""The prompts of PPO: which are trained on in which step, which are held out, and their principles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kubealign_components.config import require
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.principles import (
    GENERAL,
    RL,
    TAGS,
    Principle,
    PrincipleSet,
    load_principles,
)
from kubealign_components.data.seeds import generator_for, is_held_out, unit_interval
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.train_ppo.config import PpoConfig

_COLUMNS = ("prompt_id", "messages", "tools", "answers", "metadata", "prompt_token_ids", "prompt_tokens")

Shown = dict[str, str]
"""A principle as the reward model is shown it: ``name`` and ``text``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PpoPrompt:
    """A prompt with what its rewards need to know."""

    prompt_id: str
    token_ids: tuple[int, ...]
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    answers: list[str]
    metadata: dict[str, Any]
    question_type: str
    """One of :data:`TAGS`; general where the metadata does not say."""
    length_bonus: float
    """0 where the metadata does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PpoPrompts:
    """The prompts of a dataset, each in the dataset's order."""

    train: list[PpoPrompt]
    held_out: list[PpoPrompt]
    too_long: int
    """Prompts that were dropped."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One rollout to make."""

    question: PpoPrompt
    name: str
    """Seeds its sample and its principles: the prompt's id, and which time it is in the step."""


def load_prompts(dataset: Dataset, config: PpoConfig) -> PpoPrompts:
    """The usable prompts of ``dataset`` (``kubealign.tokenized/v1``), split by the hash of their ids.

    Raises:
        DataError: a prompt without token ids, or metadata that cannot be used.
        ConfigError: nothing to train on, or nothing to evaluate although that is asked for.
    """
    questions = PpoPrompts(train=[], held_out=[], too_long=0)
    too_long = 0
    for row in dataset.iter_rows(_COLUMNS):
        if not row["prompt_token_ids"]:
            raise DataError(f"{dataset.uri}: prompt {row['prompt_id']} has no token ids; filter the prompts")
        if row["prompt_tokens"] > config.max_prompt_tokens:
            too_long += 1
            continue
        held_out = is_held_out(row["prompt_id"], config.validation_fraction, config.seed)
        (questions.held_out if held_out else questions.train).append(_question(row, dataset.uri))
    if not questions.train:
        raise ConfigError(
            "prompts",
            f"{dataset.rows} rows, {too_long} longer than max_prompt_tokens={config.max_prompt_tokens}",
            "a dataset with prompts to train on",
        )
    if config.validation_fraction and not questions.held_out:
        raise ConfigError(
            "validation_fraction",
            config.validation_fraction,
            f"a share that holds out some of the {len(questions.train)} prompts, or 0 for no evaluation",
        )
    return PpoPrompts(train=questions.train, held_out=_sample(questions.held_out, config), too_long=too_long)


def ppo_steps(config: PpoConfig, prompts: int) -> int:
    """Steps of a run over ``prompts`` prompts: at least one."""
    return config.max_steps or max(1, int(config.epochs * prompts / config.rollout_batch))


def turns_of(config: PpoConfig, questions: Sequence[PpoPrompt], step: int) -> list[Turn]:
    """The rollouts of ``step``: the next prompts of an order that is drawn anew for every epoch."""
    first, turns, seen = step * config.rollout_batch, [], dict[str, int]()
    order: list[int] = []
    epoch = -1
    for position in range(first, first + config.rollout_batch):
        if position // len(questions) != epoch:
            epoch = position // len(questions)
            order = generator_for(config.seed, "order", epoch).permutation(len(questions)).tolist()
        question = questions[order[position % len(questions)]]
        times = seen[question.prompt_id] = seen.get(question.prompt_id, -1) + 1
        turns.append(Turn(question, f"{step}/{question.prompt_id}/{times}"))
    return turns


class PrincipleDraw:
    """Draws the principles that a rollout is scored by.

    Args:
        config: the settings; names the sets.

    Raises:
        ConfigError: no such set, or one without principles for reinforcement learning.
    """

    def __init__(self, config: PpoConfig) -> None:
        self._config = config
        drawn = load_principles(config.principles)
        always = load_principles(config.interventions) if config.interventions else None
        self.pool = _for_rollouts(drawn, "principles")
        self.always = _for_rollouts(always, "interventions") if always else ()
        self.identity = {"principles": drawn.identity()} | (
            {"interventions": always.identity()} if always else {}
        )

    def __call__(self, turn: Turn) -> list[Shown]:
        """The principles of a rollout: those that always stand, then up to ``max_principles`` drawn ones.

        Drawn by weight without replacement: the smallest exponential keys (Efraimidis and Spirakis 2006).
        """
        weights = np.array([self._weight(p, turn.question.question_type) for p in self.pool])
        keys = generator_for(self._config.seed, "principles", turn.name).exponential(size=len(weights))
        drawn = [self.pool[i] for i in np.argsort(keys / weights)[: self._config.max_principles]]
        return [{"name": p.name, "text": p.statement()} for p in (*self.always, *drawn)]

    def _weight(self, principle: Principle, question_type: str) -> float:
        extra = self._config.tag_weights.get(question_type, 0.0) if question_type in principle.tags else 0.0
        return principle.weight + extra


def _for_rollouts(principles: PrincipleSet, field: str) -> tuple[Principle, ...]:
    of_stage = principles.of_stage(RL).principles
    require(bool(of_stage), field, principles.name, f"a set with principles of stage {RL}")
    return of_stage


def noise_for(config: PpoConfig, turn: Turn) -> np.random.Generator:
    """The generator that a rollout is sampled with."""
    return generator_for(config.seed, "sample", turn.name)


def _question(row: Mapping[str, Any], uri: str) -> PpoPrompt:
    metadata = json.loads(row["metadata"]) if row["metadata"] else {}
    kind, bonus = metadata.get("question_type", GENERAL), metadata.get("length_bonus", 0.0)
    usable = isinstance(bonus, int | float) and not isinstance(bonus, bool)
    if kind not in TAGS or not usable:
        raise DataError(
            f"{uri}: prompt {row['prompt_id']} has question_type={kind!r} and length_bonus={bonus!r} in its "
            f"metadata, expected one of {', '.join(TAGS)}, and a number"
        )
    return PpoPrompt(
        prompt_id=row["prompt_id"],
        token_ids=tuple(row["prompt_token_ids"]),
        messages=json.loads(row["messages"]),
        tools=json.loads(row["tools"]) if row["tools"] else None,
        answers=list(row["answers"] or ()),
        metadata=metadata,
        question_type=kind,
        length_bonus=float(bonus),
    )


def _sample(questions: list[PpoPrompt], config: PpoConfig) -> list[PpoPrompt]:
    """At most ``eval_prompts`` of them, those that ``evaluate`` takes first: by hash."""
    by_hash = sorted(questions, key=lambda q: unit_interval(config.seed, "validation", q.prompt_id))
    return by_hash[: config.eval_prompts]
