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

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, pad, silu
from torch.overrides import TorchFunctionMode

log = logging.getLogger(__name__)

_CPU_ROWS = 64
_ACCELERATOR_ROWS = 512
_AT_ONCE = 8
"""Tiles that are multiplied at once where that changes nothing, and whose logits fit into what a head may
make of them."""
_MOST_AT_ONCE = 32
"""On accelerators, where a product is over before the next one is on its way."""
_LOG_SUM_ROUNDING = 1e-4
"""Nats; numbers of 40 have an eighth of it for a last bit."""
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
    tensor_MI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    *,
    sums: torch.dtype | None = None,
    most: int | None = None,
) -> Iterator[tuple[int, int, Callable[[Tensor | None], Tensor]]]:
    """``(first, end, product)`` of parts of the rows, whole tiles each but for the last one's zeros.

    ``product(out)`` gives (R, O) into ``out``, or into a matrix of its own; its first end - first rows are
    those of ``tensor_MI`` with the weights.

    Args:
        tensor_MI: the rows.
        weight_OI: the weights, of the same dtype.
        bias_O: added to each row's product.
        sums: dtype of the products; that of the rows when not given. float32 for bfloat16 on CUDA alone,
            where nothing is rounded in between.
        most: rows of a part; as many as are worth it when not given.
    """
    form = _Form(
        device=tensor_MI.device,
        dtype=tensor_MI.dtype,
        outs=weight_OI.shape[0],
        ins=weight_OI.shape[1],
        by_rows=weight_OI.is_contiguous(),
        biased=bias_O is not None,
        sums=sums or tensor_MI.dtype,
        threads=torch.get_num_threads(),
    )
    way = _way(form)
    first = 0
    while first < len(tensor_MI):
        chosen = _rows_of_part(form, len(tensor_MI) - first, most)
        tile_RI = tensor_MI[first : first + chosen]
        missing = chosen - len(tile_RI)
        filled_RI = pad(tile_RI, (0, 0, 0, missing)) if missing else tile_RI
        yield first, first + len(tile_RI), partial(_product, filled_RI, weight_OI, bias_O, way)
        first += chosen


def log_sum_exp(tensor_RB: Tensor) -> Tensor:
    """(R,): ``tensor_RB.logsumexp(1)`` whose exponentials do not depend on where a thread's share ends.

    On NVIDIA cards in one kernel, where that is possible.
    """
    if tensor_RB.device.type != "cpu":
        return _by_row(tensor_RB.device)(tensor_RB)
    most_R = tensor_RB.amax(1)
    finite_R = torch.where(most_R.isfinite(), most_R, 0.0)
    return _in_pieces(torch.exp, tensor_RB - finite_R[:, None]).sum(1).log() + finite_R


@lru_cache
def _by_row(device: torch.device) -> Callable[[Tensor], Tensor]:
    """What computes a log-sum-exp on ``device``, tried on random numbers."""
    plain = partial(torch.logsumexp, dim=1)
    try:
        from kubealign_components.engines.triton_kernels import row_log_sum_exp

        source = torch.Generator(device).manual_seed(0)
        rows_RB = 10 * torch.randn(3, 10_000, generator=source, device=device)
        apart = float((row_log_sum_exp(rows_RB) - plain(rows_RB)).abs().max())
    except Exception as error:  # no Triton, or nothing that compiles for it
        reason = f"{type(error).__name__}: {error}"
    else:
        if apart <= _LOG_SUM_ROUNDING:
            return row_log_sum_exp
        reason = f"it differs by {apart:.2g}"
    log.warning(
        "sums of exponentials in one kernel are not used on %s: %s. They take longer, and differ by rounding",
        device,
        reason,
    )
    return plain


class _Form(NamedTuple):
    """What libraries choose their way of multiplying by, but for the number of rows."""

    device: torch.device
    dtype: torch.dtype
    outs: int
    ins: int
    by_rows: bool
    """Whether the weights lie in memory output by output."""
    biased: bool
    sums: torch.dtype
    threads: int


