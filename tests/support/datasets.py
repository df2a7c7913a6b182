"""Datasets of small rows, and what spoils them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubealign_components.data.dataset import Dataset
from support.tiny import prompt_row

MakeDataset = Callable[..., Dataset]
"""What the fixture ``make_dataset`` gives: ``make_dataset(rows, schema=PROMPTS)`` publishes rows."""


def questions(count: int) -> list[dict[str, Any]]:
    """Rows of ``count`` different prompts without completions."""
    return [prompt_row(f"question {i}") for i in range(count)]


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of the file, as a disk does."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # what is published is read-only
    path.write_bytes(content)
