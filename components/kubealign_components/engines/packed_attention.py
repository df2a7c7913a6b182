"""Attention over a pack: a prompt sees itself, each of its completions sees the prompt and itself.

Linear layers run on a pack as one row of tokens; only attention has to know where one text ends and
another starts. transformers lets a model's attention be a function of one's own: this one cuts the
row into segments and calls PyTorch's fused kernel on each, or a kernel of variable length on all of them
(:mod:`.variable_length`), so that nothing is computed to be masked away, and the arithmetic of a segment
does not depend on what else is in the pack.

A model that moves information along the row by other means than attention (state spaces, linear
attention, convolutions), or changes its scores in ways not computed here, is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from kubealign_components.engines.variable_length import (
    KeyLayout,
    Segment,
    in_one_call,
    kernel_for,
    lay_out_keys,
)
from kubealign_components.errors import EngineError

ATTENTION = "kubealign_segments"
"""Name under which transformers knows the attention below."""

_LAYERS = {"full_attention", "sliding_attention"}
_SCORE_CHANGES = ("s_aux", "softcap", "position_bias")


@dataclass(slots=True)
class SegmentPlan:
    """What the attention of every layer needs to know about a pack."""

    segments: tuple[Segment, ...]
    windows: set[int | None] = field(default_factory=set)
    """Sliding windows that layers asked for; filled as they run."""
    _masks: dict[tuple[int, int, int | None, torch.device], Tensor] = field(default_factory=dict)
    _layouts: dict[torch.device, KeyLayout] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with one of its completions."""
        return max(end - start + stop - first for start, end, first, stop in self.segments)

    def mask(self, before: int, length: int, window: int | None, device: torch.device) -> Tensor:
        """(length, before + length) bool: a query sees what precedes it, at most ``window`` with itself."""
        key = (before, length, window, device)
        if key not in self._masks:
            seen = torch.ones(length, before + length, dtype=torch.bool, device=device).tril(before)
            self._masks[key] = seen if window is None else seen.triu(before - window + 1)
        return self._masks[key]

    def layout(self, device: torch.device) -> KeyLayout:
        """Of the segments' queries and keys, on ``device``."""
        if device not in self._layouts:
            self._layouts[device] = lay_out_keys(self.segments, device)
        return self._layouts[device]


def use_segments(model: Any) -> None:
    """Give ``model`` the segment attention.

    Raises:
        EngineError: a model whose attention this module does not reproduce.
    """
    config = model.config.get_text_config()
    problem = _problem(model, config)
    if not problem:
        AttentionInterface.register(ATTENTION, segment_attention)
        model.set_attn_implementation(ATTENTION)
        if getattr(config, "_attn_implementation", None) != ATTENTION:
            problem = "its attention cannot be replaced"
    if problem:
        raise EngineError(
            f"{config.model_type}: {problem}; such models are not supported for scoring and training"
        )


