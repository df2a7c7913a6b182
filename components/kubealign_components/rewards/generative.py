"""A reward that a model writes: a judge behind an OpenAI-compatible endpoint, and what it must say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from kubealign_components.config import require
from kubealign_components.engines.chat_endpoint import ChatEndpoint
from kubealign_components.engines.reward_input import Refused, RewardInput
from kubealign_components.engines.rewards import flatten_chat

PROMPT = """Judge the response to the conversation below.

# Conversation
{conversation}

# Response
{response}

Say in a few sentences how good the response is. Then write, as your last line and with nothing else on it,
Score: N, where N is a number from {low} to {high}."""

_SCORE = re.compile(r"[\s*_`]*Score[*_`]*:[\s*_`]*(-?[0-9]+(?:\.[0-9]+)?)[\s*_`]*\.?[\s*_`]*")
"""A last line with a score: many a model sets it in bold, or ends it as a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerativeJudge:
    """Settings of :func:`generative_judge`; it asks nothing until it is called."""

    endpoint: str
    """Base of the API, such as ``http://judge:8000/v1``."""
    model: str
    """The model's name there."""
    prompt: str = PROMPT
    """The question, with ``{conversation}``, ``{response}``, ``{low}`` and ``{high}``."""
    low: float = 1.0
    """Least score."""
    high: float = 10.0
    """Greatest score."""
    temperature: float = 0.0
    """Of the judge's sampling."""
    max_tokens: int = 512
    """Most tokens of its answer."""
    seed: int = 0
    """Of its first answer."""
    asks: int = 3
    """Answers that are asked for at most; one at a temperature of 0, which gives the same again."""
    key_variable: str = "KUBEALIGN_JUDGE_API_KEY"
    """Environment variable that holds the key, if the endpoint wants one."""
    seconds: float = 120.0
    """For one answer."""
    patience: float = 900.0
    """Seconds for one question in all, while the server is busy."""

    def __post_init__(self) -> None:
        require(self.low < self.high, "low", self.low, f"less than high ({self.high:g})")
        require(self.asks >= 1, "asks", self.asks, "1 or more")
        require("{response}" in self.prompt, "prompt", self.prompt, "a text with {response} in it")
        self._server()

    def __call__(self, item: RewardInput) -> float:
        """The score of ``item``.

        Raises:
            Refused: no answer has one, or the model cannot take the question whole.
            EngineError: the server refuses, cannot be reached, or stays busy.
        """
        server, question = self._server(), self._question(item)
        for number in range(self.asks if self.temperature > 0 else 1):
            sampling = {
                "temperature": self.temperature,
                "max_tokens": self.max_tokens,
                "seed": self.seed + number,
            }
            answer = server.answer([{"role": "user", "content": question}], sampling)
            score = score_of(answer.text, self.low, self.high)
            if score is not None:
                return score
        raise Refused("no_score")

    def _server(self) -> ChatEndpoint:
        return ChatEndpoint(
            url=self.endpoint,
            model=self.model,
            key_variable=self.key_variable,
            seconds=self.seconds,
            patience=self.patience,
        )

    def _question(self, item: RewardInput) -> str:
        values = {
            "conversation": _written(item),
            "response": item.text,
            "low": f"{self.low:g}",
            "high": f"{self.high:g}",
        }
        # In one pass: what a completion says of braces is not read again.
        return re.sub(r"\{(conversation|response|low|high)\}", lambda m: values[m[1]], self.prompt)


def generative_judge(item: RewardInput, **settings: Any) -> float:
    """The score that a model behind an OpenAI-compatible endpoint writes as the last line of its judgement.

    Where the judge samples, an answer that ends otherwise is asked for again, with the next seed; the
    completion is left out, under the name ``no_score``, when none has one, and as ``over_length`` when the
    model cannot take it whole.

    Args:
        item: the completion.
        settings: those of :class:`GenerativeJudge`.
    """
    return GenerativeJudge(**settings)(item)


def score_of(answer: str, low: float, high: float) -> float | None:
    """The score in the last line of ``answer``; None unless it is one from ``low`` to ``high``."""
    match = _SCORE.fullmatch(answer.rstrip().rpartition("\n")[2])
    score = float(match[1]) if match else None
    return score if score is not None and low <= score <= high else None


def _written(item: RewardInput) -> str:
    """The conversation before the completion, as a reward model is shown it."""
    turns = flatten_chat(item.messages, item.tools)
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
