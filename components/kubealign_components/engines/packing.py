"""Log-probabilities of completions: packed, each prompt computed once, full logits never made.

This is the one function that says what a log-probability is: the scorer and the trainer both run
it, so that at step 0 policy and reference agree to the last bit that their dtypes allow.

A pack is one row of tokens: a prompt, its completions, the next prompt, its completions, … Linear
layers see the row as it is. Attention runs segment by segment: a prompt attends to itself, a
completion to its prompt and itself, and nothing is computed twice or masked away. Positions of a
completion continue from the end of its prompt. The arithmetic of a segment does not depend on what
else is in the pack.

Shape suffixes: T tokens of the pack, M predicted tokens, K completions, H hidden, V vocabulary,
N heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface

from kubealign_components.errors import DataError, EngineError

ATTENTION = "kubealign_segments"
"""Name under which transformers knows the attention below."""
HEAD_ROWS = 512
"""Predicted tokens whose logits exist at one time."""

Segment = tuple[int, int, int, int]
"""First and end token of a prompt, first and end token of a completion that continues it; the
completion is empty for the prompt's own segment."""


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and some of its completions, as token ids."""

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]

    @property
    def tokens(self) -> int:
        """Tokens in a pack, the prompt counted once."""
        return len(self.prompt) + sum(map(len, self.completions))


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Groups as tensors."""

    input_ids: Tensor
    """(1, T) int64."""
    position_ids: Tensor
    """(1, T) int64."""
    segments: tuple[Segment, ...]
    """What attends to what."""
    predictors: Tensor
    """(M,) int64: position whose hidden state predicts each completion token."""
    targets: Tensor
    """(M,) int64: the token predicted."""
    owners: Tensor
    """(M,) int64: completion it belongs to, 0 to K - 1."""
    completions: int
    """K."""

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on ``device``."""
        names = ("input_ids", "position_ids", "predictors", "targets", "owners")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def lengths(self) -> Tensor:
        """(K,) int64: tokens of each completion."""
        return torch.bincount(self.owners, minlength=self.completions)


def pack(groups: Sequence[Group]) -> PackedBatch:
    """Lay ``groups`` out in one row.

    Raises:
        DataError: no group, an empty prompt, or an empty completion.
    """
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    predictors: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    count = 0
    for group in groups:
        if not len(group.prompt):
            raise DataError("a prompt without tokens cannot predict a completion's first token")
        start, end = len(tokens), len(tokens) + len(group.prompt)
        tokens += group.prompt
        positions += range(len(group.prompt))
        segments.append((start, end, end, end))
        for completion in group.completions:
            if not len(completion):
                raise DataError("a completion without tokens has no log-probability; drop it before scoring")
            first = len(tokens)
            tokens += completion
            positions += range(len(group.prompt), len(group.prompt) + len(completion))
            segments.append((start, end, first, len(tokens)))
            predictors += [end - 1, *range(first, len(tokens) - 1)]
            targets += completion
            owners += [count] * len(completion)
            count += 1
    if not count:
        raise DataError("there is no completion to score")
    return PackedBatch(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        segments=tuple(segments),
        predictors=torch.tensor(predictors),
        targets=torch.tensor(targets),
        owners=torch.tensor(owners),
        completions=count,
    )


def prepare(model: Any) -> Any:
    """Give ``model`` the segment attention; call once after loading.

    Raises:
        EngineError: a model whose attention or head this module does not reproduce.
    """
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None):
        raise EngineError(
            f"{config.model_type}: soft-capped attention scores are not supported for scoring and training"
        )
    if getattr(config, "position_embedding_type", None) == "alibi" or getattr(config, "alibi", False):
        raise EngineError(f"{config.model_type}: ALiBi positions are not supported for scoring and training")
    AttentionInterface.register(ATTENTION, _segment_attention)
    model.set_attn_implementation(ATTENTION)
    return model


def summed_logprobs(model: Any, batch: PackedBatch) -> Tensor:
    """(K,) fp32: for each completion the sum of log p(token | what precedes it), in nats.

    Differentiable. The head runs on the predicting positions alone, ``HEAD_ROWS`` at a time, with
    log-sum-exp in fp32; with gradients each slice is recomputed in the backward pass.

    Args:
        model: a causal language model that went through :func:`prepare`, possibly PEFT-wrapped.
        batch: on the model's device.

    Raises:
        EngineError: a sum that is not finite.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden_TH = base.get_decoder()(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, segments=batch.segments
    ).last_hidden_state[0]
    hidden_MH = hidden_TH[batch.predictors]
    head = _Head(base)
    token_logprobs_M = torch.cat(
        [
            _slice_logprobs(head, hidden_MH[i : i + HEAD_ROWS], batch.targets[i : i + HEAD_ROWS])
            for i in range(0, len(batch.targets), HEAD_ROWS)
        ]
    )
    # Summed in fp64: a long completion's fp32 running sum would round every token to its own size.
    sums_K = torch.zeros(batch.completions, dtype=torch.float64, device=token_logprobs_M.device)
    sums_K = sums_K.index_add(0, batch.owners, token_logprobs_M.double()).float()
    if not torch.isfinite(sums_K).all():
        bad = int((~torch.isfinite(sums_K)).nonzero()[0])
        raise EngineError(
            f"completion {bad} of the pack has log-probability {float(sums_K[bad])}; the model is broken"
        )
    return sums_K


