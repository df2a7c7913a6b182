"""Attention of all segments of a pack in one call: what flash kernels of variable length are for.

On a card a call for each segment of each layer leaves most of it idle, and a mask rules the fast kernels
out. Here keys and values are gathered so that each completion's follow its prompt's, and one kernel runs
over all of them: no mask is made, and a prompt's layers are still computed once. The kernel is asked not to
split a segment's keys among blocks, so that a segment's bits do not depend on what else is in the pack.
It is tried on a card before it is trusted: where it raises, or differs from segments one by one by more
than rounding, those are computed instead, and a warning says why.

Shape suffixes: T tokens of the row, Q queries, K gathered keys, S segments, N heads, D head size.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import embedding

log = logging.getLogger(__name__)

Segment = tuple[int, int, int, int]
"""First and end token of a prompt, first and end token of a completion that continues it; the
completion is empty for the prompt's own segment."""

Kernel = Callable[..., Tensor]
"""``kernel(query_QND, key_KND, value_KND, query_ends, key_ends, longest_queries, longest_keys, scale=,
window_size=)`` gives (Q, N, D), as PyTorch's ``varlen_attn``. The last query of a segment stands at its last
key; ``window_size`` is how many keys before and behind its own a query sees, -1 for all."""

Attention = Callable[[Tensor, Tensor, Tensor, Sequence[Segment], int | None], Tensor]
"""``(query_1NTD, key_1NTD, value_1NTD, segments, window)`` gives (1, T, N, D)."""

_LARGEST_HEAD = 256
"""That flash kernels take; sizes are multiples of eight."""
_ROUNDING = 0.03
"""Most that the two ways may differ on numbers of size one, which bfloat16 has eight bits of."""
_PROBE: tuple[Segment, ...] = ((0, 40, 40, 40), (0, 40, 40, 130), (0, 40, 130, 141), (141, 150, 150, 150))


@dataclass(frozen=True, slots=True)
class KeyLayout:
    """Where each segment's queries and keys lie when all of them are in one row."""

    queries: int
    """Q: of the row's tokens the first ones."""
    keys: Tensor
    """(K,) int64: token of the row whose key and value stand here."""
    query_ends: Tensor
    """(S + 1,) int32: segment s has the queries from entry s up to entry s + 1."""
    key_ends: Tensor
    """(S + 1,) int32: the same of keys."""
    longest_queries: int
    longest_keys: int


def lay_out_keys(segments: Sequence[Segment], device: torch.device) -> KeyLayout:
    """The layout of ``segments``, whose queries follow each other in the row without a gap."""
    queries = [stop - first if stop > first else end - start for start, end, first, stop in segments]
    keys = [[*range(start, end), *range(first, stop)] for start, end, first, stop in segments]
    query_ends, key_ends = (
        torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        for lengths in (queries, map(len, keys))
    )
    return KeyLayout(
        queries=sum(queries),
        keys=torch.tensor([token for own in keys for token in own], device=device),
        query_ends=query_ends,
        key_ends=key_ends,
        longest_queries=max(queries),
        longest_keys=max(map(len, keys)),
    )


