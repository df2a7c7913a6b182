"""Log-probabilities of completions: packed, each prompt computed once, full logits never made.

This is the one function that says what a log-probability is: the scorer and the trainer both run
it, so that at step 0 policy and reference agree to the last bit. For that, no bit may depend on what
else is in the pack: products run in tiles (:mod:`.row_tiles`), attention by segments, sums by
completion.

A pack is one row of tokens: a prompt, its completions, the next prompt, its completions, … Linear
layers see the row as it is; attention runs segment by segment (:mod:`.packed_attention`). Positions of a
completion continue from the end of its prompt.

Shape suffixes: T tokens of the pack, M predicted tokens, K completions, H hidden, V vocabulary,
N heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from kubealign_components.engines.fused_layers import fuse_layers
from kubealign_components.engines.head import Head
from kubealign_components.engines.packed_attention import SegmentPlan, check_rope, check_windows, use_segments
from kubealign_components.engines.row_tiles import RowTiles, checkpoint_contexts, whole_tiles
from kubealign_components.engines.token_batches import token_batches
from kubealign_components.engines.variable_length import Segment
from kubealign_components.errors import DataError, NotFinite

_FEW = 64
"""Tokens that fused layers are tried on."""


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and some of its completions, as token ids."""

    prompt: Sequence[int]
    completions: Sequence[Sequence[int]]
    name: str = ""
    """What an error calls the prompt."""

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


def lay_out(groups: Sequence[Group]) -> tuple[list[int], list[int], list[Segment]]:
    """Tokens, their positions in their own text, and segments of ``groups`` in one row.

    A prompt without tokens has no segment.
    """
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    for group in groups:
        start, end = len(tokens), len(tokens) + len(group.prompt)
        tokens += group.prompt
        positions += range(len(group.prompt))
        if end > start:
            segments.append((start, end, end, end))
        for completion in group.completions:
            first = len(tokens)
            tokens += completion
            positions += range(end - start, end - start + len(completion))
            segments.append((start, end, first, len(tokens)))
    return tokens, positions, segments


def pack(groups: Sequence[Group]) -> PackedBatch:
    """Lay ``groups`` out in one row.

    Raises:
        DataError: no group, an empty prompt, or an empty completion.
    """
    if not all(len(group.prompt) for group in groups):
        raise DataError("a prompt without tokens cannot predict a completion's first token")
    if not all(len(completion) for group in groups for completion in group.completions):
        raise DataError("a completion without tokens has no log-probability; drop it before scoring")
    tokens, positions, segments = lay_out(groups)
    completions = [segment for segment in segments if segment[3] > segment[2]]
    if not completions:
        raise DataError("there is no completion to score")
    lengths = torch.tensor([stop - first for *_, first, stop in completions])
    predictors = [p for _, end, first, stop in completions for p in (end - 1, *range(first, stop - 1))]
    return PackedBatch(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        segments=tuple(segments),
        predictors=torch.tensor(predictors),
        targets=torch.tensor([t for *_, first, stop in completions for t in tokens[first:stop]]),
        owners=torch.repeat_interleave(lengths),
        completions=len(completions),
    )


def packs(groups: Sequence[Group], budget: int) -> Iterator[list[tuple[int, list[int]]]]:
    """Packs of ``(group, its completions)`` of at most ``budget`` tokens, fullest groups first.

    A group larger than the budget spans several packs; a completion that is over it alone is a pack by
    itself.
    """
    pieces: list[tuple[int, list[int], int]] = []
    for number, group in enumerate(groups):
        lengths = list(map(len, group.completions))
        for chosen in token_batches(lengths, budget, shared=len(group.prompt)):
            pieces.append((number, chosen, len(group.prompt) + sum(lengths[i] for i in chosen)))
    pieces.sort(key=lambda piece: piece[2], reverse=True)
    for pack_of in token_batches([tokens for *_, tokens in pieces], budget):
        yield [pieces[i][:2] for i in pack_of]


def prepare(model: Any) -> Any:
    """Give ``model`` the segment attention; call once after loading, and after switching on checkpoints.

    Raises:
        EngineError: a model whose attention is not reproduced.
    """
    use_segments(model)
    if not torch.cuda.is_available() and hasattr(model, "set_experts_implementation"):
        # On CPUs the product of all experts at once adds up by the number of rows; one by one they are tiled.
        model.set_experts_implementation("eager")
    for module in model.modules():
        if hasattr(module, "_gradient_checkpointing_func"):
            recomputed = partial(module._gradient_checkpointing_func, context_fn=checkpoint_contexts)
            module._gradient_checkpointing_func = recomputed
    return model


