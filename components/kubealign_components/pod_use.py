"""What the pods of a step took: hours of GPUs and of processor cores, and what these cost.

A compiled task that knows prices tells its pods what they ask for and what an hour of that costs. Whoever
publishes their work keeps the hours with it, beside the recipe: they decide on no row.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping

POD_VARIABLE = "KUBEALIGN_POD"
"""Environment variable with JSON: ``gpus`` and ``cpus`` of all pods that do the task's work at once, for one
chunk of a fan-out, and the ``price`` of an hour of these."""
BEGAN_VARIABLE = "KUBEALIGN_BEGAN"
"""Environment variable with the time, in seconds since 1970, at which the first attempt in this pod began."""
GPU_HOURS, CPU_HOURS, COST = "gpu_hours", "cpu_hours", "cost"
USE = (GPU_HOURS, CPU_HOURS, COST)
"""What is kept; each adds up over pods."""
_LOADED = time.time()

Use = dict[str, float]
"""Hours and cost by name."""


def pod_use() -> Use:
    """What this task's pods took up to now; nothing where no price is known."""
    text = os.environ.get(POD_VARIABLE)
    if not text:
        return {}
    pod = json.loads(text)
    hours = (time.time() - float(os.environ.get(BEGAN_VARIABLE) or _LOADED)) / 3600
    return {GPU_HOURS: hours * pod["gpus"], CPU_HOURS: hours * pod["cpus"], COST: hours * pod["price"]}


def added(uses: Iterable[Mapping[str, float]]) -> Use:
    """The sum of ``uses``; nothing of nothing."""
    given = [use for use in uses if use]
    return {name: math.fsum(use[name] for use in given) for name in USE} if given else {}


def is_use(value: object) -> bool:
    """Whether ``value`` is what :func:`pod_use` gives."""
    return (
        isinstance(value, dict)
        and value.keys() <= set(USE)
        and all(type(n) in (int, float) and 0 <= n < math.inf for n in value.values())
    )
