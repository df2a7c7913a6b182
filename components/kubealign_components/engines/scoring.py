"""Scoring: the log-probability of given completions under a model, many prompts at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from kubealign_components.config import require, require_choice
from kubealign_components.engines.packing import Group, pack, prepare, summed_logprobs
from kubealign_components.errors import EngineError

DTYPES = ("auto", "bfloat16", "float16", "float32")
POSITIVE_SLACK = 1e-3
"""Nats by which rounding can lift the log-probability of a certain token above zero."""


class Scorer:
    """A causal language model that scores completions; use as a context to free its memory.

    Packs hold about ``token_budget`` tokens, are filled longest prompt first so that too large a
    budget fails at once, and never change the sums beyond rounding.

    Args:
        model: Hugging Face model directory.
        dtype: of weights and activations: float32, bfloat16, float16, or auto (bfloat16 on CUDA, else
            float32); sums are fp32 whatever it is.
        device: auto (CUDA where there is one), or a torch device; more than one GPU shares a model
            that does not fit on one.
        token_budget: tokens of a pack, each prompt counted once.

    Raises:
        EngineError: the model cannot be loaded, or has attention that cannot be reproduced.
        ConfigError: a dtype or budget that cannot be used.
    """

    def __init__(
        self, model: Path, *, dtype: str = "auto", device: str = "auto", token_budget: int = 4096
    ) -> None:
        require_choice("dtype", dtype, DTYPES)
        require(token_budget > 0, "token_budget", token_budget, "a positive number of tokens")
        self.token_budget = token_budget
        cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
        chosen = ("bfloat16" if cuda else "float32") if dtype == "auto" else dtype
        place = ("auto" if torch.cuda.device_count() > 1 else "cuda") if device == "auto" and cuda else device
        try:
            self._model = AutoModelForCausalLM.from_pretrained(
                model,
                dtype=getattr(torch, chosen),
                device_map=None if place in ("auto", "cpu") and not cuda else place,
            )
        except (OSError, ValueError, KeyError) as error:
            raise EngineError(f"cannot load {model} for scoring: {error}") from error
        prepare(self._model).eval()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model's memory."""
        del self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def score(self, groups: Sequence[Group]) -> list[list[float]]:
        """For each group the summed fp32 log-probability of each completion, in nats, in order.

        Raises:
            DataError: an empty prompt or completion.
            EngineError: a sum that is positive or not finite; names the group and completion.
        """
        sums: list[list[float]] = [[0.0] * len(group.completions) for group in groups]
        for members in _packs(groups, self.token_budget):
            packed = [
                Group(groups[number].prompt, [groups[number].completions[c] for c in chosen])
                for number, chosen in members
            ]
            batch = pack(packed).to(self._model.get_input_embeddings().weight.device)
            values = iter(summed_logprobs(self._model, batch).tolist())
            for number, chosen in members:
                for completion in chosen:
                    sums[number][completion] = _checked(next(values), number, completion)
        return sums


def _packs(groups: Sequence[Group], budget: int) -> Iterator[list[tuple[int, list[int]]]]:
    """Packs of ``(group, its completions)``; a group larger than the budget spans several packs."""
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


def _checked(value: float, group: int, completion: int) -> float:
    if value > POSITIVE_SLACK:
        raise EngineError(
            f"completion {completion} of prompt {group} has log-probability {value}, a probability above one"
        )
    return min(value, 0.0)
