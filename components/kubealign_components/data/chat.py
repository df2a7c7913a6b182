"""From chat messages to token ids, once: everything after works on the ids."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from kubealign_components.data.models import ModelFiles
from kubealign_components.errors import DataError, EngineError

Message = dict[str, Any]


class TemplateMismatch(DataError):
    """The template renders the conversation in a way that does not start with the rendered prompt."""


class ChatTemplate:
    """A model's tokenizer and chat template.

    Args:
        model: the model whose tokenizer is used.

    Raises:
        EngineError: no tokenizer, no chat template, or a template without generation prompt.
    """

    def __init__(self, model: ModelFiles) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model.path)
        except (OSError, ValueError) as error:
            raise EngineError(f"cannot load the tokenizer of {model.path}: {error}") from error
        if not self.tokenizer.chat_template:
            raise EngineError(
                f"the tokenizer of {model.name} has no chat template; "
                f"save one as chat_template in {model.path}"
            )
        self.model = model
        self._check_generation_prompt()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the template's text."""
        template = self.tokenizer.chat_template
        text = template if isinstance(template, str) else repr(sorted(template.items()))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def identity(self) -> dict[str, str]:
        """What token ids belong to: digests of policy, tokenizer and template."""
        return {
            "policy": self.model.identity()["digest"],
            "tokenizer": self.model.tokenizer_digest(),
            "template": self.fingerprint,
        }

    def prompt_text(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """The rendered prompt, generation prompt included."""
        return self._render(messages, tools, generation_prompt=True)

    def prompt_ids(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Token ids of the prompt, generation prompt included, with at most one leading BOS."""
        return self._encode(self.prompt_text(messages, tools))

    def answer_ids(self, messages: Sequence[Message], beginning: str) -> list[int]:
        """Token ids of the prompt and of the ``beginning`` of its answer, the turn left open."""
        return self._encode(self.prompt_text(messages) + beginning)

    def completion_ids(
        self,
        messages: Sequence[Message],
        completion: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Token ids of what follows the prompt, up to and including the end of the last turn.

        What a template writes after the last end-of-turn token (ChatML: a newline) is left off, so
        that offline completions end as sampled ones do.

        Raises:
            TemplateMismatch: the rendered conversation does not start with the rendered prompt.
        """
        prompt = self.prompt_text(messages, tools)
        whole = self._render([*messages, *completion], tools, generation_prompt=False)
        if not whole.startswith(prompt):
            raise TemplateMismatch("the template renders the conversation differently from its prompt")
        ids: list[int] = self.tokenizer.encode(whole[len(prompt) :], add_special_tokens=False)
        end = self.tokenizer.eos_token_id
        if end in ids:
            ids = ids[: len(ids) - ids[::-1].index(end)]
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ``token_ids`` without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _render(self, messages: Sequence[Message], tools: Any, *, generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tools=tools, tokenize=False, add_generation_prompt=generation_prompt
                )
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise TemplateMismatch(
                f"the template of {self.model.name} refuses the conversation: {error}"
            ) from error

    def _encode(self, text: str) -> list[int]:
        # Most templates write BOS themselves; the tokenizer must not add a second one.
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        bos = self.tokenizer.bos_token_id
        while bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        return ids

    def _check_generation_prompt(self) -> None:
        probe = [{"role": "user", "content": "?"}]
        if self._render(probe, None, generation_prompt=True) == self._render(
            probe, None, generation_prompt=False
        ):
            raise EngineError(
                f"the chat template of {self.model.name} has no generation prompt, so a completion would not "
                "start an assistant turn; add {% if add_generation_prompt %} to the template"
            )
