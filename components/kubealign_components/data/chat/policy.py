"""From chat messages to the token ids of a policy, once: everything after works on the ids.

For every row the ids of the prompt followed by those of a completion are the ids of the whole
conversation, as the template gives it, up to the end of the answer's turn.
"""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kubealign_components.data.chat.ends import (
    checked,
    embedding_rows,
    ids_of_files,
    next_answer,
    template_end,
)
from kubealign_components.data.chat.reasoning import empty_block, opens_block, with_block
from kubealign_components.data.chat.rendering import (
    ANSWER,
    ANSWERED,
    ASKED,
    REMEDY,
    USER,
    Message,
    Renderer,
    TemplateMismatch,
    Tools,
    without_reasoning,
)
from kubealign_components.data.chat.settings import TemplateSettings
from kubealign_components.data.chat.tokenizer import load_tokenizer, one_bos, unknown_tokens
from kubealign_components.data.fingerprint import digest
from kubealign_components.data.models import ModelFiles
from kubealign_components.errors import EngineError
from kubealign_components.json_types import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_REASONING = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
_REASONING_MEMBERS = ("reasoning_content", "reasoning", "thinking")
"""Under which names templates read an answer's reasoning."""


@dataclass(frozen=True, slots=True)
class RenderedCompletion:
    """A prompt's end and what the template writes after it, from a token on that nothing crosses."""

    prompt: str
    whole: str


