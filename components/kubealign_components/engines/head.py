"""The head of a language model: logits and log-probabilities in fp32, cut by bytes.

Logits that were rounded to bf16 are off by up to 0.06 each at a size of 16, which is tenths of a nat
on a completion; so hidden states and weights are multiplied in fp32 here, whatever they are held in. On CUDA
those that are computed in bf16 are multiplied as they are, with sums and logits in fp32: tensor cores do so
exactly but for the order of the sums, at ten times and more the rate of fp32.
The softmax is a log-sum-exp of blocks of the vocabulary: PyTorch's fp32 ``log_softmax`` adds up a
row in one running sum on CPUs, which on 262,144 words is off by 5e-5 nats a token, always to one side.
A LoRA on the head is added to the same products, so that one which changes nothing changes no bit.

Shape suffixes: M rows, R rows multiplied at once, H hidden, V vocabulary, B a block of it, A the ranks of
adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from kubealign_components.engines.row_tiles import (
    RowTiles,
    log_sum_exp,
    rows_at_once,
    tiled_linear,
    tiles,
)

HEAD_BYTES = 2**26
"""Of the fp32 matrices that are made beside the weights at a time: rows of logits and a block of the head."""
CARD_HEAD_BYTES = 2**30
"""The same on accelerators, where small matrices are over before the next one is on its way."""

_WORDS = 16
"""Words that a block holds a multiple of: whole vectors."""


def chosen_logprobs(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """(M,): log p(target) of each row of fp32 ``logits_MV``; see above why not by ``log_softmax``."""
    return logits_MV.gather(1, targets_M[:, None])[:, 0] - logits_MV.logsumexp(1)


class Adapter(NamedTuple):
    """A LoRA on the head: ``scaling * up(down(dropout(hidden)))`` is added to the logits."""

    down: nn.Linear
    up: nn.Linear
    dropout: nn.Module
    scaling: float


class Head:
    """Hidden states to fp32 logits, with the scalings that some models apply after the head.

    LoRA (rsLoRA too, whose scaling is another number) and heads that PEFT trains whole are computed here.
    Any other head, such as a quantised one or one under DoRA, computes its logits itself.
    """

    def __init__(self, base: Any) -> None:
        config = base.config.get_text_config()
        self.linear, self.adapters = _parts(base.get_output_embeddings())
        self.scale = getattr(config, "logit_scale", None) or 1.0 / (
            getattr(config, "logits_scaling", None) or 1.0
        )
        self.softcap = getattr(config, "final_logit_softcapping", None)
        self.words = int(config.vocab_size)

    @property
    def plain(self) -> bool:
        """Whether the head is a matrix, and LoRA: not quantised."""
        return type(self.linear) is nn.Linear

    @property
    def rows(self) -> int:
        """Rows whose logits take :data:`HEAD_BYTES`."""
        return max(1, head_bytes(self.linear.weight.device) // (4 * self.words))

    def __call__(self, hidden_MH: Tensor) -> Tensor:
        """(M, V) fp32 logits, all at once."""
        if not self.plain:
            with RowTiles():
                return self._scaled(self.linear(hidden_MH).float())
        return self._logits(hidden_MH, slice(None))

    def only(self, tokens: Sequence[int], hidden_MH: Tensor) -> Tensor:
        """(M, len(tokens)) fp32: the logits of a few tokens.

        A head that is not :attr:`plain` is asked for all of them.
        """
        return self._logits(hidden_MH, list(tokens)) if self.plain else self(hidden_MH)[:, list(tokens)]

    def logprobs(self, hidden_MH: Tensor, targets_M: Tensor) -> Tensor:
        """(M,) fp32: log p(target) of each row, differentiable, on the device of ``hidden_MH``.

        A row's bits depend on the row alone, see :mod:`.row_tiles`.
        """
        if self.plain:
            layers = (self.linear, *(layer for one in self.adapters for layer in (one.down, one.up)))
            return _gathering(layers, self._own_logprobs)(hidden_MH, targets_M)
        parts = zip(hidden_MH.split(self.rows), targets_M.split(self.rows))
        return torch.cat([self._part(hidden, targets) for hidden, targets in parts])

    def _own_logprobs(self, hidden_MH: Tensor, targets_M: Tensor) -> Tensor:
        weight, bias = self.linear.weight, self.linear.bias
        moved_MH = hidden_MH.to(weight.device)
        given = moved_MH, weight, bias, *self._low_rank(moved_MH), targets_M.to(weight.device)
        result: Tensor = _Logprobs.apply(*given, self.scale, self.softcap or 0.0)
        return result.to(hidden_MH.device)

    def _logits(self, hidden_MH: Tensor, words: slice | list[int]) -> Tensor:
        weight, bias = self.linear.weight[words].float(), self.linear.bias
        chosen_bias = None if bias is None else bias[words].float()
        hidden_MH = hidden_MH.to(weight.device)
        inner_MA, up_VA = self._low_rank(hidden_MH)
        with torch.autocast(hidden_MH.device.type, enabled=False):
            logits = tiled_linear(hidden_MH.float(), weight, chosen_bias)
            if inner_MA is not None and up_VA is not None:
                logits = logits + tiled_linear(inner_MA, up_VA[words].float())
        return self._scaled(logits)

    def _low_rank(self, hidden_MH: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Of all adapters, (M, A) fp32 of their first matrices, times their scalings, and (V, A) second
        ones."""
        if not self.adapters:
            return None, None
        with torch.autocast(hidden_MH.device.type, enabled=False):
            inner = [
                tiled_linear(one.dropout(hidden_MH).float(), one.down.weight.float()) * one.scaling
                for one in self.adapters
            ]
        ups = [one.up.weight for one in self.adapters]
        return (inner[0], ups[0]) if len(ups) == 1 else (torch.cat(inner, 1), torch.cat(ups, 1))

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


