"""A judge behind an OpenAI-compatible endpoint, which is asked for the letter of the better response.

Where the server gives log-probabilities, those of the two letters are the preference, as of a model that is
loaded here. Where it gives none, the letter is what there is.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from kubealign_components.data.chat.rendering import without_reasoning
from kubealign_components.data.templates import JudgeTemplate
from kubealign_components.engines.chat_endpoint import Answer, ChatEndpoint, NoLogprobs
from kubealign_components.engines.comparison import LABELS, Comparison
from kubealign_components.engines.reward_input import Refused
from kubealign_components.errors import EngineError
from kubealign_components.printable import shortened

AT_ONCE = 32
"""Questions that the server gets at a time."""
ALTERNATIVES = 20
"""Tokens whose log-probabilities are asked for, the most that servers give."""
LETTER_ALONE = math.log(2)
"""Log-odds that a letter without log-probabilities stands for: after one answer the mean of a uniform prior
is two thirds."""
INSTRUCTION = f"Answer with one letter and nothing else: {LABELS[0]} or {LABELS[1]}."
_FRAME = " \t\n()[]*_`\"'.:"
_LETTER = re.compile(rf"[{re.escape(_FRAME)}]*([abAB])[{re.escape(_FRAME)}]*")
_LEAST = -1000.0
"""Nats that what a server calls impossible is taken for: a preference is a number."""
_ENOUGH = 8
"""Answers without a letter that say something of the judge, where there is no other."""

log = logging.getLogger(__name__)


class EndpointJudge:
    """Asks for preferences.

    Args:
        endpoint: where the judge is.
        template: the question; what its answer begins with is not used, for endpoints begin their own.
        answer_tokens: most tokens of an answer, reasoning included.
    """

    def __init__(self, endpoint: ChatEndpoint, template: JudgeTemplate, *, answer_tokens: int) -> None:
        self._endpoint = endpoint
        self._template = template
        self._answer_tokens = answer_tokens
        self._logprobs = True
        self._gives_letters = False

    def preferences(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """For each comparison log p(a) - log p(b), in nats: above zero where the first response is preferred;
        None where the question is too long for the judge, or no letter is its answer.

        Raises:
            EngineError: the endpoint cannot be asked, or the judge has answered nothing with a letter so far,
                nor what any judge can.
        """
        with ThreadPoolExecutor(AT_ONCE, "judge") as threads:
            answers = list(threads.map(self._answer, comparisons))
        values = [None if answer is None else preference(answer) for answer in answers]
        given = [answer for answer in answers if answer is not None]
        self._gives_letters |= any(value is not None for value in values)
        if len(given) >= _ENOUGH and not (self._gives_letters or self._answers_plainly(comparisons[0])):
            raise EngineError(
                f"{self._endpoint.model} at {self._endpoint.url} was asked for a letter, a or b, "
                f"{len(given)} times and gave none; it says {shortened(given[0].text, 120)!r}; one that "
                f"reasons first needs more answer_tokens (now {self._answer_tokens})"
            )
        return values

    def _answers_plainly(self, comparison: Comparison) -> bool:
        """Whether there is a letter for two harmless responses: then it was what the prompts ask, of which a
        judge may not speak, and not its form of answers."""
        messages = [{"role": "user", "content": "What is 1 + 1?"}]
        answer = self._answer(replace(comparison, messages=messages, first="2", second="I will not tell."))
        self._gives_letters = answer is not None and preference(answer) is not None
        return self._gives_letters

    def _answer(self, comparison: Comparison) -> Answer | None:
        question = f"{comparison.question(self._template)}\n\n{INSTRUCTION}"
        messages = [{"role": "user", "content": question}]
        sampling: dict[str, object] = {"temperature": 0.0, "seed": 0, "max_tokens": self._answer_tokens}
        try:
            return self._with_logprobs(messages, sampling)
        except Refused:
            return None

    def _with_logprobs(self, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, object]) -> Answer:
        """The answer, with log-probabilities from a server that gives them."""
        if self._logprobs:
            try:
                return self._endpoint.answer(
                    messages, {**sampling, "logprobs": True, "top_logprobs": ALTERNATIVES}
                )
            except NoLogprobs as error:
                log.warning("%s; the letter alone counts", error)
                self._logprobs = False
        return self._endpoint.answer(messages, sampling)


def preference(answer: Answer) -> float | None:
    """Log p(a) - log p(b) by ``answer``; None unless it is one of the letters and nothing else."""
    match = _LETTER.fullmatch(without_reasoning(answer.text))
    if match is None:
        return None
    letter = match[1].lower()
    at_letter = [token.alternatives for token in answer.tokens if _bare(token.text) == letter]
    of_letters = _of_letters(at_letter[-1]) if at_letter else None
    if of_letters is None:
        return LETTER_ALONE if letter == LABELS[0] else -LETTER_ALONE
    return of_letters[0] - of_letters[1]


def _of_letters(alternatives: Mapping[str, float]) -> tuple[float, float] | None:
    """Log-probabilities of both letters, however they are written. One that is not among the alternatives is
    at most as likely as the least of them; None where both are not, or a letter is all there is."""
    first, second = (list(_written(alternatives, letter)) for letter in LABELS)
    if not (first and second) and len(first) + len(second) in (0, len(alternatives)):
        return None
    least = [max(min(alternatives.values()), _LEAST)]
    return _log_sum(first or least), _log_sum(second or least)


def _written(alternatives: Mapping[str, float], letter: str) -> Iterator[float]:
    return (max(value, _LEAST) for token, value in alternatives.items() if _bare(token) == letter)


def _log_sum(values: Sequence[float]) -> float:
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))


def _bare(token: str) -> str:
    return token.strip(_FRAME).lower()
