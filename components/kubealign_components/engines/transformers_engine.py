"""Sampling with transformers: one prompt at a time, reproducible however the work is cut.

A prompt is prefilled once, its cache repeated for its ``n`` completions, and these make up the batch:
what a completion is depends on its prompt alone. Every completion draws from a generator of its own,
by inversion of the cumulative distribution, so that rounding hardly ever changes a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kubealign_components.data.chat.tokenizer import check_ids, load_tokenizer
from kubealign_components.data.seeds import generator_for
from kubealign_components.engines.dtypes import resolved_dtype
from kubealign_components.engines.generation import (
    GenerationEngine,
    Prompt,
    Sampled,
    SamplingSpec,
    check_room,
    check_sampled,
    context_limit,
    end_token_ids,
    numbers_of,
)
from kubealign_components.engines.head import chosen_logprobs
from kubealign_components.engines.loading import free_memory, load_checkpoint
from kubealign_components.errors import EngineError

# Tokens of which a stop string can consist beside one for each of its bytes: those that a
# tokenizer strips or merges at the start of a text.
_STOP_SLACK = 16


@dataclass(slots=True)
class _Row:
    """A completion that is being sampled."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False


class TransformersEngine(GenerationEngine):
    """A causal language model of transformers, on the GPU if there is one.

    Args:
        spec: the settings; ``engine_args`` go to ``from_pretrained``.
        model: a Hugging Face model directory.
        ends: the tokens that end a turn; None for those of the model's own template.

    Raises:
        EngineError: the model cannot be loaded, or names no end-of-turn token.
    """

    def __init__(self, spec: SamplingSpec, model: Path, ends: Sequence[int] | None = None) -> None:
        self._spec = spec
        self._limit = context_limit(spec, model)
        self._ends = frozenset(ends or end_token_ids(model))
        self._model = _load(spec, model)
        self._rows = self._model.get_input_embeddings().weight.shape[0]
        self._tokenizer = load_tokenizer(model) if spec.stop else None
        self._stop_window = _STOP_SLACK + max((len(s.encode()) for s in spec.stop), default=0)

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[tuple[str, list[Sampled]]]:
        """See :class:`GenerationEngine`."""
        for prompt in prompts:
            check_ids([prompt.token_ids], self._rows, f"prompt {prompt.prompt_id}")
            check_room(prompt.prompt_id, len(prompt.token_ids), self._spec.max_new_tokens, self._limit)
            yield prompt.prompt_id, [check_sampled(prompt, s) for s in self._sample(prompt)]

    def close(self) -> None:
        """See :class:`GenerationEngine`."""
        self._model = None
        free_memory()

    def _sample(self, prompt: Prompt) -> list[Sampled]:
        try:
            rows = self._decode(prompt)
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"out of memory sampling {len(numbers_of(prompt, self._spec))} completions of prompt "
                f"{prompt.prompt_id} with {len(prompt.token_ids)} tokens; lower n or "
                "max_new_tokens, or use engine=vllm"
            ) from error
        return [
            Sampled(
                token_ids=row.token_ids,
                finish_reason="stop" if row.ended else "length",
                logprob=math.fsum(row.logprobs),
            )
            for row in rows
        ]

    @torch.inference_mode()
    def _decode(self, prompt: Prompt) -> list[_Row]:
        spec, device = self._spec, self._model.device
        numbers = numbers_of(prompt, spec)
        noise = np.stack(
            [generator_for(spec.seed, prompt.prompt_id, i).random(spec.max_new_tokens) for i in numbers]
        )
        rows = [_Row() for _ in numbers]
        active = list(range(len(numbers)))
        output = self._model(
            torch.tensor([list(prompt.token_ids)], device=device), use_cache=True, logits_to_keep=1
        )
        cache = output.past_key_values
        cache.batch_repeat_interleave(len(numbers))
        logits = output.logits[:, -1].float().expand(len(numbers), -1)
        for step in range(spec.max_new_tokens):
            uniform = torch.from_numpy(noise[active, step]).to(device)
            tokens = choose(logits, uniform, spec.temperature, spec.top_p)
            logprobs = chosen_logprobs(logits, tokens)
            self._record([rows[i] for i in active], tokens.tolist(), logprobs.tolist())
            keep = [j for j, i in enumerate(active) if not rows[i].ended]
            if not keep or step + 1 == spec.max_new_tokens:
                break
            if len(keep) < len(active):  # which rows are left depends on the prompt alone
                index = torch.tensor(keep, device=device)
                cache.batch_select_indices(index)
                tokens, active = tokens[index], [active[j] for j in keep]
            output = self._model(tokens[:, None], past_key_values=cache, use_cache=True)
            logits = output.logits[:, -1].float()
        return rows

    def _record(self, rows: Sequence[_Row], tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            row.ended = token in self._ends or self._stopped(row)

    def _stopped(self, row: _Row) -> bool:
        """Whether the last token of ``row`` completed a stop string; special tokens are text like others."""
        if self._tokenizer is None:
            return False
        tail = self._tokenizer.decode(row.token_ids[-self._stop_window :], skip_special_tokens=False)
        return any(stop in tail for stop in self._spec.stop)


def choose(logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """One token for each row: the inverse of the cumulative distribution at ``uniform``.

    Args:
        logits: raw logits, fp32, shape (rows, vocabulary).
        uniform: random numbers in [0, 1), fp64, shape (rows,).
        temperature: divides the logits; 0 gives the most likely token.
        top_p: tokens outside the smallest set with at least this probability are left out.

    Returns:
        token ids, int64, shape (rows,).
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / temperature).softmax(-1)
    if top_p < 1:
        probabilities = _nucleus(probabilities, top_p)
    cumulative = probabilities.double().cumsum(-1)
    threshold = uniform * cumulative[:, -1]
    tokens = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0]
    return tokens.clamp(max=logits.shape[-1] - 1)


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero outside the smallest set with probability ``top_p`` (Holtzman et al. 2020, eq. 2 and 3)."""
    ordered, order = probabilities.sort(-1, descending=True)
    before = ordered.double().cumsum(-1) - ordered
    kept = ordered.masked_fill(before >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, kept)


def _load(spec: SamplingSpec, model: Path) -> Any:
    dtype = getattr(torch, resolved_dtype(spec.dtype))
    loaded, _ = load_checkpoint(model, dtype, **spec.engine_args)
    if torch.cuda.is_available() and "device_map" not in spec.engine_args:
        loaded.to("cuda")
    return loaded.eval()