def _parts(module: Any) -> tuple[Any, tuple[Adapter, ...]]:
    """The matrix of an output embedding and the LoRA on it that acts now; itself where it is another kind."""
    if type(module) is nn.Linear:
        return module, ()
    from peft.tuners.lora import Linear
    from peft.utils import ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        own = [name for name in module.active_adapters if name in module.modules_to_save]
        trained = own and not module.disable_adapters
        return _parts(module.modules_to_save[own[0]] if trained else module.original_module)
    if not isinstance(module, Linear) or type(module.base_layer) is not nn.Linear:
        return module, ()
    if module.merged or module.disable_adapters:
        return module.base_layer, ()
    acting = [name for name in module.active_adapters if name in module.lora_A]
    if any(name in module.lora_variant or module.lora_bias[name] for name in acting):
        return module, ()
    return module.base_layer, tuple(
        Adapter(module.lora_A[n], module.lora_B[n], module.lora_dropout[n], module.scaling[n]) for n in acting
    )


def _gathering(layers: Iterable[nn.Module], compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``compute`` with the weights of all ``layers`` in one piece. Under ZeRO-3 they are that inside a call
    of their layer alone, whose hooks gather them, once more for the backward pass."""
    for layer in layers:
        # Asked for by name, a shard would be gathered until the end of the backward pass.
        if any(hasattr(weight, "ds_id") for weight in layer.parameters(recurse=False)):
            compute = partial(_as_forward_of, layer, compute)
    return compute


def _as_forward_of(layer: nn.Module, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    layer.__dict__["forward"] = compute
    try:
        result: Tensor = layer(*inputs)
    finally:
        del layer.__dict__["forward"]
    return result


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
        inner_MA: Tensor | None,
        up_VA: Tensor | None,
        targets_M: Tensor,
        scale: float,
        softcap: float,
    ) -> Tensor:
        dtype = _multiplied_in(hidden_MH, weight_VH)
        hidden_MH = hidden_MH.contiguous()
        chosen_M = torch.zeros(len(hidden_MH), dtype=torch.float64, device=hidden_MH.device)
        sums = []  # one log-sum-exp a block and row
        with torch.autocast(hidden_MH.device.type, enabled=False):
            given_MH, most = hidden_MH.to(dtype), rows_at_once(hidden_MH.device)
            for start, weight_BH, bias_B, up_BA in _blocks(weight_VH, bias_V, up_VA, dtype):
                sum_M = torch.empty(len(hidden_MH), device=hidden_MH.device)
                for first, end, product in tiles(given_MH, weight_BH, bias_B, sums=torch.float32, most=most):
                    raw_RB = product(None)
                    if inner_MA is not None and up_BA is not None:
                        raw_RB[: end - first] += tiled_linear(inner_MA[first:end], up_BA)
                    logits_RB = _scaled(raw_RB, scale, softcap)
                    sum_M[first:end] = log_sum_exp(logits_RB)[: end - first]
                    inside_R, column_R = _inside(targets_M[first:end], start, len(weight_BH))
                    target_logit_R = logits_RB[: end - first].gather(1, column_R[:, None])[:, 0]
                    chosen_M[first:end] += torch.where(inside_R, target_logit_R, 0.0)
                sums.append(sum_M)
            total_M = torch.stack(sums, 1).double().logsumexp(1)
        ctx.save_for_backward(hidden_MH, weight_VH, bias_V, inner_MA, up_VA, targets_M, total_M)
        ctx.scale, ctx.softcap, ctx.dtype = scale, softcap, dtype
        return (chosen_M - total_M).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MH, weight_VH, bias_V, inner_MA, up_VA, targets_M, total_M = ctx.saved_tensors
        wants = ctx.needs_input_grad
        to_hidden_MH = torch.zeros_like(hidden_MH, dtype=torch.float32)
        to_inner_MA = None if inner_MA is None else torch.zeros_like(inner_MA)
        to_weight_VH = torch.empty_like(weight_VH) if wants[1] else None
        to_bias_V = torch.empty_like(bias_V) if wants[2] else None
        to_up_VA = torch.empty_like(up_VA) if wants[4] else None
        size = rows_at_once(hidden_MH.device)
        with torch.autocast(hidden_MH.device.type, enabled=False):
            for start, weight_BH, bias_B, up_BA in _blocks(weight_VH, bias_V, up_VA, ctx.dtype):
                sums = _Sums(slice(start, start + len(weight_BH)), to_weight_VH, to_bias_V, to_up_VA)
                for first in range(0, len(hidden_MH), size):
                    part = slice(first, first + size)
                    rows_RH = hidden_MH[part].to(ctx.dtype)
                    inner_RA = None if inner_MA is None else inner_MA[part]
                    raw_RB = _product(rows_RH, weight_BH.t())
                    if bias_B is not None:
                        raw_RB += bias_B
                    if inner_RA is not None:
                        raw_RB += linear(inner_RA, up_BA)
                    grad_RB = _to_logits(raw_RB, targets_M[part] - start, total_M[part], ctx)
                    grad_RB *= grads[0][part, None]
                    to_hidden_MH[part] += _product(grad_RB.to(ctx.dtype), weight_BH)
                    if to_inner_MA is not None:
                        to_inner_MA[part] += grad_RB @ up_BA
                    sums.add(grad_RB, rows_RH, inner_RA)
                sums.store()
        hidden = to_hidden_MH.to(hidden_MH.dtype)
        return hidden, to_weight_VH, to_bias_V, to_inner_MA, to_up_VA, None, None, None


class _Sums:
    """Gradients of a block's words, added up over rows in fp32; None of what is not trained."""

    def __init__(self, block: slice, *whole: Tensor | None) -> None:
        self._block = block
        self._whole = whole
        self._sums = [
            None if one is None else torch.zeros_like(one[block], dtype=torch.float32) for one in whole
        ]

    def add(self, grad_RB: Tensor, rows_RH: Tensor, inner_RA: Tensor | None) -> None:
        """Of some rows: what the logits' gradient makes of weights, bias and adapter."""
        weight_BH, bias_B, up_BA = self._sums
        if weight_BH is not None:
            weight_BH += _product(grad_RB.to(rows_RH.dtype).t(), rows_RH)
        if bias_B is not None:
            bias_B += grad_RB.sum(0)
        if up_BA is not None and inner_RA is not None:
            up_BA += grad_RB.t() @ inner_RA

    def store(self) -> None:
        """Put them in their place, in the dtype that the weights have."""
        for whole, own in zip(self._whole, self._sums, strict=True):
            if whole is not None:
                whole[self._block] = own


def head_bytes(device: torch.device) -> int:
    """Bytes of the fp32 matrices that a head on ``device`` makes beside the weights at a time."""
    return HEAD_BYTES if device.type == "cpu" else CARD_HEAD_BYTES


def _multiplied_in(hidden_MH: Tensor, weight_VH: Tensor) -> torch.dtype:
    """bf16 on CUDA for what is computed in bf16, else fp32; sums are fp32 either way."""
    kind = hidden_MH.device.type
    autocast = torch.is_autocast_enabled(kind)
    computed = {torch.get_autocast_dtype(kind)} if autocast else {hidden_MH.dtype, weight_VH.dtype}
    return torch.bfloat16 if kind == "cuda" and computed == {torch.bfloat16} else torch.float32


def _product(one_MK: Tensor, other_KN: Tensor) -> Tensor:
    """(M, N) fp32, also of bf16 matrices."""
    if one_MK.dtype == torch.float32:
        return one_MK @ other_KN
    return torch.mm(one_MK, other_KN, out_dtype=torch.float32)


def _blocks(
    weight_VH: Tensor, bias_V: Tensor | None, up_VA: Tensor | None, dtype: torch.dtype
) -> Iterator[tuple[int, Tensor, Tensor | None, Tensor | None]]:
    """``(first word, weights, bias, adapter)`` of blocks of the vocabulary, the weights in ``dtype`` and the
    others in fp32."""
    # Block, logits and what the softmax makes of them are four such matrices.
    device = weight_VH.device
    size = head_bytes(device) // (4 * 4 * max(weight_VH.shape[1], rows_at_once(device)))
    size = max(_WORDS, size // _WORDS * _WORDS)
    for start in range(0, len(weight_VH), size):
        block = slice(start, start + size)
        bias_B, up_BA = (None if one is None else one[block].float() for one in (bias_V, up_VA))
        yield start, weight_VH[block].to(dtype), bias_B, up_BA


def _inside(targets_R: Tensor, start: int, words: int) -> tuple[Tensor, Tensor]:
    """Whether each target lies in the block of ``words`` from ``start``, and its column there, else 0."""
    offset_R = targets_R - start
    inside_R = (offset_R >= 0) & (offset_R < words)
    return inside_R, torch.where(inside_R, offset_R, 0)


def _to_logits(raw_RB: Tensor, offset_R: Tensor, total_R: Tensor, ctx: Any) -> Tensor:
    """d log p(target) / d raw logit: what is chosen less its probability, through scale and cap.

    ``raw_RB`` may be overwritten.
    """
    logits_RB = _scaled(raw_RB, ctx.scale, ctx.softcap)
    slope_RB = 1 - (logits_RB / ctx.softcap) ** 2 if ctx.softcap else None
    # In place: on cards each further matrix of a block's logits costs more time than the arithmetic.
    grad_RB = logits_RB.sub_(total_R[:, None].float()).exp_().neg_()
    inside_R, column_R = _inside(offset_R, 0, raw_RB.shape[1])
    grad_RB.scatter_add_(1, column_R[:, None], inside_R[:, None].to(grad_RB.dtype))
    if slope_RB is not None:
        grad_RB *= slope_RB
    return grad_RB if ctx.scale == 1.0 else grad_RB.mul_(ctx.scale)