def summed_logprobs(model: object, batch: PackedBatch, names: Sequence[str] = ()) -> Tensor:
    """(K,) fp32: for each completion the sum of log p(token | what precedes it), in nats.

    Differentiable. The head runs on the predicting positions alone, see :meth:`Head.logprobs`.

    Args:
        model: a causal language model that went through :func:`prepare`, possibly PEFT-wrapped.
        batch: on the model's device.
        names: what an error calls each completion; its number in the pack when not given.

    Raises:
        NotFinite: a sum.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden_TH = hidden_states(base, batch)
    # A model that is spread over devices ends on another one than it starts on.
    predictors_M, targets_M = (index.to(hidden_TH.device) for index in (batch.predictors, batch.targets))
    token_logprobs_M = Head(base).logprobs(hidden_TH[predictors_M], targets_M)
    # In fp64 and each completion by itself: a long one's fp32 sum would round every token to its own
    # size, and adding by index has no fixed order on GPUs.
    parts = token_logprobs_M.double().split(batch.lengths().tolist())
    sums_K = torch.stack([part.sum() for part in parts]).float()
    if not torch.isfinite(sums_K).all():
        bad = int((~torch.isfinite(sums_K)).nonzero()[0])
        name = names[bad] if names else f"completion {bad} of the pack"
        value = float(sums_K[bad].detach())
        raise NotFinite(f"{name} has log-probability {value}; the model is broken, or try dtype=float32")
    return sums_K


def hidden_states(base: Any, batch: PackedBatch) -> Tensor:
    """(T, H): the decoder's last hidden states.

    The row is filled up to whole tiles with its first token, which nothing attends to: what runs element
    by element, too, then meets one kind of length.
    """
    device = batch.input_ids.device
    if device.type == "cuda":
        computed = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else base.dtype
        fuse_layers(base, partial(_decoded_few, base, batch.input_ids[:, :_FEW]), computed)
    plan = SegmentPlan(batch.segments)
    check_rope(base, plan.longest)
    hidden_TH = _decoded(base, batch.input_ids, batch.position_ids, plan)
    check_windows(base, plan)
    return hidden_TH


def _decoded_few(base: Any, input_ids_1T: Tensor) -> Tensor:
    """(T, H): the hidden states of a few tokens, taken for one text."""
    end = input_ids_1T.shape[1]
    positions_1T = torch.arange(end, device=input_ids_1T.device)[None]
    return _decoded(base, input_ids_1T, positions_1T, SegmentPlan(((0, end, end, end),)))


def _decoded(base: Any, input_ids_1T: Tensor, position_ids_1T: Tensor, plan: SegmentPlan) -> Tensor:
    tokens = input_ids_1T.shape[1]
    filling = whole_tiles(tokens, input_ids_1T.device) - tokens
    with RowTiles():
        output = base.get_decoder()(
            input_ids=torch.cat([input_ids_1T, input_ids_1T[:, :1].expand(1, filling)], 1),
            position_ids=pad(position_ids_1T, (0, filling)),
            use_cache=False,
            plan=plan,
        )
    hidden_TH: Tensor = output.last_hidden_state[0, :tokens]
    return hidden_TH


class LogprobModel(nn.Module):
    """:func:`summed_logprobs` as a module: what FSDP and DeepSpeed wrap, so that their hooks run.

    Args:
        model: a causal language model, possibly PEFT-wrapped.
        dtype: of products by autocast, which DeepSpeed switches off around it; None to leave it as it is.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = prepare(model)
        self._dtype = dtype

    def forward(self, batch: PackedBatch, names: Sequence[str] = ()) -> Tensor:
        """(K,) fp32 sums."""
        device = batch.input_ids.device
        with nullcontext() if self._dtype is None else computing_in(self._dtype, device):
            return summed_logprobs(self.model, batch, [f"completion {name}" for name in names])


def computing_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Products in ``dtype`` on ``device`` by autocast, as ``transformers.Trainer`` has them."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
