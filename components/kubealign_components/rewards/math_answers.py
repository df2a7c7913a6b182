"""Equality of mathematical answers by math-verify, within limits.

Its parser and sympy take as long as an expression wants, and its own time limit needs signals, which
threads have not. So the input is bounded, and what is left runs in a process of its own that is ended when it
takes too long.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache

from kubealign_components.engines.worker import TimedOut, Worker, WorkerDied

MAX_CHARACTERS = 300
MAX_POWER_DIGITS = 3
SECONDS = 10.0
"""A comparison that takes longer finds the answers different."""

_MATHEMATICS = re.compile(
    r"[\\^_{}()\[\]=+*/√π∞±<>≤≥!]|\d\s*[a-z](?![a-z])|\d\s*(?:,|\s(?:and|or)\s)\s*-?\d", re.IGNORECASE
)
# What sympy would work out: towers of powers, large ones, factorials of more than numbers, sums, integrals.
_UNBOUNDED = re.compile(
    rf"\^[^,;]*\^|\^\s*\{{?\s*\(?-?\d{{{MAX_POWER_DIGITS + 1},}}|\*\*|(?<!\d)!|\d{{4,}}!|!\s*!|\d{{40,}}"
    r"|\\(?:sum|prod|int|iint|lim|bigcup|bigcap)(?![a-z])"
    r"|\\[dt]?binom(?!\s*\{\d{1,3}\}\s*\{\d{1,3}\})"
)


_BASED = re.compile(r"([0-9A-Za-z]+)_(\d+)")
"""Numbers in a base: math-verify does not read the base."""
_AND = re.compile(r"\s*,?\s+(?:and|or)\s+")


def is_mathematics(text: str) -> bool:
    """Whether ``text`` is an expression and not words, short enough to be worked with."""
    return len(text) <= MAX_CHARACTERS and _MATHEMATICS.search(text) is not None


def equal_mathematics(one: str, other: str) -> bool:
    """Whether both texts are expressions of one value, set, interval, tuple or function."""
    if _UNBOUNDED.search(one) or _UNBOUNDED.search(other):
        return False
    if sorted(_BASED.findall(one)) != sorted(_BASED.findall(other)):
        return False
    return _equal(one, other)


@lru_cache(4096)
def _equal(one: str, other: str) -> bool:
    try:
        return bool(_worker().call(verified, one, other, seconds=SECONDS))
    except (TimedOut, WorkerDied):
        return False


@lru_cache(1)
def _worker() -> Worker:
    return Worker("mathematics")


def verified(one: str, other: str) -> bool:
    """What math-verify says; called in a process of its own."""
    from math_verify import parse, verify  # type: ignore[import-untyped]

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    one, other = (_AND.sub(", ", side) for side in (one, other))
    sides = [parse(f"${side}$", parsing_timeout=None, raise_on_error=False) for side in (other, one)]
    return all(sides) and bool(verify(*sides, timeout_seconds=None, allow_set_relation_comp=True))
