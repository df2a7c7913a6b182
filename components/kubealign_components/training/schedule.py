"""The steps of a training, and the learning rate in each."""

from __future__ import annotations

import math

from kubealign_components.training.config import TrainerConfig

_ROUNDING = 1e-9
"""Of a share of steps: a third of three is one."""


def planned_steps(config: TrainerConfig, examples: int) -> int:
    """Optimiser steps of a whole training on ``examples``, which ``Trainer`` counts in the same way."""
    of_epoch = max(1, math.ceil(examples / config.batch_size))
    return config.max_steps or math.ceil(config.epochs * of_epoch)


def steps_in(share: float, steps: int) -> int:
    """How many of ``steps`` make the ``share`` of them, at least that much."""
    return math.ceil(share * steps - _ROUNDING)


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
