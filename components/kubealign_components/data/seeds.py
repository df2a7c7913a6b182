"""Random numbers that depend on what a row is, never on where it stands."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_for(run_seed: int, *names: str | int) -> int:
    """A 62-bit seed from the run's seed and a row's names.

    vLLM seeds child ``i`` of a request with ``seed + i``: 62 bits leave room below its limit, and
    hashed seeds of neighbouring prompts do not overlap.
    """
    text = "\x1f".join([str(run_seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def generator_for(run_seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator of its own for one row."""
    return np.random.default_rng(seed_for(run_seed, *names))


def unit_interval(run_seed: int, *names: str | int) -> float:
    """A number in [0, 1) that is fixed for a row: hash-based splits stay the same as data grows."""
    return seed_for(run_seed, *names) / 2**62


def is_held_out(prompt_id: str, fraction: float, seed: int) -> bool:
    """Whether a prompt belongs to the validation split: decided by its id alone."""
    return unit_interval(seed, "validation", prompt_id) < fraction
