"""What a rollout is worth, part by part: reward model, reward functions, length bonus, stop penalty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.chat.tokenizer import load_tokenizer
from kubealign_components.engines.loading import context_length
from kubealign_components.engines.reward_model import RewardChat
from kubealign_components.engines.rewards import (
    OVER_LENGTH,
    Outcome,
    Rewarder,
    RewardInput,
    RewardSpec,
    flatten_chat,
)
from kubealign_components.engines.token_batches import longest_first
from kubealign_components.errors import EngineError
from kubealign_components.train_ppo.config import PpoConfig
from kubealign_components.train_ppo.model import PpoModel
from kubealign_components.train_ppo.objectives import length_bonus, stop_penalty
from kubealign_components.train_ppo.prompts import PrincipleDraw, Shown, Turn
from kubealign_components.train_ppo.sampling import Sample

PARTS = ("reward_model", "reward_functions", "length_bonus", "stop_penalty")
"""What a score is the sum of."""


@dataclass(slots=True)
class Rollout:
    """A completion with all that is known of it; plain numbers, so that processes can exchange it."""

    prompt_id: str
    prompt: tuple[int, ...]
    completion: list[int]
    ended: bool
    text: str
    principles: list[str]
    """Names of those it was scored by."""
    parts: dict[str, float]
    """By :data:`PARTS`."""
    logprobs: list[float] = field(default_factory=list)
    """Of each token under the policy that sampled it."""
    reference: list[float] = field(default_factory=list)
    """Of each token under the reference."""
    values: list[float] = field(default_factory=list)
    """Of the state before each token."""
    entropy: list[float] = field(default_factory=list)
    """Of the policy at each token."""

    @property
    def score(self) -> float:
        """The sum of the parts."""
        return math.fsum(self.parts.values())

    @property
    def tokens(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt) + len(self.completion)


class RolloutScorer:
    """Scores rollouts.

    Args:
        config: the settings.
        model: scores conversations where it has a reward adapter.
        template: the policy's, which gives the texts.
        draw: the principles of each rollout.
        reward_model: directory of the reward model, whose tokenizer and template are used; None without.
    """

    def __init__(
        self,
        config: PpoConfig,
        model: PpoModel,
        template: ChatTemplate,
        draw: PrincipleDraw,
        reward_model: Path | None,
    ) -> None:
        self._config, self._model, self._template, self._draw = config, model, template, draw
        self._functions = Rewarder(RewardSpec(functions=config.functions)) if config.functions else None
        self._chat: RewardChat | None = None
        self._limit = 0
        if reward_model is not None:
            tokenizer = load_tokenizer(reward_model)
            self._chat = RewardChat(tokenizer, reward_model.name)
            self._limit = context_length(model.base.config, tokenizer)

    def close(self) -> None:
        """End the processes of the reward functions."""
        if self._functions is not None:
            self._functions.close()

    def score(self, turns: Sequence[Turn], samples: Sequence[Sample]) -> list[Rollout | str]:
        """One rollout for each sample, in order; in its place why it has no score, where the reward model has
        no room for it or a function refused it.

        Raises:
            EngineError: a reward is no finite number, or a function raised.
        """
        texts = [self._template.decode(sample.token_ids) for sample in samples]
        shown = [self._draw(turn) if self._chat else [] for turn in turns]
        judged = self._model_scores(turns, texts, shown)
        functions = self._function_scores(turns, samples, texts)
        rules = self._rules(turns, samples)
        return [
            OVER_LENGTH
            if score is None
            else str(function.refused)
            if function.reward is None
            else Rollout(
                prompt_id=turn.question.prompt_id,
                prompt=turn.question.token_ids,
                completion=sample.token_ids,
                ended=sample.ended,
                text=text,
                principles=[principle["name"] for principle in principles],
                parts=dict(zip(PARTS, (score, function.reward, *rule), strict=True)),
            )
            for turn, sample, text, principles, score, function, rule in zip(
                turns, samples, texts, shown, judged, functions, rules, strict=True
            )
        ]

    def _model_scores(
        self, turns: Sequence[Turn], texts: Sequence[str], shown: Sequence[list[Shown]]
    ) -> list[float | None]:
        if self._chat is None:
            return [0.0] * len(turns)
        ids = []
        for turn, text, principles in zip(turns, texts, shown, strict=True):
            answer = {"role": "assistant", "content": text}
            chat = flatten_chat([*turn.question.messages, answer], turn.question.tools)
            ids.append(self._chat.tokenise(chat, principles))
        scores: list[float | None] = [None] * len(turns)
        fitting = [i for i, tokens in enumerate(ids) if len(tokens) <= self._limit]
        for batch in longest_first([len(ids[i]) for i in fitting], self._config.micro_batch_tokens):
            chosen = [fitting[i] for i in batch]
            for i, score in zip(chosen, self._model.scores([ids[i] for i in chosen]), strict=True):
                if not math.isfinite(score):
                    raise EngineError(
                        f"the reward model gave {score} for {texts[i][:300]!r}; use dtype=float32"
                    )
                scores[i] = self._config.reward_model_weight * score
        return scores

    def _function_scores(
        self, turns: Sequence[Turn], samples: Sequence[Sample], texts: Sequence[str]
    ) -> list[Outcome]:
        if self._functions is None:
            return [Outcome(reward=0.0)] * len(turns)
        inputs = [_input(*each) for each in zip(turns, samples, texts, strict=True)]
        return self._functions.outcomes(inputs)

    def _rules(self, turns: Sequence[Turn], samples: Sequence[Sample]) -> list[list[float]]:
        """Length bonus and stop penalty of each rollout."""
        config = self._config
        bonus_B = length_bonus(
            torch.tensor([len(sample.token_ids) for sample in samples]),
            torch.tensor([turn.question.length_bonus for turn in turns]),
            max_new_tokens=config.max_new_tokens,
            scale=config.length_bonus_scale,
            cap=config.length_bonus_cap,
        )
        penalty_B = stop_penalty(
            torch.tensor([sample.ended for sample in samples]), penalty=config.stop_penalty
        )
        rules: list[list[float]] = torch.stack([bonus_B, penalty_B], dim=1).tolist()
        return rules


def _input(turn: Turn, sample: Sample, text: str) -> RewardInput:
    question = turn.question
    completion: list[dict[str, Any]] = [{"role": "assistant", "content": text}]
    return RewardInput(
        messages=question.messages,
        completion=completion,
        text=text,
        answers=question.answers,
        tools=question.tools,
        metadata=question.metadata,
        num_tokens=len(sample.token_ids),
        finish_reason="stop" if sample.ended else "length",
    )
