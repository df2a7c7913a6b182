"""The learning rate by step."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, *, steps: int, warmup: int, schedule: str) -> float:
    """Share of the peak learning rate in ``step`` (from 0) of ``steps``: positive in every one of them.

    It rises over ``warmup`` steps, then falls to 0 at the end of the last step or stays.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1 - done if schedule == "linear" else 1.0
