"""Trackers that a run reports to: those whose variables are set, by transformers' own callbacks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec

from transformers.integrations import INTEGRATION_TO_CALLBACK

log = logging.getLogger(__name__)

VARIABLES = {
    "kubeflow": ("KUBEFLOW_TRAINER_SERVER_URL",),  # set by Trainer: progress in the TrainJob's status
    "mlflow": ("MLFLOW_TRACKING_URI",),
    "tensorboard": ("TENSORBOARD_LOGGING_DIR",),
    "wandb": ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_MODE"),
}
"""By tracker, the variables of which one asks for it."""


def trackers(environment: Mapping[str, str]) -> list[str]:
    """Names of the trackers that ``environment`` asks for; one that is not installed is told and left out."""
    configured = [name for name, keys in VARIABLES.items() if any(environment.get(key) for key in keys)]
    missing = [name for name in configured if not _usable(name)]
    for name in missing:
        log.warning("%s is asked for by its environment variables, and is not installed here", name)
    return [name for name in configured if name not in missing]


def _usable(name: str) -> bool:
    if name == "kubeflow":
        return name in INTEGRATION_TO_CALLBACK  # speaks HTTP by itself
    return find_spec(name) is not None