class ChatTemplate:
    """A model's tokenizer and chat template.

    Args:
        model: the model whose tokenizer is used.
        settings: of the template.
        tokenizer: the model's, where it is loaded already or read in another way.

    Raises:
        ConfigError: a setting for a variable that the template does not have.
        EngineError: no tokenizer, no chat template, or one that cannot be used.
    """

    def __init__(
        self, model: ModelFiles, settings: TemplateSettings | None = None, tokenizer: Any = None
    ) -> None:
        self.model = model
        self.settings = settings or TemplateSettings()
        self.tokenizer: PreTrainedTokenizerBase = tokenizer or load_tokenizer(model.path)
        if not (self.tokenizer.chat_template or self.settings.text):
            raise EngineError(f"the tokenizer of {model.name} has no chat template; {REMEDY}")
        self._renderer = Renderer(self.tokenizer, model.name, self.settings)
        rows = embedding_rows(model.path)
        if problem := unknown_tokens(self.tokenizer, rows, model.name, self._renderer.source):
            log.warning("%s", problem)
        self._check_generation_prompt()
        self._blank: dict[tuple[int, ...], bool] = {}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the template's text, and of the settings where they change what it writes."""
        template = self.settings.text or self.tokenizer.chat_template
        text = template if isinstance(template, str) else repr(sorted(template.items()))
        given: JsonObject = {"kwargs": dict(self.settings.kwargs)} if self.settings.kwargs else {}
        given |= {"date": self.settings.date} if self._renderer.dated else {}
        return digest({"template": text} | given) if given else hashlib.sha256(text.encode()).hexdigest()

    @property
    def identity(self) -> dict[str, str]:
        """What token ids belong to: digests of policy, tokenizer and template."""
        return {
            "policy": self.model.identity()["digest"],
            "tokenizer": self.model.tokenizer_digest(),
            "template": self.fingerprint,
        }

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a turn, ascending, see :func:`end_token_ids`.

        Raises:
            EngineError: there are none.
        """
        written = template_end(self.tokenizer, self._after_answer)
        return checked(ids_of_files(self.model.path) | written, self.model.path)

    @property
    def unnamed_ends(self) -> list[str]:
        """Tokens with which the template ends turns, and which neither the model's configs nor its tokenizer
        call an end: sampling stops there, and so does training, but what serves the model would not."""
        written = template_end(self.tokenizer, self._after_answer) - ids_of_files(self.model.path)
        return [str(self.tokenizer.convert_ids_to_tokens(token)) for token in sorted(written)]

    @cached_property
    def lacks_bos(self) -> bool:
        """Whether the tokenizer begins plain texts with BOS and the template begins chats without."""
        bos = self.tokenizer.bos_token_id
        plain: list[int] = self.tokenizer("a")["input_ids"]
        return bos is not None and plain[:1] == [bos] != self.prompt_ids([USER])[:1]

    @property
    def lost_bos(self) -> str:
        """What is wrong, and what to do, where the template :attr:`lacks_bos`; empty where it does not.

        A model that saw BOS before every text may find its own answers unlikely without.
        """
        if not self.lacks_bos:
            return ""
        bos = self.tokenizer.convert_ids_to_tokens(self.tokenizer.bos_token_id)
        return (
            f"the tokenizer of {self.model.name} begins every text with {bos}, its chat template begins "
            "chats without. A model that was trained with it answers far worse without: then name a file as "
            "chat_template in filter_options that holds {{ bos_token }} and the template's own text after it"
        )

    def prompt_text(self, messages: Sequence[Message], tools: Tools = None) -> str:
        """The rendered prompt, generation prompt included, for :meth:`encode_prompts`.

        Raises:
            TemplateMismatch: the template refuses the messages, or does not show what they say.
        """
        text = self._renderer.render(messages, tools, generation_prompt=True)
        if name := self._renderer.hidden_tool(tools, text):
            raise TemplateMismatch(
                "template_hides_tools", f"the template of {self.model.name} does not show the tool {name!r}"
            )
        history = [_as_history(message) for message in messages]
        if missing := self._renderer.missing(history, text):
            raise TemplateMismatch(
                "template_hides_text",
                f"the template of {self.model.name} does not show a message's {missing}",
            )
        return text

    def prompt_ids(self, messages: Sequence[Message], tools: Tools = None) -> list[int]:
        """Token ids of the prompt, generation prompt included, with at most one leading BOS."""
        return self.encode_prompts([self.prompt_text(messages, tools)])[0]

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered prompts, each with at most one leading BOS."""
        encoded = self._renderer.marks.encode(texts)
        return [one_bos(ids, self.tokenizer.bos_token_id) for ids in encoded]

    def answer_ids(self, messages: Sequence[Message], beginning: str) -> list[int]:
        """Token ids of the prompt and of the ``beginning`` of its answer, the turn left open."""
        return self.encode_prompts([self.prompt_text(messages) + beginning])[0]

    def completion_ids(
        self, messages: Sequence[Message], completion: Sequence[Message], tools: Tools = None
    ) -> list[int]:
        """Token ids of what follows the prompt, up to and including the end of the turn.

        Raises:
            TemplateMismatch: see :meth:`completion_text` and :meth:`encode_completions`.
        """
        prompt = self.prompt_text(messages, tools)
        [ids] = self.encode_completions([self.completion_text(prompt, messages, completion, tools)])
        if isinstance(ids, TemplateMismatch):
            raise ids
        return ids

    def completion_text(
        self, prompt: str, messages: Sequence[Message], completion: Sequence[Message], tools: Tools = None
    ) -> RenderedCompletion:
        """What follows the rendered ``prompt`` of ``messages``, for :meth:`encode_completions`.

        Raises:
            TemplateMismatch: the template refuses the conversation, renders it otherwise than its prompt,
                or does not show all that the completion says; the reason names what it hides.
        """
        first: TemplateMismatch | None = None
        said = [_said(message) for message in completion]
        for variant in self._variants(completion):
            try:
                return self._completion_text(prompt, [*messages, *variant], said, tools)
            except TemplateMismatch as error:
                first = first or error
        assert first is not None
        raise first

    def encode_completions(
        self, completions: Sequence[RenderedCompletion]
    ) -> list[list[int] | TemplateMismatch]:
        """Token ids of completions, each with one end token, its last; or why there are none."""
        texts = [text for c in completions for text in (c.prompt, c.whole)]
        encoded = self._renderer.marks.encode(texts)
        return [
            self._cut(completion, prompt, whole)
            for completion, prompt, whole in zip(completions, encoded[::2], encoded[1::2], strict=True)
        ]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion as it was written: special tokens too, but for the end of its turn."""
        ids = list(token_ids)
        if ids and ids[-1] in self.end_ids:
            ids.pop()
        return self._text(ids)

    def spelled(self, text: str) -> str:
        """A rendered text as people read it."""
        return self._renderer.marks.spelled(text)

    def _text(self, ids: list[int]) -> str:
        slow = {} if self.tokenizer.is_fast else {"spaces_between_special_tokens": False}
        exact = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(ids, **exact, **slow))

    def says(self, ids: list[int], text: str) -> bool:
        """Whether tokens say what a rendered ``text`` says, whitespace and compatible characters aside.

        They do not where the tokenizer lacks characters, or writes others than it reads (lower case).
        """
        said, meant = self._text(ids), self.spelled(text)
        return said == meant or _comparable(said) == _comparable(meant)

    def _completion_text(
        self, prompt: str, conversation: Sequence[Message], said: Sequence[Message], tools: Tools
    ) -> RenderedCompletion:
        whole = self._renderer.render(conversation, tools).removesuffix(self._opened)
        if not whole.startswith(prompt):
            whole = with_block(prompt, whole, self._empty_block)
        if not whole.startswith(prompt):
            opened = opens_block(prompt)
            raise TemplateMismatch(
                "prompt_opens_reasoning" if opened else "template_mismatch",
                "the template renders the conversation differently from its prompt",
            )
        if missing := self._renderer.missing(said, whole[len(prompt) :]):
            raise TemplateMismatch(
                f"{missing}_not_shown", f"the template does not show the {missing} of a completion"
            )
        if not self._writes_end:
            whole = whole.removesuffix(self._after_answer)
        start = self._last_mark(prompt)
        return RenderedCompletion(prompt[start:], whole[start:])

    def _variants(self, completion: Sequence[Message]) -> Iterator[list[Message]]:
        """The completion, then other ways to write its reasoning that the template has a place for."""
        yield list(completion)
        *before, last = completion
        match = _REASONING.match(last.get("content") or "")
        thought = last.get("reasoning_content") or (match[1] if match else "")
        if not thought:
            return
        content = match[2] if match and "reasoning_content" not in last else last.get("content") or ""
        bare = {k: v for k, v in last.items() if k != "reasoning_content"} | {"content": content}
        for name in _REASONING_MEMBERS:
            if re.search(rf"\b{name}\b", self._renderer.source):
                yield [*before, bare | {name: thought}]
        if "</think>" in self._renderer.source:
            yield [*before, bare | {"content": f"<think>\n{thought.strip()}\n</think>\n\n{content.lstrip()}"}]

    def _cut(
        self, completion: RenderedCompletion, prompt: list[int], whole: list[int]
    ) -> list[int] | TemplateMismatch:
        if whole[: len(prompt)] != prompt:
            return TemplateMismatch(
                "crosses_token", "a token begins in the prompt and ends in the completion"
            )
        ids = whole[len(prompt) :]
        end = next((i for i, token in enumerate(ids) if token in self.end_ids), None)
        if not self._says_all(ids if end is None else ids[: end + 1], completion):
            return TemplateMismatch("lost_in_tokens", "its tokens do not say what the completion says")
        if end is None and self._writes_end and ids and self._is_special(ids[-1]):
            return TemplateMismatch(
                "ends_otherwise", "its turn ends with a token that the model's files do not call an end"
            )
        if end is None:
            return [*ids, self._end]
        after = tuple(ids[end + 1 :])
        if after not in self._blank:
            # A newline that the tokenizer has no token for is unknown to it, and says nothing either.
            nothing = {*self.end_ids, self.tokenizer.unk_token_id}
            self._blank[after] = not self._text([t for t in after if t not in nothing]).strip()
        if not self._blank[after]:
            return TemplateMismatch("several_turns", "the completion goes on after the end of a turn")
        return ids[: end + 1]

    def _says_all(self, ids: list[int], completion: RenderedCompletion) -> bool:
        """Whether the ids of a completion, its end with them, say all of its text up to there."""
        text = completion.whole[len(completion.prompt) :]
        if ids and ids[-1] in self.end_ids:
            said, end, _ = text.partition(str(self.tokenizer.convert_ids_to_tokens(ids[-1])))
            text = said + end
        return self.says(ids, text)

    def _is_special(self, token: int) -> bool:
        added = self.tokenizer.added_tokens_decoder.get(token)
        return added is not None and bool(added.special)

    @property
    def _end(self) -> int:
        """The token that ends a completion under a template that writes none: that which begins the user's
        next turn where it is an end (GLM-4.5's ``<|user|>``), else the end of text."""
        ends = {str(self.tokenizer.convert_ids_to_tokens(end)): end for end in self.end_ids}
        next_turn = self._between_turns.lstrip()
        if mark := max((text for text in ends if next_turn.startswith(text)), key=len, default=""):
            return ends[mark]
        eos = self.tokenizer.eos_token_id
        return int(eos) if eos in self.end_ids else self.end_ids[0]

    @cached_property
    def _writes_end(self) -> bool:
        """Whether the template ends the last answer."""
        after = self._renderer.marks.encode([self._after_answer])[0] if self._after_answer else []
        return not set(self.end_ids).isdisjoint(after)

    @cached_property
    def _after_answer(self) -> str:
        """What the template writes after the last answer, but for the beginning of another."""
        return self._renderer.render([USER, ANSWER]).rpartition(ANSWERED)[2].removesuffix(self._opened)

    @cached_property
    def _between_turns(self) -> str:
        """What the template writes between an answer and the next question; nothing where it takes none."""
        try:
            whole = self._renderer.render([USER, ANSWER, USER])
        except TemplateMismatch:
            return ""
        return whole.partition(ANSWERED)[2].partition(ASKED)[0]

    @cached_property
    def _opened(self) -> str:
        """The beginning of another answer, which some templates write after every chat, asked for or not."""
        prompt = self._renderer.render([USER], generation_prompt=True)
        if prompt != self._renderer.render([USER]):
            return ""
        after = self._renderer.render([USER, ANSWER]).rpartition(ANSWERED)[2]
        marks = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        return next_answer(prompt, after, self._between_turns, marks)

    @cached_property
    def _empty_block(self) -> str:
        """See :func:`empty_block`."""
        prompt = self._renderer.render([USER], generation_prompt=True)
        return empty_block(prompt, self._renderer.render([USER, ANSWER]), ANSWERED)

    @cached_property
    def _safe_marks(self) -> list[str]:
        """Control tokens at which a text can be cut without changing its tokens."""
        if not self.tokenizer.is_fast:
            return []
        probe = self._renderer.render([USER], generation_prompt=True)
        return [
            token.content
            for token in self.tokenizer.added_tokens_decoder.values()
            if token.special
            and not (token.lstrip or token.single_word or token.normalized)
            and token.content in probe
        ]

    def _last_mark(self, prompt: str) -> int:
        return max(0, *(prompt.rfind(mark) for mark in self._safe_marks), 0)

    def _check_generation_prompt(self) -> None:
        """Refuse a template whose prompts do not lead to an answer."""
        try:
            prompt = self.prompt_text([USER])
        except TemplateMismatch as error:
            raise EngineError(
                f"the chat template of {self.model.name} cannot be used: {error}; {REMEDY}"
            ) from error
        if prompt != self._renderer.render([USER]):
            return
        whole = self._renderer.render([USER, ANSWER])
        if not (whole.startswith(prompt) and whole[len(prompt) :].lstrip().startswith(ANSWERED)):
            raise EngineError(
                f"the chat template of {self.model.name} has no generation prompt, so a completion would not "
                "start an assistant turn; copy it to a file, add {% if add_generation_prompt %} there, and "
                "give its path as chat_template"
            )


def _comparable(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def _said(message: Message) -> Message:
    """A message of a completion with its reasoning apart: its first mark may stand in the prompt."""
    content = message.get("content") or ""
    match = _REASONING.match(content)
    if match is None:
        return message | {"content": content.lstrip().removeprefix("<think>")}
    return message | {"content": match[2], "reasoning_content": match[1]}


def _as_history(message: Message) -> Message:
    """What a prompt must show of a message: an answer's reasoning is for the answer alone."""
    if message["role"] != "assistant":
        return message
    shown = {k: v for k, v in message.items() if k != "reasoning_content"}
    return shown | {"content": without_reasoning(message.get("content") or "").strip()}
