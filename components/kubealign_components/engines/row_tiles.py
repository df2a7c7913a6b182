"""Matrix products whose rows do not depend on what else is in the batch.

BLAS libraries choose how to add up a product by its shape: the same row gives other last bits in a
product of 70 rows than in one of 700. Here a row's result is that of a tile of one fixed number of rows,
the last one filled up with zeros, so that it depends on the row and on the weights alone. Where a
product of many tiles is tried on random numbers of its very shape and gives the bits of its tiles one by
one, it runs at once: libraries choose by shape, never by the numbers, so what holds of these holds of all.
On CPUs the functions that PyTorch computes by vectors, and by other code where a thread's share ends
between two of them, run in pieces that end nowhere. So a log-probability is the same to the last bit
whatever packs, chunks and order are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, pad, silu
from torch.overrides import TorchFunctionMode

_CPU_ROWS = 64
_ACCELERATOR_ROWS = 512
_AT_ONCE = 8
"""Tiles that are multiplied at once where that changes nothing."""
_VECTOR = 16
_PIECE = 2**14
"""Elements of a piece: whole vectors, and below what PyTorch shares out among threads."""
_BY_VECTORS = frozenset(
    {silu, gelu}
    | {getattr(owner, name) for owner in (torch, torch.Tensor) for name in ("tanh", "sigmoid", "exp", "erf")}
    | {getattr(owner, name) for owner in (torch, torch.Tensor) for name in ("cos", "sin")}
)


def tile_rows(device: torch.device) -> int:
    """Rows of a tile on ``device``: enough to keep its units busy, few enough to fill up cheaply."""
    return _CPU_ROWS if device.type == "cpu" else _ACCELERATOR_ROWS


def rows_at_once(device: torch.device) -> int:
    """The most rows that are multiplied at once on ``device``."""
    return _AT_ONCE * tile_rows(device)


def whole_tiles(rows: int, device: torch.device) -> int:
    """``rows`` rounded up to whole tiles."""
    size = tile_rows(device)
    return -(-rows // size) * size


def tiles(
    tensor_MI: Tensor, weight_OI: Tensor, bias_O: Tensor | None
) -> Iterator[tuple[int, int, Callable[[Tensor | None], Tensor]]]:
    """``(first, end, product)`` of parts of the rows, whole tiles each but for the last one's zeros.

    ``product(out)`` gives (R, O) into ``out``, or into a matrix of its own; its first end - first rows are
    those of ``tensor_MI`` with the weights.
    """
    size = tile_rows(tensor_MI.device)
    form = (
        tensor_MI.device,
        tensor_MI.dtype,
        *weight_OI.shape,
        weight_OI.is_contiguous(),
        bias_O is not None,
    )
    way = _way(*form, torch.get_num_threads())
    first = 0
    while first < len(tensor_MI):
        chosen = way.rows if len(tensor_MI) - first >= way.rows else size
        tile_RI = tensor_MI[first : first + chosen]
        missing = chosen - len(tile_RI)
        filled_RI = pad(tile_RI, (0, 0, 0, missing)) if missing else tile_RI
        yield first, first + len(tile_RI), partial(_product, filled_RI, weight_OI, bias_O, way)
        first += chosen


def log_sum_exp(tensor_RB: Tensor) -> Tensor:
    """(R,): ``tensor_RB.logsumexp(1)`` whose exponentials do not depend on where a thread's share ends."""
    if tensor_RB.device.type != "cpu":
        return tensor_RB.logsumexp(1)
    most_R = tensor_RB.amax(1)
    finite_R = torch.where(most_R.isfinite(), most_R, 0.0)
    return _in_pieces(torch.exp, tensor_RB - finite_R[:, None]).sum(1).log() + finite_R


class _Way(NamedTuple):
    rows: int
    """That are multiplied at once."""
    alone: bool = False
    """By one thread: the shares of several may end where other code takes over."""
    filled: bool = False
    """With inputs and outputs filled up to whole vectors, for the same reason."""


def _product(
    tile_RI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, way: _Way, out: Tensor | None = None
) -> Tensor:
    """(R, O): the rows with the weights, by ``way`` whatever its number of rows."""
    if way.filled:
        ins, outs = (-size % _VECTOR for size in reversed(weight_OI.shape))
        bias_O = None if bias_O is None else pad(bias_O, (0, outs))
        whole = pad(tile_RI, (0, ins)), pad(weight_OI, (0, ins, 0, outs)), bias_O
        result_RO = _product(*whole, way._replace(filled=False))[:, : len(weight_OI)].contiguous()
        return result_RO if out is None else out.copy_(result_RO)
    result_RO = tile_RI.new_empty(len(tile_RI), len(weight_OI)) if out is None else out
    with _one_thread() if way.alone else nullcontext():
        if bias_O is None:
            torch.mm(tile_RI, weight_OI.t(), out=result_RO)
        else:
            torch.addmm(bias_O, tile_RI, weight_OI.t(), out=result_RO)
    return result_RO


@lru_cache(maxsize=4096)
def _way(
    device: torch.device, dtype: torch.dtype, outs: int, ins: int, by_rows: bool, biased: bool, _threads: int
) -> _Way:
    """The first way by which a row's result depends on the row alone, with as many rows as changes nothing.

    Tried on random numbers, in which another order of sums shows.
    """
    size = tile_rows(device)
    source = torch.Generator(device).manual_seed(0)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        make = partial(torch.randn, generator=source, device=device)
        rows_MI = make(_AT_ONCE * size, ins).to(dtype)
        weight_OI = (make(outs, ins) if by_rows else make(ins, outs).t()).to(dtype)
        bias_O = make(outs).to(dtype) if biased else None
        order = torch.randperm(len(rows_MI), generator=source, device=device)
        ways = (_Way(size), _Way(size, alone=True), _Way(size, alone=True, filled=True))
        for way in ways if device.type == "cpu" else ways[:1]:
            multiply = partial(_product, weight_OI=weight_OI, bias_O=bias_O, way=way)
            in_order, moved = (
                torch.cat([multiply(tile_RI) for tile_RI in rows.split(size)])
                for rows in (rows_MI, rows_MI[order])
            )
            if torch.equal(moved, in_order[order]):
                same = torch.equal(multiply(rows_MI), in_order) and torch.equal(
                    multiply(rows_MI[order]), moved
                )
                return way._replace(rows=len(rows_MI)) if same else way
    return ways[0]


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
            for first, end, product in tiles(input_MI.contiguous(), weight_OI, bias_O):
                product(result_MO[first : whole_tiles(end, input_MI.device)])
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