def check_windows(model: Any, plan: SegmentPlan) -> None:
    """Raise :class:`EngineError` when a window that layers did not ask for is shorter than a sequence."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and plan.longest > window > 0:
        slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
        if slides and plan.windows <= {None}:
            raise EngineError(
                f"{config.model_type}: its layers do not pass on their sliding window of {window}, and a "
                f"sequence of {plan.longest} tokens is longer"
            )


def check_rope(model: Any, longest: int) -> None:
    """Raise :class:`EngineError` where rotary positions would depend on what else is in a batch.

    Two kinds of them, ``dynamic`` and ``longrope`` (the 128k models of Phi-3 and 4), change for the whole
    batch as soon as one text in it is longer than what the model was first trained on.

    Args:
        model: any decoder.
        longest: tokens of the longest text of a batch.
    """
    config = model.config.get_text_config()
    for kind, bound in _changing_rope(config):
        if longest > bound:
            raise EngineError(
                f"{config.model_type}: its positions ({kind}) are others in a batch with a text of more than "
                f"{bound} tokens, and one has {longest}: values would depend on what is computed together; "
                f"keep to {bound} tokens (max_seq_len of filter, max_length of a reward model)"
            )


def _changing_rope(config: Any) -> Iterator[tuple[str, int]]:
    """The kinds of rotary positions that change with the length of a text, and the length where they do."""
    parameters = getattr(config, "rope_parameters", None) or {}
    each = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    for rope in each:
        kind = str(rope.get("rope_type"))
        if "dynamic" in kind:
            yield kind, config.max_position_embeddings
        elif kind == "longrope":
            yield kind, rope.get("original_max_position_embeddings") or config.max_position_embeddings


def segment_attention(
    module: nn.Module,
    query_1NTD: Tensor,
    key_1NTD: Tensor,
    value_1NTD: Tensor,
    _mask: Tensor | None,
    *,
    plan: SegmentPlan | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    """Attention of each segment by itself; gives (1, T, N, D) as transformers expects.

    Tokens after the last segment fill the row up and get zeros.

    Raises:
        EngineError: the decoder does not pass ``plan`` on, or the layer changes its scores.
    """
    changes = [name for name in _SCORE_CHANGES if options.get(name) is not None]
    if plan is None or changes:
        reason = f"adds {', '.join(changes)} to its scores" if changes else "was not told the pack's segments"
        raise EngineError(f"{type(module).__name__} {reason}; such models cannot be packed")
    plan.windows.add(sliding_window)
    query_1NTD, key_1NTD, value_1NTD = (_as_computed(x) for x in (query_1NTD, key_1NTD, value_1NTD))
    kernel = None if dropout else kernel_for(query_1NTD, key_1NTD, _probed)
    if kernel is not None:
        layout = plan.layout(query_1NTD.device)
        return in_one_call(
            query_1NTD, key_1NTD, value_1NTD, layout, kernel, scaling=scaling, window=sliding_window
        ), None
    return _one_by_one(query_1NTD, key_1NTD, value_1NTD, plan, scaling, dropout, sliding_window), None


def _one_by_one(
    query_1NTD: Tensor,
    key_1NTD: Tensor,
    value_1NTD: Tensor,
    plan: SegmentPlan,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
) -> Tensor:
    """(1, T, N, D): a call for each segment."""
    outputs = []
    for start, end, first, stop in plan.segments:
        # A copy: a slice lies otherwise in memory with every pack, and kernels may tell.
        queries = (query_1NTD[:, :, first:stop] if stop > first else query_1NTD[:, :, start:end]).contiguous()
        keys, values = (_continued(x, start, end, first, stop) for x in (key_1NTD, value_1NTD))
        before = keys.shape[2] - queries.shape[2]
        window = sliding_window if sliding_window is not None and sliding_window < keys.shape[2] else None
        mask = plan.mask(before, queries.shape[2], window, queries.device) if before or window else None
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
    filling = query_1NTD.shape[2] - sum(output.shape[2] for output in outputs)
    outputs.append(outputs[0].new_zeros(*outputs[0].shape[:2], filling, outputs[0].shape[3]))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _probed(
    query_1NTD: Tensor, key_1NTD: Tensor, value_1NTD: Tensor, segments: Sequence[Segment], window: int | None
) -> Tensor:
    """Segments one by one, as a kernel is compared with."""
    return _one_by_one(query_1NTD, key_1NTD, value_1NTD, SegmentPlan(tuple(segments)), None, 0.0, window)


def _as_computed(tensor: Tensor) -> Tensor:
    """In the dtype that autocast computes attention in, where it is on."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _continued(tensor_1NTD: Tensor, start: int, end: int, first: int, stop: int) -> Tensor:
    """The prompt's part of ``tensor_1NTD`` followed by the completion's."""
    prompt = tensor_1NTD[:, :, start:end]
    if stop > first:
        return torch.cat([prompt, tensor_1NTD[:, :, first:stop]], dim=2)
    return prompt.contiguous()


def _problem(model: object, config: object) -> str:
    """Why ``model`` cannot be packed; empty when nothing is known against it."""
    if getattr(config, "attn_logit_softcapping", None):
        return "it soft-caps its attention scores"
    if getattr(config, "position_embedding_type", None) == "alibi" or getattr(config, "alibi", False):
        return "it has ALiBi positions"
    other = set(getattr(config, "layer_types", None) or []) - _LAYERS
    if other:
        return f"it has {', '.join(sorted(other))} layers"
    if getattr(model, "_is_stateful", False):
        return "it carries a state along the text"
    return ""
