"""The head of a language model: logits and log-probabilities in fp32, cut by bytes.

Logits that were rounded to bf16 are off by up to 0.06 each at a size of 16, which is tenths of a nat
on a completion; so hidden states and weights are multiplied in fp32 here, whatever they are held in.
The softmax is a log-sum-exp of blocks of the vocabulary: PyTorch's fp32 ``log_softmax`` adds up a
row in one running sum on CPUs, which on 262,144 words is off by 5e-5 nats a token, always to one side.

Shape suffixes: M rows, R rows multiplied at once, H hidden, V vocabulary, B a block of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from kubealign_components.engines.row_tiles import log_sum_exp, rows_at_once, tile_rows, tiles

HEAD_BYTES = 2**26
"""Of the fp32 matrices that are made beside the weights at a time: rows of logits and a block of the head."""

_WORDS = 16
"""Words that a block holds a multiple of: whole vectors."""


def chosen_logprobs(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """(M,): log p(target) of each row of fp32 ``logits_MV``; see above why not by ``log_softmax``."""
    return logits_MV.gather(1, targets_M[:, None])[:, 0] - logits_MV.logsumexp(1)


class Head:
    """Hidden states to fp32 logits, with the scalings that some models apply after the head."""

    def __init__(self, base: Any) -> None:
        config = base.config.get_text_config()
        self.linear = base.get_output_embeddings()
        self.scale = getattr(config, "logit_scale", None) or 1.0 / (
            getattr(config, "logits_scaling", None) or 1.0
        )
        self.softcap = getattr(config, "final_logit_softcapping", None)
        self.words = int(config.vocab_size)

    @property
    def plain(self) -> bool:
        """Whether the head is a matrix that lies here whole: no adapter, not quantised, no ZeRO-3 shard."""
        return type(self.linear) is nn.Linear and not hasattr(self.linear.weight, "ds_id")

    @property
    def rows(self) -> int:
        """Rows whose logits take :data:`HEAD_BYTES`."""
        return max(1, HEAD_BYTES // (4 * self.words))

    def __call__(self, hidden_MH: Tensor) -> Tensor:
        """(M, V) fp32 logits, all at once."""
        if not self.plain:
            return self._scaled(self.linear(hidden_MH).float())
        with torch.autocast(hidden_MH.device.type, enabled=False):
            weight_VH, bias_V = self.linear.weight, self.linear.bias
            bias_V = None if bias_V is None else bias_V.float()
            return self._scaled(linear(hidden_MH.float().to(weight_VH.device), weight_VH.float(), bias_V))

    def only(self, tokens: Sequence[int], hidden_MH: Tensor) -> Tensor:
        """(M, len(tokens)) fp32: the logits of a few tokens.

        A head that is more than a matrix, such as one under an adapter, is asked for all of them.
        """
        if not self.plain:
            return self(hidden_MH)[:, list(tokens)]
        weight, bias = self.linear.weight[list(tokens)].float(), self.linear.bias
        chosen_bias = None if bias is None else bias[list(tokens)].float()
        with torch.autocast(hidden_MH.device.type, enabled=False):
            return self._scaled(linear(hidden_MH.float().to(weight.device), weight, chosen_bias))

    def logprobs(self, hidden_MH: Tensor, targets_M: Tensor) -> Tensor:
        """(M,) fp32: log p(target) of each row, differentiable, on the device of ``hidden_MH``.

        Of a plain head a row's bits depend on the row alone, see :mod:`.row_tiles`.
        """
        if self.plain:
            device = self.linear.weight.device
            moved = hidden_MH.to(device), self.linear.weight, self.linear.bias, targets_M.to(device)
            result: Tensor = _Logprobs.apply(*moved, self.scale, self.softcap or 0.0)
            return result.to(hidden_MH.device)
        parts = zip(hidden_MH.split(self.rows), targets_M.split(self.rows))
        return torch.cat([self._part(hidden, targets) for hidden, targets in parts])

    def _part(self, hidden_MH: Tensor, targets_M: Tensor) -> Tensor:
        def compute(hidden_MH: Tensor) -> Tensor:
            logits_MV = self(hidden_MH)
            return chosen_logprobs(logits_MV, targets_M.to(logits_MV.device)).to(hidden_MH.device)

        if torch.is_grad_enabled():
            result: Tensor = checkpoint(compute, hidden_MH, use_reentrant=False)
            return result
        return compute(hidden_MH)

    def _scaled(self, logits_MV: Tensor) -> Tensor:
        return _scaled(logits_MV, self.scale, self.softcap or 0.0)


def _scaled(logits: Tensor, scale: float, softcap: float) -> Tensor:
    """``logits`` as the model's own code scales and caps them; a ``softcap`` of 0 is none."""
    if scale != 1.0:
        logits = logits * scale
    return torch.tanh(logits / softcap) * softcap if softcap else logits


