"""Precisions by name, and what ``auto`` means: one thing, wherever a model is run."""

from __future__ import annotations

import sys
from pathlib import Path

from kubealign_components.data.model_files import CONFIG, files_below, text_config, weights_among
from kubealign_components.data.models import read_object
from kubealign_components.errors import EngineError

DTYPES = ("auto", "bfloat16", "float16", "float32")
"""Precisions that a model can be run in."""
SAVED = ("saved", "bfloat16", "float16", "float32")
"""Precisions of weights that are kept: ``saved`` is that which the model was saved in."""


_KEPT = {"half": "float16", "float": "float32", "double": "float64"}
_KEPT |= {name: name for name in ("float16", "bfloat16", "float32", "float64")}
"""What training can save, by torch's names."""
_IN_FILES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_DEVICES = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd")
"""What Linux calls the devices behind torch's ``cuda``: NVIDIA's, also in WSL and on boards, and AMD's."""


def resolved_dtype(dtype: str, device: str = "auto") -> str:
    """``dtype`` itself, or what ``auto`` means where the model runs: bfloat16 on CUDA, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if on_cuda(device) else "float32"


def device_type(device: str = "auto") -> str:
    """cuda or cpu: where a model on ``device`` runs."""
    return "cuda" if on_cuda(device) else "cpu"


def on_cuda(device: str) -> bool:
    """Whether a model on ``device`` runs on CUDA: ``auto`` takes it where it is there."""
    return device_count() > 0 if device == "auto" else device.startswith("cuda")


def device_count() -> int:
    """GPUs that this process may use. torch, which takes seconds to load, is asked where there may be any."""
    if not _may_have_gpus():
        return 0
    import torch

    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def saved_dtype_name(name: str, source: Path) -> str:
    """The precision that ``save_dtype`` ``name`` means for weights of the policy at ``source``.

    Raises:
        EngineError: ``save_dtype`` is saved, and the policy's own is none that training can save.
    """
    if name == "saved":
        settings = read_object(source / CONFIG)
        named = [s.get(k) for s in (settings, text_config(settings)) for k in ("dtype", "torch_dtype")]
        name = next((str(n) for n in named if n and n != "auto"), "") or _dtype_of_weights(source)
    kept = _KEPT.get(name.removeprefix("torch."))
    if kept is None:
        raise EngineError(
            f"the policy at {source} is in dtype {name!r}, which training cannot save; set save_dtype to "
            "bfloat16 or float32"
        )
    return kept


def _dtype_of_weights(source: Path) -> str:
    """What the first matrix of the policy's files is in."""
    from safetensors import safe_open

    names = weights_among(files_below(source), lambda name: (source / name).read_bytes())
    for name in names:
        if name.endswith(".safetensors"):
            with safe_open(source / name, "np") as file:
                stored = str(file.get_slice(next(iter(file.keys()))).get_dtype())
            return _IN_FILES.get(stored, stored)
    return "float32"


def _may_have_gpus() -> bool:
    if sys.modules.get("torch") is not None or sys.platform != "linux":
        return True
    return any(any(Path("/dev").glob(pattern)) for pattern in _DEVICES)
