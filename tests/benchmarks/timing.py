"""Peer and project in turns, so that what else the machine does hits both."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TypeVar

T = TypeVar("T")


def alternate(ways: dict[str, Callable[[], T]], rounds: int) -> tuple[dict[str, float], dict[str, T]]:
    """Median seconds and last result of each way, run in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, T] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            results[name] = way()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}, results