class _Way(NamedTuple):
    alone: bool = False
    """By one thread: the shares of several may end where other code takes over."""
    filled: bool = False
    """With inputs and outputs filled up to whole vectors, for the same reason."""
    sums: torch.dtype | None = None
    """Dtype of the product, where it is not that of the rows."""


def _rows_of_part(form: _Form, left: int, most: int | None) -> int:
    """How many of ``left`` rows, filled up to whole tiles, are multiplied at once: many, or a tile."""
    size = tile_rows(form.device)
    if form.device.type == "cpu":  # trying takes as long as multiplying
        many = _AT_ONCE * size if left >= _AT_ONCE * size else size
    else:
        many = min(whole_tiles(left, form.device), most or _MOST_AT_ONCE * size)
    return many if many == size or _changes_nothing(form, many) else size


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
    if way.sums is not None:
        result_RO = torch.mm(tile_RI, weight_OI.t(), out_dtype=way.sums)
        result_RO = result_RO if bias_O is None else result_RO.add_(bias_O)
        return result_RO if out is None else out.copy_(result_RO)
    result_RO = tile_RI.new_empty(len(tile_RI), len(weight_OI)) if out is None else out
    with _one_thread() if way.alone else nullcontext():
        if bias_O is None:
            torch.mm(tile_RI, weight_OI.t(), out=result_RO)
        else:
            torch.addmm(bias_O, tile_RI, weight_OI.t(), out=result_RO)
    return result_RO


@lru_cache(maxsize=4096)
def _way(form: _Form) -> _Way:
    """The first way by which a row's result depends on the row alone.

    Tried on random numbers, in which another order of sums shows.
    """
    ways = [_Way(sums=None if form.sums == form.dtype else form.sums)]
    if form.device.type == "cpu":
        ways += [_Way(alone=True), _Way(alone=True, filled=True)]
    with torch.no_grad(), torch.autocast(form.device.type, enabled=False):
        rows_MI, moved_M, multiply = _trial(form, _AT_ONCE * tile_rows(form.device))
        for way in ways:
            in_order, moved = (_by_tiles(rows, multiply, way) for rows in (rows_MI, rows_MI[moved_M]))
            if torch.equal(moved, in_order[moved_M]):
                return way
    return ways[0]


@lru_cache(maxsize=4096)
def _changes_nothing(form: _Form, rows: int) -> bool:
    """Whether a product of ``rows`` rows has the bits of its tiles one by one, tried as above."""
    way = _way(form)
    with torch.no_grad(), torch.autocast(form.device.type, enabled=False):
        try:
            rows_MI, moved_M, multiply = _trial(form, rows)
            return all(
                torch.equal(multiply(some_MI, way=way), _by_tiles(some_MI, multiply, way))
                for some_MI in (rows_MI, rows_MI[moved_M])
            )
        except torch.OutOfMemoryError:  # what is tried needs more than what is asked for
            return False


def _trial(form: _Form, rows: int) -> tuple[Tensor, Tensor, Callable[..., Tensor]]:
    """(rows, I) random numbers, an order of the rows, and the product with random weights."""
    source = torch.Generator(form.device).manual_seed(0)
    make = partial(torch.randn, generator=source, device=form.device)
    rows_MI = make(rows, form.ins).to(form.dtype)
    weight_OI = make(form.outs, form.ins) if form.by_rows else make(form.ins, form.outs).t()
    bias_O = make(form.outs).to(form.sums) if form.biased else None
    order_M = torch.randperm(rows, generator=source, device=form.device)
    return rows_MI, order_M, partial(_product, weight_OI=weight_OI.to(form.dtype), bias_O=bias_O)


def _by_tiles(rows_MI: Tensor, multiply: Callable[..., Tensor], way: _Way) -> Tensor:
    return torch.cat([multiply(tile_RI, way=way) for tile_RI in rows_MI.split(tile_rows(rows_MI.device))])


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
