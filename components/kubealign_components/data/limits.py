"""Limits that planning and compiling share."""

from __future__ import annotations

MAX_CHUNKS = 100
"""Of a fan-out: KFP hands the parts of all chunks, and the chunks, to ``merge`` in one argument of at most
128 KiB. What the object of a run has room for may be less."""
