"""The shipped reward functions. All but :func:`~.generative.generative_judge` need no model: what they reward
can be checked by reading the completion.

Each takes a :class:`~kubealign_components.engines.rewards.RewardInput` and its settings by keyword,
and is named in a reward spec by its short name. A change of what one of them gives raises its number in
:data:`~kubealign_components.engines.reward_functions.SHIPPED`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

from kubealign_components.config import require, require_choice
from kubealign_components.engines.reward_input import Refused, RewardInput
from kubealign_components.errors import ConfigError
from kubealign_components.rewards.answers import gives_answer
from kubealign_components.rewards.generative import GenerativeJudge, generative_judge

__all__ = ["brevity", "exact_answer", "format_match", "generative_judge", "target_length"]

SETTINGS: Mapping[str, type] = {"generative_judge": GenerativeJudge}
"""The class of a function's settings, by the name of those that have one: which of them cannot be used
it tells without a completion or a server."""

UNITS = ("characters", "tokens")
FORMATS = ("json", "answer_line", "regex")

PATTERN_SECONDS = 2.0
"""A pattern that takes longer on a text is refused."""

_ANSWER_LINE = re.compile(r"(?:\*\*)?answer(?:\*\*)?\s*:(?:\*\*)?\s*\S.*", re.IGNORECASE)


def exact_answer(item: RewardInput, *, missing: float | None = None) -> float:
    r"""1.0 if the completion's answer equals one of the prompt's answers, else 0.0.

    The answer is what stands in the last ``\boxed{…}``, or behind the last "answer is", "Answer:" or
    "####", in the completion as in the reference; without such a mark, the last number for numeric answers
    and the whole text or its last line for others. Numbers are compared by value (``1,000`` is ``1000``,
    ``.5`` is ``1/2`` is ``\frac{1}{2}`` is ``50%``), whatever currency or unit stands around them; options
    by their letter; tuples, intervals, sets and expressions by math-verify; other answers without regard to
    case, articles and punctuation.

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
    return float(any(gives_answer(item.text, answer) for answer in item.answers))


def brevity(item: RewardInput, *, unit: str = "characters", scale: float = 256.0) -> float:
    """``scale / (scale + n)``: from 1 towards 0 as the length ``n`` grows; 0 for an empty text.

    Counted in characters it rarely ties. Counted in tokens all completions that were cut at
    max_new_tokens tie.

    Args:
        item: the completion.
        unit: ``characters`` or ``tokens``.
        scale: the length that gets 0.5.
    """
    require(0 < scale < math.inf, "scale", scale, "a positive length")
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
    require(0 < target < math.inf, "target", target, "a positive length")
    require(math.isfinite(finished), "finished", finished, "a finite number")
    bonus = 0.0 if item.finish_reason == "length" else finished
    return bonus - abs(_length(item, unit) - target) / target


def format_match(
    item: RewardInput,
    *,
    kind: str = "json",
    keys: list[str] | None = None,
    pattern: str = "",
    finished: bool = False,
) -> float:
    """1.0 if the completion has the wanted form, else 0.0.

    Args:
        item: the completion.
        kind: ``json``: the text, or the one fenced block that it is, parses as JSON; ``answer_line``:
            its last line is ``Answer: …``; ``regex``: the whole text matches ``pattern``.
        keys: for ``json``: the text must be an object with these keys.
        pattern: for ``regex``; when empty, the ``pattern`` of the row's metadata.
        finished: a completion that was cut at max_new_tokens has no form, whatever stands there so far.

    Raises:
        ValueError: ``regex`` without a pattern in the settings or the metadata.
    """
    require_choice("kind", kind, FORMATS)
    named = keys is None or (isinstance(keys, list) and all(isinstance(key, str) for key in keys))
    require(named, "keys", keys, "a list of names")
    if finished and item.finish_reason == "length":
        return 0.0
    text = item.text.strip()
    if kind == "json":
        return float(_is_json(text, keys))
    if kind == "answer_line":
        return float(bool(text) and _ANSWER_LINE.fullmatch(text.splitlines()[-1].strip()) is not None)
    expression = pattern or item.metadata.get("pattern")
    if not expression:
        raise ValueError("no pattern: set one, or give rows a metadata field of that name")
    return float(_matches(str(expression), text, of_row=not pattern))


def _length(item: RewardInput, unit: str) -> int:
    require_choice("unit", unit, UNITS)
    return item.num_tokens if unit == "tokens" else len(item.text.strip())


def _matches(pattern: str, text: str, *, of_row: bool) -> bool:
    """Whether the whole ``text`` matches; a row's pattern that is none, or takes too long, is refused."""
    import regex  # type: ignore[import-untyped]  # not needed to compile a pipeline

    try:
        return regex.fullmatch(pattern, text, regex.DOTALL, timeout=PATTERN_SECONDS) is not None
    except regex.error as error:
        if of_row:
            raise Refused("bad_pattern") from error
        raise ConfigError("pattern", pattern, f"a regular expression ({error})") from error
    except TimeoutError as error:
        if of_row:
            raise Refused("slow_pattern") from error
        raise ConfigError(
            "pattern", pattern, f"a regular expression that takes less than {PATTERN_SECONDS:g} s on a text"
        ) from error


def _is_json(text: str, keys: list[str] | None) -> bool:
    try:
        value = json.loads(_unfenced(text), parse_constant=_no_json)
    except (ValueError, RecursionError):
        return False
    return keys is None or (isinstance(value, dict) and set(keys) <= value.keys())


def _unfenced(text: str) -> str:
    """What stands in the fenced block that ``text`` is; other text as it is."""
    first, _, rest = text.partition("\n")
    body, mark, after = rest.rpartition("```")
    fenced = first.strip() in ("```", "```json") and mark and not after.strip()
    return body if fenced else text


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
