"""Reward functions that need no model: what they reward can be checked by reading the completion.

Each takes a :class:`~kubealign_components.engines.rewards.RewardInput` and its settings by keyword,
and is named in a reward spec as ``kubealign_components.rewards.functions:<name>``.
"""

from __future__ import annotations

import json
import re
from fractions import Fraction

from kubealign_components.config import require, require_choice
from kubealign_components.engines.rewards import RewardInput

UNITS = ("characters", "tokens")
FORMATS = ("json", "answer_line", "regex")

_NUMBER = r"(?:(?<![\w.])[-−])?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][+-]?\d+)?(?:/\d+(?:\.\d+)?)?"
_NUMBER_IN_TEXT = re.compile(_NUMBER)
_NUMERIC_ANSWER = re.compile(rf"[$€£¥=~≈\s]*({_NUMBER})[\s%°$€£¥./²³^a-zA-Z(),'’-]*")
_MARKER = re.compile(r"answer\s*(?:is|:|=)|####|\\boxed\s*\{", re.IGNORECASE)
_ANSWER_LINE = re.compile(r"(?:\*\*)?answer(?:\*\*)?\s*:(?:\*\*)?\s*\S.*", re.IGNORECASE)
_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)


def exact_answer(item: RewardInput, *, missing: float | None = None) -> float:
    """1.0 if the completion's answer equals one of the prompt's answers, else 0.0.

    The answer is what follows the last "answer is", "Answer:", "####" or "\\boxed{"; without such a
    mark, the last number for numeric answers and the whole text or its last line for others. Numbers
    are compared by value (``1,000`` is ``1000``, ``3.0`` is ``3``, ``3/4`` is ``0.75``), whatever
    currency or unit stands around them; other answers without regard to case, articles and punctuation.

    Args:
        item: the completion.
        missing: reward of prompts without answers; None to refuse them.

    Raises:
        ValueError: the prompt has no answers, and ``missing`` is None.
    """
    if not item.answers:
        if missing is None:
            raise ValueError("the prompt has no answers; give some, or set missing to their reward")
        return float(missing)
    return float(any(_answers(item.text, answer) for answer in item.answers))


def brevity(item: RewardInput, *, unit: str = "characters", scale: float = 256.0) -> float:
    """``scale / (scale + n)``: from 1 towards 0 as the length ``n`` grows; 0 for an empty text.

    Counted in characters it rarely ties. Counted in tokens all completions that were cut at
    max_new_tokens tie.

    Args:
        item: the completion.
        unit: ``characters`` or ``tokens``.
        scale: the length that gets 0.5.
    """
    require(scale > 0, "scale", scale, "a positive length")
    return scale / (scale + _length(item, unit)) if item.text.strip() else 0.0


def target_length(
    item: RewardInput, *, target: float = 200.0, unit: str = "characters", finished: float = 0.5
) -> float:
    """``finished − |n − target| / target``, without ``finished`` for a completion that was cut.

    A graded reward with its best value at a length that leaves room for an answer, so a policy that
    follows it does not end at empty texts.

    Args:
        item: the completion.
        target: the best length.
        unit: ``characters`` or ``tokens``.
        finished: bonus of a completion that ended by itself.
    """
    require(target > 0, "target", target, "a positive length")
    bonus = 0.0 if item.finish_reason == "length" else finished
    return bonus - abs(_length(item, unit) - target) / target


def format_match(
    item: RewardInput, *, kind: str = "json", keys: list[str] | None = None, pattern: str = ""
) -> float:
    """1.0 if the completion has the wanted form, else 0.0.

    Args:
        item: the completion.
        kind: ``json``: the text, or the one fenced block that it is, parses as JSON; ``answer_line``:
            its last line is ``Answer: …``; ``regex``: the whole text matches ``pattern``.
        keys: for ``json``: the text must be an object with these keys.
        pattern: for ``regex``; when empty, the ``pattern`` of the row's metadata.

    Raises:
        ValueError: ``regex`` without a pattern in the settings or the metadata.
    """
    require_choice("kind", kind, FORMATS)
    text = item.text.strip()
    if kind == "json":
        return float(_is_json(text, keys))
    if kind == "answer_line":
        return float(bool(text) and _ANSWER_LINE.fullmatch(text.splitlines()[-1].strip()) is not None)
    wanted = pattern or item.metadata.get("pattern")
    if not wanted:
        raise ValueError("no pattern: set one, or give rows a metadata field of that name")
    return float(re.fullmatch(wanted, text, re.DOTALL) is not None)


def _length(item: RewardInput, unit: str) -> int:
    require_choice("unit", unit, UNITS)
    return item.num_tokens if unit == "tokens" else len(item.text.strip())


def _answers(text: str, answer: str) -> bool:
    """Whether ``text`` gives ``answer``."""
    marks = list(_MARKER.finditer(text))
    said = text[marks[-1].end() :] if marks else text
    number = _NUMERIC_ANSWER.fullmatch(answer.strip())
    if number is not None:
        return _value(number[1]) in _numbers(said, marked=bool(marks))
    return (_words(answer) or answer.strip()) in _phrases(said, marked=bool(marks))


def _numbers(said: str, *, marked: bool) -> list[Fraction]:
    """The number that is given as the answer, as a list of at most one."""
    if marked:
        # "3 + 4 = 7" gives 7, "42 km for 3 people" gives 42, and a mark may stand on its own line.
        result = _first_sentence(said).rpartition("=")[2]
        found = (_NUMBER_IN_TEXT.findall(result) or _NUMBER_IN_TEXT.findall(said))[:1]
    else:
        found = _NUMBER_IN_TEXT.findall(said)[-1:]
    return [value for value in map(_value, found) if value is not None]


def _phrases(said: str, *, marked: bool) -> list[str]:
    lines = [line for line in said.splitlines() if line.strip()]
    if not lines:
        return []
    candidates = [lines[0], _first_sentence(said)] if marked else [said, lines[-1]]
    return [_words(text) or text.strip() for text in candidates]


def _first_sentence(text: str) -> str:
    return re.split(r"\.\s|\}|\n", text.strip(), maxsplit=1)[0]


def _words(text: str) -> str:
    """Lower-case words without articles and punctuation, one space between."""
    words = re.findall(r"\w+", text.lower())
    return " ".join(w for w in words if w not in ("a", "an", "the")) or " ".join(words)


def _value(number: str) -> Fraction | None:
    """The number's exact value; None for a division by zero."""
    top, _, bottom = number.replace(",", "").replace("−", "-").partition("/")
    divisor = Fraction(bottom or 1)
    return Fraction(top) / divisor if divisor else None


def _is_json(text: str, keys: list[str] | None) -> bool:
    fenced = _FENCE.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return keys is None or (isinstance(value, dict) and set(keys) <= value.keys())
