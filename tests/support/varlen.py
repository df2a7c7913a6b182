"""PyTorch's variable-length attention as its documentation has it, sequence by sequence, for machines without
the kernel."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def varlen_by_loops(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    longest_queries: int,
    longest_keys: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """(Q, N, D). The last query of a sequence stands at its last key; with a window (a, b) a query at i sees
    keys i - a to i + b, -1 being no limit; heads of keys are shared out among heads of queries."""
    assert longest_queries == int(query_ends.diff().max()) and longest_keys == int(key_ends.diff().max())
    outputs = []
    for (first, end), (start, stop) in zip(_pairs(query_ends), _pairs(key_ends), strict=True):
        each = query.shape[1] // key.shape[1]
        keys, values = (x[start:stop].repeat_interleave(each, 1) for x in (key, value))
        scores = torch.einsum("qnd,knd->nqk", query[first:end], keys) * (scale or query.shape[2] ** -0.5)
        own = torch.arange(stop - start - (end - first), stop - start)[:, None]
        other = torch.arange(stop - start)[None]
        back, ahead = window_size
        hidden = (other < own - back) & (back >= 0) | (other > own + ahead) & (ahead >= 0)
        weights = scores.float().masked_fill(hidden, -torch.inf).softmax(-1).to(values.dtype)
        outputs.append(torch.einsum("nqk,knd->qnd", weights, values))
    return torch.cat(outputs)


def _pairs(ends: Tensor) -> list[tuple[int, int]]:
    return list(pairwise(ends.tolist()))
