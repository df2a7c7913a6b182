"""Numbers of settings: KFP carries them as doubles, while YAML writes whole ones of any length."""

from __future__ import annotations

import sys

MAX_INTEGER = 2**53
"""Largest whole number of a setting."""
MAX_DOUBLE = sys.float_info.max


def is_exact(number: float) -> bool:
    """Whether ``number`` is whole, and comes whole through KFP."""
    return isinstance(number, bool) or (abs(number) <= MAX_INTEGER and float(number).is_integer())


def is_double(number: float) -> bool:
    """Whether ``number``, which may be a whole one of any length, can be a float."""
    return not isinstance(number, int) or abs(number) <= MAX_DOUBLE
