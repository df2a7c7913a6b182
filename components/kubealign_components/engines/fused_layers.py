"""A layer's norms, rotation and gate in a kernel each, on NVIDIA cards where Liger is installed.

Between its products a layer reads and writes each number a dozen times when PyTorch runs it operation by
operation, which is a third of the time that a card spends on a pack. Liger's kernels (Hsu et al. 2024,
arXiv:2410.10989) read once and write once; each computes a row by itself, so that no bit depends on the pack.
They are put into a model at its first pack on a card, and tried on a few of the pack's tokens before they are
trusted: where they raise, or differ from the model's own layers by more than rounding, those stay, and a
warning says why.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import is_liger_kernel_available

log = logging.getLogger(__name__)

KERNELS = {
    "rope": True,
    "rms_norm": True,
    "layer_norm": True,
    "swiglu": True,
    "geglu": True,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}
"""Which of Liger's kernels a model gets; the head is computed in :mod:`.head`."""

_ROTATION = "apply_rotary_pos_emb"
_TRIED = "_kubealign_fused"
_ROUNDING = {torch.bfloat16: 0.25, torch.float16: 0.1}
"""Most that hidden states may differ by, as a fraction of their size; in float32 :data:`_ROUNDING_FP32`."""
_ROUNDING_FP32 = 0.02


def fuse_layers(model: Any, decode: Callable[[], Tensor], dtype: torch.dtype) -> None:
    """Give ``model`` Liger's kernels, once, if they give what its own layers give.

    Args:
        model: a model of transformers, on a card, without PEFT's wrapper.
        decode: the hidden states of a few tokens, by the model as it is at that moment.
        dtype: that its products are computed in.
    """
    if getattr(model, _TRIED, False):
        return
    setattr(model, _TRIED, True)
    source = _source(model)
    if source is None:
        return
    if not is_liger_kernel_available():
        log.info("liger-kernel is not installed: norms and gates run operation by operation, and slower")
        return
    was_training = model.training
    model.eval()  # an adapter's dropout would differ from time to time
    try:
        with torch.no_grad():
            _try(model, source, decode, _ROUNDING.get(dtype, _ROUNDING_FP32))
    finally:
        model.train(was_training)


def _try(model: Any, source: ModuleType, decode: Callable[[], Tensor], rounding: float) -> None:
    own = decode().float()
    names, forwards = dict(vars(source)), {m: m.__dict__.get("forward") for m in model.modules()}
    try:
        _apply(model, source, names)
        apart = float((decode().float() - own).norm() / own.norm())
    except torch.OutOfMemoryError:  # says nothing of the kernels
        raise
    except Exception as error:  # whatever a kernel cannot do, the layers can
        reason = f"{type(error).__name__}: {error}"
    else:
        if apart <= rounding:
            return
        reason = f"hidden states differ from the model's own by {apart:.2g} of their size"
    _restore(source, names, forwards)
    log.warning(
        "Liger's kernels are not used for %s: %s. Layers run slower so, and log-probabilities differ by "
        "rounding from those of cards that use them: score and train on one kind of card",
        model.config.model_type,
        reason,
    )


def _apply(model: Any, source: ModuleType, names: dict[str, Any]) -> None:
    """Liger's kernels for this model's modules alone: others of its kind may be on CPUs."""
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, KERNELS)
    rotation = vars(source).get(_ROTATION)
    vars(source).update(names)
    own = names.get(_ROTATION)
    if own is not None and rotation is not None and rotation is not own:
        vars(source)[_ROTATION] = _by_device(rotation, getattr(own, "__wrapped__", own))
    for module in model.modules():
        if hasattr(module, "row_mode"):
            module.row_mode = True  # else many rows are computed in other blocks than few


def _restore(source: ModuleType, names: dict[str, Any], forwards: dict[nn.Module, Any]) -> None:
    vars(source).update(names)
    for module, forward in forwards.items():
        module.__dict__.pop("forward", None)
        if forward is not None:
            module.__dict__["forward"] = forward


def _by_device(fused: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """A rotation by kernel on cards; that of the model's code, which others of its kind call, elsewhere."""

    @wraps(own)
    def rotated(query: Tensor, *others: Any, **options: Any) -> Any:
        return (fused if query.is_cuda else own)(query, *others, **options)

    return rotated


def _source(model: Any) -> ModuleType | None:
    """The module of transformers that ``model`` is written in; None for a model with code of its own."""
    for kind in type(model).__mro__:  # FSDP puts a class of its own before
        if kind.__module__.startswith("transformers.models."):
            return sys.modules[kind.__module__]
    return None
