"""Random numbers that depend on what a row is, never on where it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kubealign_components.config import require
from kubealign_components.errors import DataError

ID_LENGTH = 32
"""Hex digits of a prompt, completion or example id."""

VALIDATION = "validation"
"""What the draw of the held-out prompts is called."""

Keys = NDArray[np.uint64]

_NIBBLE = np.full(256, 255, dtype=np.uint8)
_NIBBLE[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16, dtype=np.uint8)


def require_validation_fraction(value: float) -> None:
    """Raise :class:`ConfigError` unless ``value`` is a share of the prompts that leaves some to train on."""
    require(0 <= value < 1, "validation_fraction", value, "a share of the prompts, from 0 to below 1")


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
    return unit_interval(seed, VALIDATION, prompt_id) < fraction


def held_out(prompt_ids: Iterable[str], fraction: float, seed: int) -> NDArray[np.bool_]:
    """:func:`is_held_out` of many prompts, four times as fast; shape (prompts,)."""
    begun = f"{seed}\x1f{VALIDATION}\x1f".encode()
    digests = b"".join([hashlib.sha256(begun + name.encode()).digest() for name in prompt_ids])
    return (np.frombuffer(digests, ">u8")[::4] >> np.uint64(2)) / 2**62 < fraction


def id_keys(ids: pa.Array, run_seed: int, purpose: str) -> Keys:
    """One 64-bit key an id, uniform, fixed by the id, the run's seed and the purpose alone.

    Sorting by such keys is a seeded shuffle, and the smallest k are a seeded sample that changes as
    little as can be when ids come or go. All ids of a batch at once, without a Python object each.

    Args:
        ids: content hashes of 32 hex digits, shape (n,).
        run_seed: the run's seed.
        purpose: keys of different purposes are independent.

    Raises:
        DataError: an id that is no content hash.
    """
    if not len(ids):
        return np.empty(0, dtype=np.uint64)
    lengths = pc.fill_null(pc.binary_length(ids), 0)
    if pc.any(pc.not_equal(lengths, ID_LENGTH)).as_py():
        raise _no_hash(ids.filter(pc.not_equal(lengths, ID_LENGTH))[0].as_py())
    digits = np.frombuffer(ids.buffers()[2], dtype=np.uint8)
    start = np.frombuffer(ids.buffers()[1], dtype=np.int32)[ids.offset]
    nibbles = _NIBBLE[digits[start : start + ID_LENGTH * len(ids)].reshape(len(ids), ID_LENGTH)[:, :16]]
    if (nibbles > 15).any():
        raise _no_hash(ids[int(np.argmax((nibbles > 15).any(axis=1)))].as_py())
    high_bytes = np.ascontiguousarray((nibbles[:, 0::2] << 4) | nibbles[:, 1::2])
    return mix64(high_bytes.view(">u8")[:, 0].astype(np.uint64) ^ np.uint64(seed_for(run_seed, purpose)))


def mix64(values: Keys) -> Keys:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection that spreads every bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _no_hash(value: object) -> DataError:
    return DataError(f"id {value!r}: expected a content hash of {ID_LENGTH} lower-case hex digits")
