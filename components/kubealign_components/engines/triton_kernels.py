"""Kernels in Triton, which cards alone have: imported where a tensor is on one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096
_WARPS = 8


def row_log_sum_exp(matrix_RB: Tensor) -> Tensor:
    """(R,) fp32: log of the sum of exponentials of each fp32 row, which is read once (Milakov and Gimelshein
    2018, arXiv:1805.02867). Each row by itself, always in the same order."""
    rows, columns = matrix_RB.shape
    sums_R = matrix_RB.new_empty(rows)
    with torch.cuda.device(matrix_RB.device):
        _log_sum_exp[(rows,)](matrix_RB, sums_R, columns, matrix_RB.stride(0), BLOCK=_BLOCK, num_warps=_WARPS)
    return sums_R


@triton.jit
def _log_sum_exp(matrix, sums, columns, stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    start = matrix + row * stride
    lanes = tl.arange(0, BLOCK)
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        numbers = tl.load(start + first + lanes, mask=first + lanes < columns, other=float("-inf"))
        higher = tl.maximum(most, numbers)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(most - base) + tl.exp(numbers - base)
        most = higher
    highest = tl.max(most, 0)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    tl.store(sums + row, tl.log(tl.sum(total * tl.exp(most - base), 0)) + base)
