"""What a decoder says at the last token of each of many sequences, where it has read them whole.

Sequences that start alike, as all completions of a prompt do, are packed like the scorer's: what they
share is computed once, and nothing is padded. A decoder whose attention is not reproduced by
:mod:`.segments` runs on padded batches of similar length.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kubealign_components.engines.packed_attention import SegmentPlan, check_rope, check_windows, use_segments
from kubealign_components.engines.packing import Group, lay_out, packs
from kubealign_components.engines.token_batches import token_batches
from kubealign_components.errors import EngineError

Tokens = tuple[int, ...]

SHORTEST_PREFIX = 16
"""Tokens in common from which on sharing them pays for attending in two parts."""
_PROBE = ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 4, 5, 6, 10, 11), (12, 13, 14))
"""What a model is tried on when it is loaded: twentieths of its vocabulary; two start alike."""

log = logging.getLogger(__name__)


class LastTokens:
    """Reads a head at the last token of sequences.

    Args:
        model: a loaded decoder with a head.
        decoder: the part of it that gives hidden states.
        head: (K, H) hidden states to (K, C) fp32 values.
        name: what errors call the model.
        token_budget: most tokens in one forward pass; what sequences share counts once, padding counts too.
        longest: most tokens of a sequence.
    """

    def __init__(
        self,
        model: Any,
        decoder: Any,
        head: Callable[[Tensor], Tensor],
        *,
        name: str,
        token_budget: int,
        longest: int,
    ) -> None:
        self._model, self._decoder, self._head = model, decoder, head
        self._name = name
        self._token_budget = token_budget
        self._longest = longest
        self._packs = self._can_pack()

    @torch.inference_mode()
    def read(self, sequences: Iterable[Tokens]) -> dict[Tokens, list[float]]:
        """The head's C values for each different sequence.

        They do not depend on what else is read, beyond rounding: no sequence sees another.

        Raises:
            EngineError: the device is out of memory.
        """
        unique = sorted(set(sequences))
        return self._packed(unique) if self._packs else self._padded(unique)

    def _packed(self, unique: Sequence[Tokens]) -> dict[Tokens, list[float]]:
        groups = share_prefixes(unique)
        values: dict[Tokens, list[float]] = {}
        for members in packs(groups, self._token_budget):
            pieces = [
                Group(groups[number].prompt, [groups[number].completions[c] for c in chosen])
                for number, chosen in members
            ]
            read = [(*piece.prompt, *rest) for piece in pieces for rest in piece.completions]
            with out_of_memory_named(self._name, read, self._token_budget):
                values.update(zip(read, self._forward_pack(pieces), strict=True))
        return values

    def _padded(self, unique: Sequence[Tokens]) -> dict[Tokens, list[float]]:
        values: dict[Tokens, list[float]] = {}
        for batch in batches(unique, self._token_budget):
            with out_of_memory_named(self._name, batch, self._token_budget):
                values.update(zip(batch, self._forward_padded(batch), strict=True))
        return values

    def _forward_pack(self, groups: Sequence[Group]) -> list[list[float]]:
        """The values; raises EngineError where ``longest`` tokens would not fit a window that layers keep
        to themselves."""
        tokens, positions, segments = lay_out(groups)
        device, plan = self._model.device, SegmentPlan(tuple(segments))
        check_rope(self._model, plan.longest)
        hidden = self._decoder(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            plan=plan,
        ).last_hidden_state[0]
        longest = self._longest
        check_windows(self._model, SegmentPlan(((0, longest, longest, longest),), plan.windows))
        ends = [stop - 1 for *_, first, stop in segments if stop > first]
        return self._values(hidden[torch.tensor(ends, device=hidden.device)])

    def _forward_padded(self, batch: Sequence[Tokens]) -> list[list[float]]:
        inputs, lengths = padded(batch, self._model.device)
        check_rope(self._model, inputs["input_ids"].shape[1])
        # A decoder's own pooling finds the last token by comparing with the pad token, which is wrong
        # when that is also the end of a turn, and refused when there is none.
        hidden = self._decoder(**inputs, use_cache=False).last_hidden_state
        rows = torch.arange(len(batch), device=hidden.device)
        return self._values(hidden[rows, lengths.to(hidden.device) - 1])

    def _values(self, hidden_KH: Tensor) -> list[list[float]]:
        return self._head(hidden_KH).float().tolist()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def _can_pack(self) -> bool:
        """Give the model the segment attention, if its packed values are its padded ones."""
        text = self._model.config.get_text_config()
        own, step = text._attn_implementation, text.vocab_size // 20
        probe = [tuple(number * step for number in ids) for ids in _PROBE]
        expected = self._forward_padded(probe)
        try:
            use_segments(self._model)
            packed = self._forward_pack(
                [Group(probe[0][:6], [ids[6:] for ids in probe[:2]]), Group((), probe[2:])]
            )
            pairs = [(a, b) for x, y in zip(packed, expected, strict=True) for a, b in zip(x, y, strict=True)]
            apart = max(abs(a - b) / (1 + abs(b)) for a, b in pairs)
            if apart <= (1e-3 if self._model.dtype == torch.float32 else 0.1):
                return True
            problem = f"packed and padded values differ by {apart:.3g}"
        except (EngineError, TypeError) as error:
            problem = str(error)
        self._model.set_attn_implementation(own)
        log.warning("%s: conversations are padded, their prompts not shared: %s", self._name, problem)
        return False


def share_prefixes(sequences: Sequence[Tokens]) -> list[Group]:
    """Sorted, different sequences as prompts with completions: neighbours that start alike are one group.

    A sequence joins the group before it unless that would more than halve the prefix, or it has more than
    twice as much in common with the next one: so the few tokens with which a template opens every
    conversation do not make one group of all.
    """
    common = [0, *(common_length(a, b) for a, b in pairwise(sequences)), 0]
    groups: list[Group] = []
    start = 0
    while start < len(sequences):
        end, prefix = start + 1, common[start + 1]
        while end < len(sequences):
            shared = min(prefix, common[end])
            if shared < SHORTEST_PREFIX or 2 * shared < max(prefix, common[end + 1]):
                break
            end, prefix = end + 1, shared
        members = sequences[start:end]
        # Of every sequence something must be left: it is read at its last token.
        prefix = min(prefix, min(map(len, members)) - 1) if len(members) > 1 else 0
        groups.append(Group(members[0][:prefix], [ids[prefix:] for ids in members]))
        start = end
    return groups


def batches(sequences: Iterable[Tokens], token_budget: int) -> Iterator[list[Tokens]]:
    """Sequences of similar length together, longest first, at most ``token_budget`` padded tokens each.

    A sequence that is over the budget alone is a batch of its own.
    """
    ordered = sorted(sequences, key=lambda ids: (-len(ids), ids))
    for batch in token_batches(list(map(len, ordered)), token_budget, padded=True):
        yield [ordered[i] for i in batch]


def padded(batch: Sequence[Tokens], device: Any) -> tuple[dict[str, Tensor], Tensor]:
    """``input_ids`` and ``attention_mask``, both (B, T), padded on the right; and the lengths, (B,).

    What stands in the padding does not matter, as it is masked: so no pad token is needed.
    """
    lengths = torch.tensor([len(ids) for ids in batch])
    input_ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.long)
    for row, ids in enumerate(batch):
        input_ids[row, : len(ids)] = torch.tensor(ids)
    mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}, lengths


@contextmanager
def out_of_memory_named(name: str, sequences: Sequence[Tokens], token_budget: int) -> Iterator[None]:
    """Out of memory becomes an error that says what to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"out of memory on {len(sequences)} conversations of up to {max(map(len, sequences))} tokens "
            f"with {name}; lower token_budget={token_budget}"
        ) from error


def common_length(one: Tokens, other: Tokens) -> int:
    """Tokens with which both begin."""
    differing = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))