class _Logprobs(torch.autograd.Function):
    """Log-probabilities from hidden states block by block; backward makes the blocks again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_M: Tensor,
        scale: float,
        softcap: float,
    ) -> Tensor:
        hidden_MH = hidden_MH.contiguous()
        chosen_M = torch.zeros(len(hidden_MH), dtype=torch.float64, device=hidden_MH.device)
        sums = []  # one log-sum-exp a block and row
        with torch.autocast(hidden_MH.device.type, enabled=False):
            for start, weight_BH, bias_B in _blocks(weight_VH, bias_V):
                sum_M = torch.empty(len(hidden_MH), device=hidden_MH.device)
                for first, end, product in tiles(hidden_MH.float(), weight_BH, bias_B):
                    logits_RB = _scaled(product(None), scale, softcap)
                    sum_M[first:end] = log_sum_exp(logits_RB)[: end - first]
                    inside_R, place_R = _inside(targets_M[first:end], start, len(weight_BH))
                    found_R = logits_RB[: end - first].gather(1, place_R[:, None])[:, 0]
                    chosen_M[first:end] += torch.where(inside_R, found_R, 0.0)
                sums.append(sum_M)
            total_M = torch.stack(sums, 1).double().logsumexp(1)
        ctx.save_for_backward(hidden_MH, weight_VH, bias_V, targets_M, total_M)
        ctx.scale, ctx.softcap = scale, softcap
        return (chosen_M - total_M).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MH, weight_VH, bias_V, targets_M, total_M = ctx.saved_tensors
        wants = ctx.needs_input_grad
        to_hidden_MH = torch.zeros_like(hidden_MH, dtype=torch.float32)
        to_weight_VH = torch.empty_like(weight_VH) if wants[1] else None
        to_bias_V = torch.empty_like(bias_V) if bias_V is not None and wants[2] else None
        size = tile_rows(hidden_MH.device)
        with torch.autocast(hidden_MH.device.type, enabled=False):
            for start, weight_BH, bias_B in _blocks(weight_VH, bias_V):
                block = slice(start, start + len(weight_BH))
                sum_BH, sum_B = torch.zeros_like(weight_BH), weight_BH.new_zeros(len(weight_BH))
                for first in range(0, len(hidden_MH), size):
                    part = slice(first, first + size)
                    rows_RH = hidden_MH[part].float()
                    grad_RB = _to_logits(
                        linear(rows_RH, weight_BH, bias_B), targets_M[part] - start, total_M[part], ctx
                    )
                    grad_RB *= grads[0][part, None]
                    to_hidden_MH[part] += grad_RB @ weight_BH
                    if to_weight_VH is not None:
                        sum_BH += grad_RB.t() @ rows_RH
                    sum_B += grad_RB.sum(0)
                if to_weight_VH is not None:
                    to_weight_VH[block] = sum_BH
                if to_bias_V is not None:
                    to_bias_V[block] = sum_B
        return to_hidden_MH.to(hidden_MH.dtype), to_weight_VH, to_bias_V, None, None, None


def _blocks(weight_VH: Tensor, bias_V: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """``(first word, weights, bias)`` of blocks of the vocabulary, in fp32."""
    # Block, logits and what the softmax makes of them are four such matrices.
    size = HEAD_BYTES // (4 * 4 * max(weight_VH.shape[1], rows_at_once(weight_VH.device)))
    size = max(_WORDS, size // _WORDS * _WORDS)
    for start in range(0, len(weight_VH), size):
        block = slice(start, start + size)
        yield start, weight_VH[block].float(), None if bias_V is None else bias_V[block].float()


def _inside(targets_R: Tensor, start: int, words: int) -> tuple[Tensor, Tensor]:
    """Whether each target lies in the block of ``words`` from ``start``, and its column there, else 0."""
    place_R = targets_R - start
    inside_R = (place_R >= 0) & (place_R < words)
    return inside_R, torch.where(inside_R, place_R, 0)


def _to_logits(raw_RB: Tensor, place_R: Tensor, total_R: Tensor, ctx: Any) -> Tensor:
    """d log p(target) / d raw logit: what is chosen less its probability, through scale and cap."""
    logits_RB = _scaled(raw_RB, ctx.scale, ctx.softcap)
    grad_RB = -(logits_RB - total_R[:, None].float()).exp()
    inside_R, column_R = _inside(place_R, 0, raw_RB.shape[1])
    grad_RB.scatter_add_(1, column_R[:, None], inside_R[:, None].to(grad_RB.dtype))
    if ctx.softcap:
        grad_RB *= 1 - (logits_RB / ctx.softcap) ** 2
    return grad_RB * ctx.scale
