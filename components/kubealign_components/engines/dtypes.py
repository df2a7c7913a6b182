"""Precisions by name, and what ``auto`` means: one thing, wherever a model is run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from kubealign_components.data.model_files import CONFIG, files_below, named_dtype, weights_among
from kubealign_components.data.models import read_object
from kubealign_components.data.weight_files import first_dtype
from kubealign_components.data.weight_records import WeightFile
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


def saved_dtype_name(name: str, source: Path, weights: Mapping[str, WeightFile] | None = None) -> str:
    """The precision that ``save_dtype`` ``name`` means for weights of the policy at ``source``.

    Args:
        name: the setting.
        source: the policy's folder.
        weights: its files of weights by name where they do not lie there.

    Raises:
        EngineError: ``save_dtype`` is saved, and the policy's own is none that training can save.
    """
    if name == "saved":
        name = named_dtype(read_object(source / CONFIG)) or _dtype_of_weights(source, weights or {})
    kept = _KEPT.get(name.removeprefix("torch."))
    if kept is None:
        raise EngineError(
            f"the policy at {source} is in dtype {name!r}, which training cannot save; set save_dtype to "
            "bfloat16 or float32"
        )
    return kept


def _dtype_of_weights(source: Path, weights: Mapping[str, WeightFile]) -> str:
    """What the first matrix of the policy's files is in."""
    stored = [weights[name].dtype for name in sorted(weights)]
    if not weights:
        names = weights_among(files_below(source), lambda name: (source / name).read_bytes())
        stored = [first_dtype(source / name) for name in names[:1]]
    first = next(filter(None, stored), "F32")
    return _IN_FILES.get(first, first)


def _may_have_gpus() -> bool:
    if sys.modules.get("torch") is not None or sys.platform != "linux":
        return True
    return any(any(Path("/dev").glob(pattern)) for pattern in _DEVICES)
