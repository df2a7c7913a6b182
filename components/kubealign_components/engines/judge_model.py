"""Judging: which of two responses a policy finds better by a principle, without generating anything.

The policy is asked for a letter, and what counts is how much likelier it finds one than the other as
its next token (SALMON, arXiv 2310.05910, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

from kubealign_components.data.chat import ChatTemplate, TemplateSettings
from kubealign_components.data.models import ModelFiles
from kubealign_components.data.templates import JudgeTemplate
from kubealign_components.engines.comparison import LABELS, Comparison
from kubealign_components.engines.head import Head
from kubealign_components.engines.last_token import LastTokens, Tokens
from kubealign_components.engines.loading import context_length, free_memory
from kubealign_components.engines.scoring import load_for_inference
from kubealign_components.errors import EngineError


class Judge:
    """A policy that judges; use as a context to free its memory.

    Args:
        files: the policy; its chat template puts the question.
        template: the question.
        settings: of the policy's chat template.
        adapter: a PEFT adapter of the policy, put on its layers and not merged.
        quantise: load linear layers in 4 bits (nf4).
        dtype: of weights and activations, as the scorer's; the two logits are fp32 in any case.
        token_budget: most tokens in one forward pass; what questions share counts once.
        max_length: most tokens of a question; 0 for what the model was made for.

    Raises:
        ConfigError: 4 bits without a CUDA device, or an adapter that is not the policy's.
        EngineError: the model cannot be loaded, or its tokenizer does not write the two letters as one
            token each after the answer's beginning.
    """

    def __init__(
        self,
        files: ModelFiles,
        template: JudgeTemplate,
        *,
        settings: TemplateSettings | None = None,
        adapter: ModelFiles | None = None,
        quantise: bool = False,
        dtype: str = "auto",
        token_budget: int = 8192,
        max_length: int = 0,
    ) -> None:
        self._chat = ChatTemplate(files, settings)
        self._template = template
        self._labels = self._label_ids()
        self._model = load_for_inference(
            files.path, dtype, adapter=adapter.path if adapter else None, quantise=quantise
        )
        self.max_length = max_length or context_length(self._model.config, self._chat.tokenizer)
        head = Head(self._model)
        self._reader = LastTokens(
            self._model,
            self._model.get_decoder(),
            lambda hidden_KH: head.only(self._labels, hidden_KH),
            name=files.name,
            token_budget=token_budget,
            longest=self.max_length,
        )

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model's memory."""
        del self._model, self._reader
        free_memory()

    def tokenise(self, comparison: Comparison) -> Tokens:
        """The question, up to where the letter comes next."""
        return self._up_to_letter(comparison.question(self._template), LABELS[0])[0]

    def preferences(self, questions: Sequence[Tokens]) -> list[float]:
        """For each question log p(a) - log p(b), in nats: above zero where the first response is preferred.

        Raises:
            EngineError: a value that is not finite, or the device is out of memory.
        """
        logits = self._reader.read(questions)
        values = [logits[ids][0] - logits[ids][1] for ids in questions]
        for ids, value in zip(questions, values):
            if value != value or abs(value) == float("inf"):
                raise EngineError(
                    f"a question of {len(ids)} tokens has preference {value}; the model is broken, or try "
                    "dtype=float32"
                )
        return values

    def _up_to_letter(self, question: str, letter: str) -> tuple[Tokens, int]:
        """Tokens of the question and the answer's beginning, and the token that holds ``letter``."""
        *context, label = self._chat.answer_ids(
            [{"role": "user", "content": question}], f"{self._template.answer}{letter}"
        )
        return tuple(context), label

    def _label_ids(self) -> tuple[int, int]:
        (context_a, a), (context_b, b) = (self._up_to_letter("?", letter) for letter in LABELS)
        if context_a != context_b or a == b:
            raise EngineError(
                f"after {self._template.answer!r} the tokenizer of {self._chat.model.name} does not write a "
                "and b as one token each; end the template's answer in another way"
            )
        return a, b