def in_one_call(
    query_1NTD: Tensor,
    key_1NTD: Tensor,
    value_1NTD: Tensor,
    layout: KeyLayout,
    kernel: Kernel,
    *,
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """(1, T, N, D): each segment's attention; zeros behind the last one. Differentiable.

    Args:
        query_1NTD: of the row. ``key_1NTD`` and ``value_1NTD`` may have fewer heads, a divisor of N.
        layout: of its segments.
        kernel: what computes.
        scaling: of scores; 1 / sqrt(D) when not given.
        window: tokens that a query sees, itself among them; all before it when not given.
    """
    output_QND = kernel(
        query_1NTD[0, :, : layout.queries].transpose(0, 1).contiguous(),
        _gathered(key_1NTD, layout.keys),
        _gathered(value_1NTD, layout.keys),
        layout.query_ends,
        layout.key_ends,
        layout.longest_queries,
        layout.longest_keys,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
    )
    filling = output_QND.new_zeros(query_1NTD.shape[2] - layout.queries, *output_QND.shape[1:])
    return torch.cat([output_QND, filling])[None]


def kernel_for(query_1NTD: Tensor, key_1NTD: Tensor, one_by_one: Attention) -> Kernel | None:
    """What computes such tensors in one call, or None where a call for each segment is what there is: on
    CPUs, in float32, and with heads that flash kernels do not take."""
    size = query_1NTD.shape[3]
    halves = query_1NTD.dtype in (torch.bfloat16, torch.float16)
    if query_1NTD.device.type != "cuda" or not halves or size % 8 or size > _LARGEST_HEAD:
        return None
    return _tried(
        query_1NTD.device, query_1NTD.dtype, query_1NTD.shape[1], key_1NTD.shape[1], size, one_by_one
    )


@cache
def _tried(
    device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int, one_by_one: Attention
) -> Kernel | None:
    """PyTorch's kernel, if it gives on ``device`` what ``one_by_one`` gives."""
    try:
        kernel = _flash_kernel()
        apart = difference(kernel, one_by_one, device, dtype, (heads, key_heads, size))
    except torch.OutOfMemoryError:  # says nothing of the kernel
        raise
    except Exception as error:  # whatever a kernel cannot do, the other way can
        reason = f"{type(error).__name__}: {error}"
    else:
        if apart <= _ROUNDING:
            return kernel
        reason = f"it differs from segments one by one by {apart:.2g}"
    log.warning(
        "attention in one call is not used on %s: %s. It takes longer so, and log-probabilities differ by "
        "rounding from those of cards that use it: score and train on one kind of card",
        device,
        reason,
    )
    return None


def _flash_kernel() -> Kernel:
    # Not at the top: it loads PyTorch's compiler, which takes seconds and serves cards alone.
    from torch.nn.attention.varlen import varlen_attn

    options = {"enable_gqa": True, "num_splits": 1}
    names = inspect.signature(varlen_attn).parameters
    return partial(varlen_attn, **{name: value for name, value in options.items() if name in names})


def difference(
    kernel: Kernel,
    one_by_one: Attention,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
) -> float:
    """The largest difference of the two ways on random numbers, with and without a window: in outputs, and in
    gradients by queries, keys and values.

    Args:
        kernel: what computes in one call.
        one_by_one: what it is compared with.
        device: where.
        dtype: of the numbers.
        shape: heads of queries, heads of keys and values, head size.
    """
    heads, key_heads, size = shape
    source = torch.Generator(device).manual_seed(0)
    apart = 0.0
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        layout = lay_out_keys(_PROBE, device)
        for window in (None, 16):
            numbers = [
                torch.randn(1, n, _PROBE[-1][1], size, generator=source, device=device).to(dtype)
                for n in (heads, key_heads, key_heads, heads)
            ]
            ways = (
                lambda q, k, v, w=window: in_one_call(q, k, v, layout, kernel, window=w),
                lambda q, k, v, w=window: one_by_one(q, k, v, _PROBE, w),
            )
            one, other = (_with_gradients(way, *numbers) for way in ways)
            apart = max(apart, *(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)))
    return apart


def _with_gradients(
    way: Callable[[Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weights: Tensor,
) -> list[Tensor]:
    """In float32: the output of ``way``, and the gradients of its sum with ``weights``, each divided by its
    largest number."""
    inputs = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    output = way(*inputs)
    gradients = torch.autograd.grad((output.float() * weights.transpose(1, 2).float()).sum(), inputs)
    return [output.detach().float(), *(g.float() / g.float().abs().max() for g in gradients)]


def _gathered(tensor_1NTD: Tensor, keys_K: Tensor) -> Tensor:
    """(K, N, D): entries of the row. By rows of a table: unlike indexing, whose backward adds up in no fixed
    order on a card."""
    _, heads, tokens, size = tensor_1NTD.shape
    table = tensor_1NTD[0].transpose(0, 1).reshape(tokens, heads * size)
    return embedding(keys_K, table).view(-1, heads, size)
