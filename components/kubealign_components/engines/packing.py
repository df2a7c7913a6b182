"""Log-probabilities of completions: packed, each prompt computed once, full logits never made.

This is the one function that says what a log-probability is: the scorer and the trainer both run
it, so that at step 0 policy and reference agree to the last bit that their dtypes allow.

A pack is one row of tokens: a prompt, its completions, the next prompt, its completions, … Linear
layers see the row as it is; attention runs segment by segment (:mod:`.segments`). Positions of a
completion continue from the end of its prompt.

Shape suffixes: T tokens of the pack, M predicted tokens, K completions, H hidden, V vocabulary,
N heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from kubealign_components.engines.packed_attention import Segment, SegmentPlan, check_windows, use_segments
from kubealign_components.errors import DataError, EngineError

HEAD_ROWS = 512
"""Predicted tokens whose logits exist at one time."""


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
    pieces = [piece for number, group in enumerate(groups) for piece in _pieces(number, group, budget)]
    pieces.sort(key=lambda piece: piece[2], reverse=True)
    pack_of: list[tuple[int, list[int]]] = []
    used = 0
    for number, chosen, tokens in pieces:
        if pack_of and used + tokens > budget:
            yield pack_of
            pack_of, used = [], 0
        pack_of.append((number, chosen))
        used += tokens
    if pack_of:
        yield pack_of


def _pieces(number: int, group: Group, budget: int) -> Iterator[tuple[int, list[int], int]]:
    chosen: list[int] = []
    used = len(group.prompt)
    for index, completion in enumerate(group.completions):
        if chosen and used + len(completion) > budget:
            yield number, chosen, used
            chosen, used = [], len(group.prompt)
        chosen.append(index)
        used += len(completion)
    if chosen:
        yield number, chosen, used


def prepare(model: Any) -> Any:
    """Give ``model`` the segment attention; call once after loading.

    Raises:
        EngineError: a model whose attention is not reproduced.
    """
    use_segments(model)
    return model


def summed_logprobs(model: Any, batch: PackedBatch, names: Sequence[str] = ()) -> Tensor:
    """(K,) fp32: for each completion the sum of log p(token | what precedes it), in nats.

    Differentiable. The head runs on the predicting positions alone, ``HEAD_ROWS`` at a time, with
    log-sum-exp in fp32; with gradients each slice is recomputed in the backward pass.

    Args:
        model: a causal language model that went through :func:`prepare`, possibly PEFT-wrapped.
        batch: on the model's device.
        names: what an error calls each completion; its number in the pack when not given.

    Raises:
        EngineError: a sum that is not finite.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden_TH = hidden_states(base, batch)
    # A model that is spread over devices ends on another one than it starts on.
    targets_M, owners_M = (index.to(hidden_TH.device) for index in (batch.targets, batch.owners))
    hidden_MH = hidden_TH[batch.predictors.to(hidden_TH.device)]
    head = Head(base)
    token_logprobs_M = torch.cat(
        [
            _slice_logprobs(head, hidden_MH[i : i + HEAD_ROWS], targets_M[i : i + HEAD_ROWS])
            for i in range(0, len(targets_M), HEAD_ROWS)
        ]
    )
    # Summed in fp64: a long completion's fp32 running sum would round every token to its own size.
    sums_K = torch.zeros(batch.completions, dtype=torch.float64, device=token_logprobs_M.device)
    sums_K = sums_K.index_add(0, owners_M, token_logprobs_M.double()).float()
    if not torch.isfinite(sums_K).all():
        bad = int((~torch.isfinite(sums_K)).nonzero()[0])
        name = names[bad] if names else f"completion {bad} of the pack"
        raise EngineError(f"{name} has log-probability {float(sums_K[bad])}; the model is broken")
    return sums_K


def hidden_states(base: Any, batch: PackedBatch) -> Tensor:
    """(T, H): the decoder's last hidden states."""
    plan = SegmentPlan(batch.segments)
    output = base.get_decoder()(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, plan=plan
    )
    check_windows(base, plan)
    hidden_TH: Tensor = output.last_hidden_state[0]
    return hidden_TH


class LogprobModel(nn.Module):
    """:func:`summed_logprobs` as a module: what FSDP and DeepSpeed wrap, so that their hooks run."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = prepare(model)

    def forward(self, batch: PackedBatch) -> Tensor:
        """(K,) fp32 sums."""
        return summed_logprobs(self.model, batch)


class Head:
    """Hidden states to fp32 logits, with the scalings that some models apply after the head."""

    def __init__(self, base: Any) -> None:
        config = base.config.get_text_config()
        self.linear = base.get_output_embeddings()
        self.scale = getattr(config, "logit_scale", None) or 1.0 / (
            getattr(config, "logits_scaling", None) or 1.0
        )
        self.softcap = getattr(config, "final_logit_softcapping", None)

    def __call__(self, hidden_MH: Tensor) -> Tensor:
        return self._scaled(self.linear(hidden_MH).float())

    def only(self, tokens: Sequence[int], hidden_MH: Tensor) -> Tensor:
        """(M, len(tokens)) fp32: the logits of a few tokens, multiplied in fp32.

        A head that is more than a matrix, such as one under an adapter, is asked for all of them.
        """
        if type(self.linear) is not nn.Linear:
            return self(hidden_MH)[:, list(tokens)]
        weight, bias = self.linear.weight[list(tokens)].float(), self.linear.bias
        chosen_bias = None if bias is None else bias[list(tokens)].float()
        return self._scaled(linear(hidden_MH.float().to(weight.device), weight, chosen_bias))

    def _scaled(self, logits_MV: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits_MV = logits_MV * self.scale
        if self.softcap:
            logits_MV = torch.tanh(logits_MV / self.softcap) * self.softcap
        return logits_MV


def _slice_logprobs(head: Head, hidden_MH: Tensor, targets_M: Tensor) -> Tensor:
    def compute(hidden_MH: Tensor) -> Tensor:
        logits_MV = head(hidden_MH)
        chosen_M = logits_MV.gather(1, targets_M.to(logits_MV.device)[:, None])[:, 0]
        return (chosen_M - logits_MV.logsumexp(1)).to(hidden_MH.device)

    if torch.is_grad_enabled():
        result: Tensor = checkpoint(compute, hidden_MH, use_reentrant=False)
        return result
    return compute(hidden_MH)
