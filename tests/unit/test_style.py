"""What is held of the source as a whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST = 12
"""Occurrences of ``Any`` in 1,000 lines."""


@pytest.mark.parametrize("package", ["components", "pipelines", "sdk"])
def test_values_have_types(package: str) -> None:
    texts = [path.read_text() for path in sorted((ROOT / package).rglob("*.py"))]
    lines = sum(text.count("\n") for text in texts)
    untyped = sum(len(re.findall(r"\bAny\b", text)) for text in texts)
    assert lines > 1000
    assert 1000 * untyped <= MOST * lines, (
        f"{untyped} times Any in {lines} lines of {package}: name the type, or object where nothing is asked"
    )
