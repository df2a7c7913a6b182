"""Matrix products whose rows do not depend on what else is in the batch.

BLAS libraries choose how to add up a product by its shape: the same row gives other last bits in a
product of 70 rows than in one of 700. Here every product runs in tiles of one fixed number of rows,
the last one filled up with zeros, so that a row's result depends on the row and on the weights alone.
On CPUs the functions that PyTorch computes by vectors, and by other code where a thread's share ends
between two of them, run in pieces that end nowhere. So a log-probability is the same to the last bit
whatever packs, chunks and order are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, pad, silu
from torch.overrides import TorchFunctionMode

_CPU_ROWS = 64
_ACCELERATOR_ROWS = 512
_PIECE = 2**14
"""Elements of a piece: whole vectors, and below what PyTorch shares out among threads."""
_BY_VECTORS = frozenset(
    {silu, gelu}
    | {getattr(place, name) for place in (torch, torch.Tensor) for name in ("tanh", "sigmoid", "exp", "erf")}
    | {getattr(place, name) for place in (torch, torch.Tensor) for name in ("cos", "sin")}
)


def tile_rows(device: torch.device) -> int:
    """Rows of a tile on ``device``: enough to keep its units busy, few enough to fill up cheaply."""
    return _CPU_ROWS if device.type == "cpu" else _ACCELERATOR_ROWS


def whole_tiles(rows: int, device: torch.device) -> int:
    """``rows`` rounded up to whole tiles."""
    size = tile_rows(device)
    return -(-rows // size) * size


def tiles(tensor_MF: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """``(first, end, tile)`` of the rows; every tile has :func:`tile_rows` rows, the last one with zeros."""
    size = tile_rows(tensor_MF.device)
    for first in range(0, len(tensor_MF), size):
        tile = tensor_MF[first : first + size]
        missing = size - len(tile)
        yield first, first + len(tile), pad(tile, (0, 0, 0, missing)) if missing else tile


class RowTiles(TorchFunctionMode):
    """While this context lasts, linear layers multiply tile by tile, whoever calls them."""

    entered = 0
    """How many of these contexts are open."""

    def __enter__(self) -> object:
        RowTiles.entered += 1
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        RowTiles.entered -= 1
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """``func`` itself, unless it is the product of a linear layer."""
        kwargs = kwargs or {}
        if func is linear:
            return tiled_linear(*args, **kwargs)
        if func is torch.addmm and not kwargs and args[1].dim() == 2:  # GPT-2's linear layers
            bias_O, input_MI, weight_IO = args
            return tiled_linear(input_MI, weight_IO.t(), bias_O)
        if func in _BY_VECTORS and args[0].device.type == "cpu":
            return _in_pieces(func, *args, **kwargs)
        return func(*args, **kwargs)


def checkpoint_contexts() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """For activation checkpoints: forward as it is called, and recomputed in tiles where it was in tiles."""
    return nullcontext(), RowTiles() if RowTiles.entered else nullcontext()


def tiled_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear`` in tiles; autocast applies as it does there.

    Args:
        input: (…, I).
        weight: (O, I).
        bias: (O,).

    Returns:
        (…, O).
    """
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight = input.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    input_MI = input.reshape(-1, input.shape[-1])
    result_MO: Tensor = _TiledLinear.apply(input_MI, weight, bias)
    return result_MO.reshape(*input.shape[:-1], weight.shape[0])


def _in_pieces(func: Callable[..., Tensor], input: Tensor, *args: object, **kwargs: object) -> Tensor:
    flat = input.reshape(-1)
    filled = pad(flat, (0, -len(flat) % _PIECE))
    parts = [func(piece, *args, **kwargs) for piece in filled.split(_PIECE)]
    return torch.cat(parts)[: len(flat)].reshape(input.shape)


class _TiledLinear(torch.autograd.Function):
    """Tiles forward, where bits count; one product backward, where they do not."""

    @staticmethod
    def forward(ctx: Any, input_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(input_MI, weight_OI)
        result_MO = input_MI.new_empty(whole_tiles(len(input_MI), input_MI.device), len(weight_OI))
        with torch.autocast(input_MI.device.type, enabled=False):
            for first, _, tile_RI in tiles(input_MI.contiguous()):
                out_RO = result_MO[first : first + len(tile_RI)]
                if bias_O is None:
                    torch.mm(tile_RI, weight_OI.t(), out=out_RO)
                else:
                    torch.addmm(bias_O, tile_RI, weight_OI.t(), out=out_RO)
        return result_MO[: len(input_MI)]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad_MO,) = grads
        input_MI, weight_OI = ctx.saved_tensors
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            grad_MO @ weight_OI if wants_input else None,
            grad_MO.t() @ input_MI if wants_weight else None,
            grad_MO.sum(0) if wants_bias else None,
        )
