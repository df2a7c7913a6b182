"""Texts of others on terminals and in logs: short, without what moves a cursor, and without secrets."""

from __future__ import annotations

import os
import re

SECRET_NAME = re.compile(r"(^|[_-])(token|secret|password|passwd|api_?key|access_?key|credentials?)$", re.I)
"""Names of settings and variables that hold a secret."""
_IN_URI = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")
_IN_QUERY = re.compile(
    r"(?P<name>[?&](X-Amz-(?:Signature|Credential)|Signature|sig|token|access_key)=)[^&\s'\"]+", re.I
)
_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{12,}|ghp_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AIza[\w-]{30,})"
)
_HIDDEN = "…"
_SHORTEST = 8
"""Characters from which the value of a variable is a secret and not a word that may stand in any text."""
# C0 and C1 but for tab and newline, what turns the direction of writing, and halves of pairs.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """``text`` with control characters and marks of direction written out; newlines and tabs stay."""
    return _CONTROL.sub(_written_out, text)


def shortened(text: str, most: int) -> str:
    """``text``, or its first ``most`` characters and how many there are."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def redacted(text: str) -> str:
    """``text`` without passwords in URIs, signatures, tokens of known forms, and the values of this process's
    environment variables whose names are those of secrets."""
    # One that was made of a file ends in that file's newline, which messages show otherwise, if at all.
    secrets = {value.strip() for name, value in os.environ.items() if SECRET_NAME.search(name)}
    for value in sorted(secrets, key=len, reverse=True):  # one may begin with another
        if len(value) >= _SHORTEST:
            text = text.replace(value, _HIDDEN)
    text = _IN_URI.sub(_HIDDEN, text)
    text = _IN_QUERY.sub(lambda match: match["name"] + _HIDDEN, text)
    return _TOKEN.sub(_HIDDEN, text)


def has_secret(text: str) -> bool:
    """Whether a secret of a known form stands in ``text``."""
    return any(pattern.search(text) for pattern in (_IN_URI, _IN_QUERY, _TOKEN))


def for_people(text: str) -> str:
    """``text`` as terminals and logs get it."""
    return printable(redacted(text))


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
