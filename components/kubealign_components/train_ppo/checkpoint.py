"""Everything that a run needs to go on, as files: adapters, value head, optimiser, controller, log.

There is no state of a random generator among it: all draws depend on the run's seed, the step and the
prompt. The learning rate depends on the step alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from kubealign_components.train_ppo.rollouts import Rollout
from kubealign_components.train_ppo.trainer import PpoTrainer

_WEIGHTS, _OPTIMIZER, _STATE = "adapters.safetensors", "optimizer.pt", "state.json"


@dataclass(kw_only=True, slots=True)
class LoopState:
    """How far a run is."""

    step: int = 0
    """Steps that are done."""
    log: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """``(step, metrics)`` of those, counted from 1."""
    before: list[Rollout | None] = field(default_factory=list)
    """The answers to the held-out prompts before the first step."""


def save_state(folder: Path, trainer: PpoTrainer, progress: LoopState) -> None:
    """Write the state of ``trainer`` to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        f"{part}/{name}": weight.detach().cpu().contiguous()
        for part, named in trainer.weights.items()
        for name, weight in named.items()
    }
    safetensors.torch.save_file(weights, folder / _WEIGHTS)
    torch.save(trainer.optimizer.state_dict(), folder / _OPTIMIZER)
    body = {"kl_coef": trainer.kl.coefficient, "progress": asdict(progress)}
    (folder / _STATE).write_text(json.dumps(body), encoding="utf-8")


def load_state(folder: Path, trainer: PpoTrainer) -> LoopState:
    """Put ``trainer`` into the state that was saved to ``folder``."""
    weights = safetensors.torch.load_file(folder / _WEIGHTS)
    with torch.no_grad():
        for part, named in trainer.weights.items():
            for name, weight in named.items():
                weight.copy_(weights[f"{part}/{name}"])
    trainer.optimizer.load_state_dict(torch.load(folder / _OPTIMIZER, weights_only=True, map_location="cpu"))
    body = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    trainer.kl.coefficient = body["kl_coef"]
    saved = body["progress"]
    return LoopState(
        step=saved["step"],
        log=[(step, metrics) for step, metrics in saved["log"]],
        before=[None if rollout is None else _rollout(rollout) for rollout in saved["before"]],
    )


def _rollout(body: dict[str, Any]) -> Rollout:
    return Rollout(**body | {"prompt": tuple(body["prompt"])})
