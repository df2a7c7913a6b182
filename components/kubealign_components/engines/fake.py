"""Engines without a model: deterministic, instant, with outputs of the right shape.

They show a pipeline's wiring, chunking and reuse on a machine that can run nothing, and stand in for
the real ones in tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kubealign_components.data.model_files import text_config
from kubealign_components.data.seeds import generator_for
from kubealign_components.engines.generation import (
    GenerationEngine,
    Prompt,
    Sampled,
    SamplingSpec,
    check_room,
    context_limit,
    end_token_ids,
    numbers_of,
)
from kubealign_components.errors import EngineError


class FakeEngine(GenerationEngine):
    """Random tokens of the model's vocabulary, fixed by the run's seed, the prompt and the number.

    Lengths are geometric with a third of ``max_new_tokens`` as mean: about 1 completion in 20 is cut.

    Args:
        spec: the settings.
        model: a Hugging Face model directory; only its configuration and tokenizer are read.
        ends: the tokens that end a turn; None for those of the model's own template.

    Raises:
        EngineError: the configuration names no vocabulary size or no end-of-turn token.
    """

    def __init__(self, spec: SamplingSpec, model: Path, ends: Sequence[int] | None = None) -> None:
        self._spec = spec
        self._limit = context_limit(spec, model)
        ends = ends or end_token_ids(model)
        self._end = ends[0]
        self._words = np.setdiff1d(np.arange(_vocabulary_size(model)), list(ends))

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[tuple[str, list[Sampled]]]:
        """See :class:`GenerationEngine`."""
        for prompt in prompts:
            check_room(prompt.prompt_id, len(prompt.token_ids), self._spec.max_new_tokens, self._limit)
            yield (
                prompt.prompt_id,
                [self._sample(prompt.prompt_id, i) for i in numbers_of(prompt, self._spec)],
            )

    def close(self) -> None:
        """See :class:`GenerationEngine`."""

    def _sample(self, prompt_id: str, number: int) -> Sampled:
        random = generator_for(self._spec.seed, prompt_id, number)
        most = self._spec.max_new_tokens
        length = int(random.geometric(min(1.0, 3 / most)))
        token_ids = [int(token) for token in random.choice(self._words, min(length, most))]
        if length <= most:
            token_ids[-1] = self._end
        logprob = -float(random.exponential(1.5, len(token_ids)).sum())
        return Sampled(token_ids, "stop" if length <= most else "length", logprob)


def _vocabulary_size(model: Path) -> int:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    size = text_config(config).get("vocab_size")
    if not size:
        raise EngineError(f"{model}/config.json names no vocab_size")
    return int(size)
