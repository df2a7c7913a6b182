"""Unit tests run on CPUs, whose numbers they know; ``-m gpu`` runs those for cards."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Hide the cards, before anybody asks for them."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
