"""Precisions by name, and what ``auto`` means: one thing, wherever a model is run."""

from __future__ import annotations

DTYPES = ("auto", "bfloat16", "float16", "float32")
"""Precisions that a model can be run in."""
SAVED = ("saved", "bfloat16", "float16", "float32")
"""Precisions of weights that are kept: ``saved`` is that which the model was saved in."""


def resolved_dtype(dtype: str, device: str = "auto") -> str:
    """``dtype`` itself, or what ``auto`` means where the model runs: bfloat16 on CUDA, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if on_cuda(device) else "float32"


def on_cuda(device: str) -> bool:
    """Whether a model on ``device`` runs on CUDA: ``auto`` takes it where it is there."""
    import torch

    return torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