class LogprobModel(nn.Module):
    """:func:`summed_logprobs` as a module: what FSDP and DeepSpeed wrap, so that their hooks run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = prepare(model)

    def forward(self, batch: PackedBatch) -> Tensor:
        """(K,) fp32 sums."""
        return summed_logprobs(self.model, batch)


class _Head:
    """Hidden states to fp32 logits, with the scalings that some models apply after the head."""

    def __init__(self, base: Any) -> None:
        config = base.config.get_text_config()
        self.linear = base.get_output_embeddings()
        self.scale = getattr(config, "logit_scale", None) or 1.0 / (
            getattr(config, "logits_scaling", None) or 1.0
        )
        self.softcap = getattr(config, "final_logit_softcapping", None)

    def __call__(self, hidden_MH: Tensor) -> Tensor:
        logits_MV = self.linear(hidden_MH).float()
        if self.scale != 1.0:
            logits_MV = logits_MV * self.scale
        if self.softcap:
            logits_MV = torch.tanh(logits_MV / self.softcap) * self.softcap
        return logits_MV


def _slice_logprobs(head: _Head, hidden_MH: Tensor, targets_M: Tensor) -> Tensor:
    def compute(hidden_MH: Tensor) -> Tensor:
        logits_MV = head(hidden_MH)
        return logits_MV.gather(1, targets_M[:, None])[:, 0] - logits_MV.logsumexp(1)

    if torch.is_grad_enabled():
        result: Tensor = checkpoint(compute, hidden_MH, use_reentrant=False)
        return result
    return compute(hidden_MH)


def _segment_attention(
    _module: nn.Module,
    query_1NTD: Tensor,
    key_1NTD: Tensor,
    value_1NTD: Tensor,
    _mask: Tensor | None,
    *,
    segments: tuple[Segment, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of each segment by itself; gives (1, T, N, D) as transformers expects."""
    if sliding_window is not None and any(e - s + f - c > sliding_window for s, e, c, f in segments):
        raise EngineError(
            f"sequences longer than the model's sliding window of {sliding_window} are not supported"
        )
    outputs = []
    for start, end, first, stop in segments:
        keys, values = key_1NTD[:, :, start:end], value_1NTD[:, :, start:end]
        queries, mask = query_1NTD[:, :, start:end], None
        if stop > first:
            queries = query_1NTD[:, :, first:stop]
            keys = torch.cat([keys, key_1NTD[:, :, first:stop]], dim=2)
            values = torch.cat([values, value_1NTD[:, :, first:stop]], dim=2)
            mask = _continuation_mask(stop - first, end - start, queries.device)
        outputs.append(
            scaled_dot_product_attention(
                queries,
                keys,
                values,
                attn_mask=mask,
                dropout_p=dropout,
                scale=scaling,
                is_causal=mask is None,
                enable_gqa=True,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _continuation_mask(length: int, prompt: int, device: torch.device) -> Tensor:
    """(length, prompt + length) bool: a completion token sees the prompt and itself up to here."""
    return torch.ones(length, prompt + length, dtype=torch.bool, device=device).tril(prompt)
