r"""Where a text gives its answer: behind GSM8K's ``####``, in MATH's last ``\boxed{…}``."""

from __future__ import annotations

import re

_BOXED = re.compile(r"\\f?boxed\s*(\{|\S)")
_FRAMED = re.compile(r"\\fbox\s*(\{|\S)")
_HASHES = re.compile(r"#{4,}[ \t]*(\S[^\n]*)")


def reference_answer(text: str) -> str:
    r"""The answer of a reference that may be a whole solution.

    That is what stands in the last ``\boxed{…}``, else behind ``####`` on the last line, else all of it.
    """
    boxed = last_boxed(text)
    if boxed:
        return boxed
    last = text.strip().rpartition("\n")[2]
    match = _HASHES.fullmatch(last.strip())
    return match[1].strip() if match else text.strip()


def last_boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{…}`` of ``text``, braces matched; None when there is none, or it
    does not close. ``\boxed 3`` holds one character. A text without any may have its answer in
    ``\fbox{…}``."""
    marks = list(_BOXED.finditer(text)) or list(_FRAMED.finditer(text))
    if not marks:
        return None
    mark = marks[-1]
    if mark[1] != "{":
        return mark[1]
    depth, escaped = 1, False
    for position in range(mark.end(), len(text)):
        character = text[position]
        if not escaped:
            depth += {"{": 1, "}": -1}.get(character, 0)
        escaped = character == "\\" and not escaped
        if not depth:
            return text[mark.end() : position].strip()
    return None
