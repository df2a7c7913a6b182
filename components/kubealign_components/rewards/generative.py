"""A reward that a model writes: a judge behind an OpenAI-compatible endpoint, and what it must say."""

from __future__ import annotations

import re

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


def generative_judge(
    item: RewardInput,
    *,
    endpoint: str,
    model: str,
    prompt: str = PROMPT,
    low: float = 1.0,
    high: float = 10.0,
    temperature: float = 0.0,
    max_tokens: int = 512,
    seed: int = 0,
    asks: int = 3,
    key_variable: str = "KUBEALIGN_JUDGE_API_KEY",
    seconds: float = 120.0,
    patience: float = 900.0,
) -> float:
    """The score that a model behind an OpenAI-compatible endpoint writes as the last line of its judgement.

    Where the judge samples, an answer that ends otherwise is asked for again, with the next seed; the
    completion is left out, under the name ``no_score``, when none has one, and as ``over_length`` when the
    model cannot take it whole.

    Args:
        item: the completion.
        endpoint: base of the API, such as ``http://judge:8000/v1``.
        model: the model's name there.
        prompt: the question, with ``{conversation}``, ``{response}``, ``{low}`` and ``{high}``.
        low: least score.
        high: greatest score.
        temperature: of the judge's sampling.
        max_tokens: most tokens of its answer.
        seed: of its first answer.
        asks: answers that are asked for at most; at a temperature of 0, which gives the same one again, it is
            one.
        key_variable: environment variable that holds the key, if the endpoint wants one.
        seconds: for one answer.
        patience: seconds for one question in all, while the server is busy.
    """
    server = judge_server(
        endpoint=endpoint,
        model=model,
        prompt=prompt,
        low=low,
        high=high,
        asks=asks,
        key_variable=key_variable,
        seconds=seconds,
        patience=patience,
    )
    values = {
        "conversation": _written(item),
        "response": item.text,
        "low": f"{low:g}",
        "high": f"{high:g}",
    }
    # In one pass: what a completion says of braces is not read again.
    question = re.sub(r"\{(conversation|response|low|high)\}", lambda m: values[m[1]], prompt)
    for number in range(asks if temperature > 0 else 1):
        sampling = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed + number}
        answer = server.answer([{"role": "user", "content": question}], sampling)
        score = score_of(answer.text, low, high)
        if score is not None:
            return score
    raise Refused("no_score")


def judge_server(
    *,
    endpoint: str,
    model: str,
    prompt: str = PROMPT,
    low: float = 1.0,
    high: float = 10.0,
    asks: int = 3,
    key_variable: str = "KUBEALIGN_JUDGE_API_KEY",
    seconds: float = 120.0,
    patience: float = 900.0,
    **_: object,
) -> ChatEndpoint:
    """Where :func:`generative_judge` asks, whose arguments these are; asks nothing yet.

    Raises:
        ConfigError: a setting that it cannot judge with.
    """
    require(low < high, "low", low, f"less than high ({high:g})")
    require(asks >= 1, "asks", asks, "1 or more")
    require("{response}" in prompt, "prompt", prompt, "a text with {response} in it")
    return ChatEndpoint(
        url=endpoint, model=model, key_variable=key_variable, seconds=seconds, patience=patience
    )


def score_of(answer: str, low: float, high: float) -> float | None:
    """The score in the last line of ``answer``; None unless it is one from ``low`` to ``high``."""
    match = _SCORE.fullmatch(answer.rstrip().rpartition("\n")[2])
    score = float(match[1]) if match else None
    return score if score is not None and low <= score <= high else None


def _written(item: RewardInput) -> str:
    """The conversation before the completion, as a reward model is shown it."""
    turns = flatten_chat(item.messages, item.tools)
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
