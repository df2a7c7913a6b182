"""Whether training moved anything that was saved."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from kubealign_components.errors import Unmoved

_ADAPTER = "lora_B"
"""Part of the name of the adapters' weights that are 0 before the first step."""


def require_changed(policy: Path, saved: Path, learning_rate: float) -> None:
    """Refuse a trained model whose weights are the policy's.

    Reading ends at the first weight that differs, so nearly always with the first one.

    Args:
        policy: directory of the model that was trained.
        saved: directory of what came of it: a whole model, or adapters alone.
        learning_rate: peak of the run, for the message.

    Raises:
        Unmoved: no weight differs, in the precision in which they were saved.
    """
    before = {name: file for file in policy.glob("*.safetensors") for name in _names(file)}
    compared = 0
    for file in sorted(saved.glob("*.safetensors")):
        with safe_open(file, framework="pt") as after:
            for name in after.keys():  # noqa: SIM118
                if _ADAPTER in name:
                    old = torch.zeros(())
                elif name in before:
                    old = _tensor(before[name], name)
                elif "lora_" in name:
                    continue  # random from the start
                else:
                    return  # a weight of its own that was tied, or another layout
                new = after.get_tensor(name)
                compared += 1
                if not torch.equal(new, old.to(new.dtype).expand(new.shape)):
                    return
    if compared:
        raise Unmoved(
            "learning_rate",
            learning_rate,
            "a rate that moves weights: those that were saved are the policy's own, all of them. Raise it, "
            "train for more steps, or save in a finer precision (save_dtype)",
        )


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as weights:
        return list(weights.keys())


def _tensor(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as weights:
        tensor: torch.Tensor = weights.get_tensor(name)
        return tensor
