"""Values as sources have them: what counts as missing, as a number, as text, as a verdict."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from numbers import Real

METADATA_CHARS = 256
"""Longer strings of a source's own columns are not kept."""

_MEDIA = re.compile(
    r"(?:input_|query_|question_)?(?:images?|imgs?|pictures?|photos?|pixel_values|audios?|videos?)"
    r"(?:_?\d+|_(?:path|url|uri|file|file_?name|byte|data|b64|base64|token)s?)?",
    re.IGNORECASE,
)
_YES = ("true", "yes", "y", "t", "1", "1.0", "chosen", "preferred", "desirable", "good", "accepted", "accept")
_NO = ("false", "no", "n", "f", "0", "0.0", "-1", "rejected", "dispreferred", "undesirable", "bad", "reject")


PRINTED_CHARS = 2**20
"""Longer texts are not read as what Python prints: its parser takes hundreds of bytes for each character."""
_BETWEEN_ROWS = re.compile(r"\}\s*\n\s*\{")


class Malformed(Exception):
    """A row that cannot be used; ``reason`` is the name it is counted under."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def is_missing(value: object) -> bool:
    """Whether nothing stands there: null, or a number that is none (NaN, infinity)."""
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or (isinstance(value, Decimal) and not value.is_finite())


def number_of(value: object) -> float | None:
    """A finite number, of whatever type or as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real | Decimal | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def name_of(value: object) -> str | None:
    """Text that is not empty, or None."""
    return value if isinstance(value, str) and value else None


def verdict_of(value: object) -> str | None:
    """``chosen`` or ``rejected`` for what :func:`truth_of` understands; else None."""
    truth = truth_of(value)
    return None if truth is None else "chosen" if truth else "rejected"


def truth_of(value: object) -> bool | None:
    """Whether a verdict is a good one, however it is written: yes and no, 1 and 0, true and false."""
    if isinstance(value, bool | Real | Decimal):
        value = str(number_of(float(value)))
    word = value.strip().lower() if isinstance(value, str) else ""
    word = {"-1.0": "-1"}.get(word, word)
    return True if word in _YES else False if word in _NO else None


def is_media(name: str, value: object) -> bool:
    """Whether a column is a picture, sound or film, or says where one is."""
    if is_missing(value) or not value:
        return False
    shaped = isinstance(value, Mapping) and set(value) <= {"bytes", "path"} and any(value.values())
    return shaped or _MEDIA.fullmatch(name) is not None


def text_of(value: object) -> str:
    """The text of a ``content``: a string, nothing, or a list of text parts.

    Raises:
        Malformed: not_text, for images, audio and anything else.
    """
    if isinstance(value, str):
        return value
    if is_missing(value):
        return ""
    if isinstance(value, list):
        return "".join(_part_text(part) for part in value)
    raise Malformed("not_text")


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        raise Malformed("not_text")
    return text


def small_value(value: object) -> object:
    """A value of a source's own column as it is kept in the metadata; None when it is not kept."""
    if isinstance(value, str):
        return value if 0 < len(value) <= METADATA_CHARS else None
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None
    return number_of(value) if isinstance(value, Real | Decimal) else None


def from_json_text(value: object) -> object:
    """Lists and objects that a source keeps as JSON text, as CSV and some Parquet files must, or as Python
    prints them, which is what pandas writes of them."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        parsed = json.loads(value, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        printed = value.startswith(("[{'", "{'")) and len(value) <= PRINTED_CHARS
        parsed = _printed(value) if printed else value
    return parsed if _is_structure(parsed) else value


def _printed(text: str) -> object:
    """The value that Python prints as ``text``; other text as it is."""
    # Arrays are printed without commas, and a text never has a line's end in it.
    text = _BETWEEN_ROWS.sub("}, {", text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def list_from_text(text: str) -> object:
    """The texts that ``text`` is a JSON list of, more than none; other text as it is."""
    try:
        parsed = json.loads(text) if text[:2] in ('["', "[ ") and text[-1:] == "]" else None
    except (ValueError, RecursionError):
        return text
    texts = isinstance(parsed, list) and bool(parsed) and all(isinstance(item, str) for item in parsed)
    return parsed if texts else text


def first_of(row: Mapping[str, object], *names: str) -> object:
    """The first of the named members that is there and not missing."""
    return next((row[name] for name in names if not is_missing(row.get(name))), None)


def _is_structure(value: object) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)
    )
