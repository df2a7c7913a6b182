"""From messages to the text that a template makes of them, in the form that the template wants."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

from kubealign_components.data.chat.marks import Marks, ReservedCharacter
from kubealign_components.data.chat.sandbox import SandboxedTemplate, TemplateRefused
from kubealign_components.data.chat.settings import RESERVED, TemplateSettings
from kubealign_components.errors import ConfigError, DataError, EngineError
from kubealign_components.json_types import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = JsonObject
Tools = Sequence[JsonObject] | None

ASKED, ANSWERED, TOLD = "kubealignasks", "kubealignanswers", "kubealigntells"
"""What the user, the assistant and the system say when a template is tried."""
USER: Message = {"role": "user", "content": ASKED}
ANSWER: Message = {"role": "assistant", "content": ANSWERED}
SYSTEM: Message = {"role": "system", "content": TOLD}
_CALL: Message = {
    "id": "kubealign",  # nine letters, as Mistral's templates ask for
    "type": "function",
    "function": {"name": "kubealignfunction", "arguments": {"kubealignkey": "kubealignvalue"}},
}


class TemplateMismatch(DataError):
    """The template does not render a conversation, or not as it must.

    Args:
        reason: the name that it is counted under.
        message: what is wrong.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How a template wants its messages."""

    needs_system: bool
    """It renders no chat without a system turn: an empty one is put before it."""
    parts: bool
    """Content is a list of parts, not a text."""
    answer_parts: bool
    """The same for what the assistant says."""


class Renderer:
    """Renders chats under a tokenizer's template.

    Args:
        tokenizer: with its chat template.
        name: what errors call the model.
        settings: of the template.
        values: further values that it is given.

    Raises:
        ConfigError: a setting for a variable that the template does not have.
        EngineError: the template cannot be used; says why and what to do.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        settings: TemplateSettings | None = None,
    ) -> None:
        self.tokenizer, self.name = tokenizer, name
        self._settings = settings or TemplateSettings()
        self._templates: dict[str, SandboxedTemplate] = {}
        self._values = {**tokenizer.special_tokens_map, **self._settings.kwargs}
        self._check_kwargs()
        self.form = self._find_form()
        self._shows_system = self._try_system()
        self._fold = fold_system if self._shows_system else self._find_fold()
        self.marks = Marks(tokenizer, *_control_tokens(tokenizer, self._frames(), self.source))

    @property
    def source(self) -> str:
        """The template's text."""
        return self._template(None).text

    @property
    def dated(self) -> bool:
        """Whether what it writes depends on the date that it is given."""
        return self._template(None).dated

    def render(
        self,
        messages: Sequence[Message],
        tools: Tools = None,
        *,
        generation_prompt: bool = False,
        **values: object,
    ) -> str:
        """The text of a chat, with what messages spell of control tokens under private names.

        Raises:
            TemplateMismatch: the template refuses it, or a text cannot be told from private names.
        """
        try:
            shown = [self._shown(message) for message in self._turns(messages)]
            hidden_values = {name: self.marks.hidden(value) for name, value in values.items()}
            hidden_tools = self.marks.hidden(list(tools)) if tools else None
        except ReservedCharacter:
            raise TemplateMismatch("reserved_character", "a text holds the character U+10FFFD") from None
        return self._raw(shown, hidden_tools, generation_prompt=generation_prompt, **hidden_values)

    def missing(self, messages: Sequence[Message], text: str) -> str:
        """The part of ``messages`` that ``text`` does not show: content, reasoning, tool_calls or nothing."""
        for message in messages:
            answer = message["role"] == "assistant"
            content = self.marks.hidden(message.get("content") or "", answer=answer)
            if not shows(text, content):
                return "reasoning" if shows(text, without_reasoning(content)) else "content"
            thought = self.marks.hidden(message.get("reasoning_content") or "", answer=answer)
            if not shows(text, thought):
                return "reasoning"
            calls = self.marks.hidden(message.get("tool_calls") or [], answer=answer)
            if not all(shows(text, leaf) for call in calls for leaf in _call_texts(call)):
                return "tool_calls"
        return ""

    def hidden_tool(self, tools: Tools, text: str) -> str:
        """The name of a tool that ``text`` does not show; empty when it shows all."""
        names = [tool["function"]["name"] for tool in tools or ()]
        return next((name for name in names if not shows(text, self.marks.hidden(name))), "")

    def _template(self, tools: Tools) -> SandboxedTemplate:
        text = self._settings.text or self._own_text(tools)
        if text not in self._templates:
            try:
                self._templates[text] = SandboxedTemplate(text, date.fromisoformat(self._settings.date))
            except TemplateRefused as error:
                raise EngineError(
                    f"the chat template of {self.name} is no Jinja text: {error}; {REMEDY}"
                ) from error
        return self._templates[text]

    def _own_text(self, tools: Tools) -> str:
        try:
            return str(self.tokenizer.get_chat_template(None, list(tools) if tools else None))
        except ValueError as error:  # several templates, none of them the default
            raise EngineError(f"{self.name} has no chat template by default: {error}; {REMEDY}") from error

    def _check_kwargs(self) -> None:
        variables = self._template(None).variables
        for name, value in self._settings.kwargs.items():
            if name not in variables:
                own = sorted(variables - RESERVED - self.tokenizer.special_tokens_map.keys())
                raise ConfigError(
                    f"chat_template_kwargs.{name}",
                    value,
                    f"a variable of the chat template of {self.name}, which reads {', '.join(own) or 'none'}",
                )

    def _raw(self, messages: list[Message], tools: Tools = None, **values: object) -> str:
        given = {"add_generation_prompt": values.pop("generation_prompt", False), "documents": None}
        try:
            return self._template(tools).render(
                {"messages": messages, "tools": tools, **given, **self._values, **values}
            )
        except TemplateRefused as error:
            roles = " ".join(message["role"] for message in messages)
            raise TemplateMismatch(
                "template_refused", f"the chat template of {self.name} refuses turns of {roles}: {error}"
            ) from error

    def _find_form(self) -> Form:
        """The first form in which the template shows what user and assistant say."""
        reason = "it shows no text of the messages, neither of plain contents nor of lists of parts"
        for needs_system, parts, answer_parts in product((False, True), repeat=3):
            form = Form(needs_system=needs_system, parts=parts, answer_parts=answer_parts)
            chat = [*([SYSTEM] if needs_system else []), USER, ANSWER]
            try:
                text = self._raw([in_form(m, form) for m in chat])
            except TemplateMismatch as error:
                if not (needs_system or parts or answer_parts):
                    reason = str(error)
                if isinstance(error.__cause__, TemplateRefused) and error.__cause__.unsafe:
                    break
                continue
            if ASKED in text and ANSWERED in text and not _as_code(text):
                return form
        raise EngineError(f"the chat template of {self.name} cannot be used: {reason}; {REMEDY}")

    def _try_system(self) -> bool:
        try:
            return TOLD in self._raw([in_form(m, self.form) for m in (SYSTEM, USER, ANSWER)])
        except TemplateMismatch:
            return False

    def _find_fold(self) -> Callable[[Sequence[Message]], list[Message]]:
        """Where system turns go: to the turn before which the template puts them in a prompt, though not in a
        whole conversation (Mistral's do so in the last user turn), else to the first."""
        chat = [SYSTEM, USER, ANSWER, USER | {"content": f"{ASKED} again"}]
        for fold in (fold_system, fold_into_last):
            try:
                own, folded = (
                    self._raw([in_form(m, self.form) for m in turns], generation_prompt=True)
                    for turns in (chat, fold(chat))
                )
            except TemplateMismatch:
                return fold_system
            if own == folded:
                return fold
        return fold_system

    def _frames(self) -> list[str]:
        """What the template writes around a system turn, a question, an answer and the next question."""
        frames = []
        for chat in ([USER, ANSWER], [SYSTEM, USER, ANSWER], [SYSTEM, USER], [USER, ANSWER, USER]):
            asks = chat[-1] is USER
            try:
                turns = [in_form(m, self.form) for m in self._turns(chat)]
                frames.append(self._raw(turns, generation_prompt=asks))
            except TemplateMismatch:
                continue
        return frames

    def _turns(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with the system turns that the template wants."""
        if not self._shows_system_of(messages):
            return self._fold(messages)
        if self.form.needs_system and (not messages or messages[0]["role"] != "system"):
            return [{"role": "system", "content": ""}, *messages]
        return list(messages)

    def _shows_system_of(self, messages: Sequence[Message]) -> bool:
        return self._shows_system or all(message["role"] != "system" for message in messages)

    def _shown(self, message: Message) -> Message:
        """The message as the template is given it."""
        hidden: Message = self.marks.hidden(message, answer=message["role"] == "assistant")
        if hidden.get("tool_calls"):
            change = json_text if self._text_arguments else _parsed
            hidden = hidden | {"tool_calls": [change(call) for call in hidden["tool_calls"]]}
        return in_form(hidden, self.form)

    @cached_property
    def _text_arguments(self) -> bool:
        """Whether the template wants the arguments of a call as JSON text, not as an object."""
        for change in (_parsed, json_text):
            call = {"role": "assistant", "content": "", "tool_calls": [change(_CALL)]}
            try:
                text = self._raw([in_form(m, self.form) for m in (*self._turns([USER]), call)])
            except TemplateMismatch:
                continue
            if "kubealignvalue" in text and not _as_code(text):
                return change is json_text
        return False


REMEDY = "give the path of a file with another template as chat_template"


def in_form(message: Message, form: Form) -> Message:
    """``message`` with its content as the template wants it."""
    parts = form.answer_parts if message["role"] == "assistant" else form.parts
    content = message.get("content")
    if not parts or not isinstance(content, str):
        return message
    return message | {"content": [{"type": "text", "text": content}]}


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """The chat with its system turns put before the text of the next turn."""
    folded: list[Message] = []
    pending = ""
    for message in messages:
        if message["role"] == "system":
            pending += f"{message['content']}\n\n"
        else:
            folded.append(
                message | {"content": pending + (message.get("content") or "")} if pending else message
            )
            pending = ""
    return folded


def fold_into_last(messages: Sequence[Message]) -> list[Message]:
    """The chat with its system turns put before the text of the last user turn."""
    system_turns = [message for message in messages if message["role"] == "system"]
    rest = [message for message in messages if message["role"] != "system"]
    last = max((i for i, message in enumerate(rest) if message["role"] == "user"), default=0)
    return [*rest[:last], *fold_system([*system_turns, *rest[last:]])]


def shows(text: str, part: str) -> bool:
    """Whether ``text`` holds ``part``, as it is or escaped in JSON, whitespace aside."""
    if part in text:
        return True
    squashed = "".join(text.split())
    forms = (part, json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1])
    return any("".join(form.split()) in squashed for form in forms)


def without_reasoning(content: str) -> str:
    """What an answer says after its reasoning."""
    return content.rpartition("</think>")[2]


def json_text(call: Message) -> Message:
    """A tool call with its arguments as JSON text, that of the source where there is one."""
    arguments = call["function"].get("arguments")
    if isinstance(arguments, str):
        return call
    text = json.dumps(arguments or {}, ensure_ascii=False)
    return call | {"function": call["function"] | {"arguments": text}}


def _parsed(call: Message) -> Message:
    """A tool call with its arguments as an object where they are the JSON text of one."""
    arguments = call["function"].get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return call
    return call | {"function": call["function"] | {"arguments": parsed}}


def _arguments(call: Message) -> object:
    return _parsed(call)["function"].get("arguments")


def _call_texts(call: Message) -> Iterator[str]:
    """What must be shown of a tool call: its arguments, or its name where it has none."""
    leaves = list(_leaves(_arguments(call)))
    yield from leaves or [call["function"]["name"]]


def _as_code(text: str) -> bool:
    """Whether a probe is shown as Python would print it, or as a text within a text of JSON."""
    code = ("'kubealignkey'", '\\"kubealignkey\\"', "'type': 'text'", '"type": "text"')
    return any(sign in text for sign in code)


def _leaves(value: object) -> Iterator[str]:
    """The texts and numbers in ``value`` as JSON writes them, names of members among them."""
    if isinstance(value, Mapping):
        for key, member in value.items():
            yield str(key)
            yield from _leaves(member)
    elif isinstance(value, list):
        for member in value:
            yield from _leaves(member)
    elif isinstance(value, str):
        yield value
    elif value is not None and not isinstance(value, bool | float):
        yield json.dumps(value)


def _control_tokens(
    tokenizer: PreTrainedTokenizerBase, frames: Sequence[str], source: str
) -> tuple[set[str], set[str]]:
    """Texts of the tokens that no message may write, and those of them that an answer may.

    Control tokens are those that the tokenizer calls special, and those that the template frames turns
    with. An answer may write marks of its parts (``<think>``, ``<tool_call>``) where the template knows
    them: its text names them and it does not frame turns with them.
    """
    added = {str(t.content): bool(t.special) for t in tokenizer.added_tokens_decoder.values()}
    named = {text for text in tokenizer.special_tokens_map.values() if isinstance(text, str)}
    marks = {text for text in (*added, *named) if text.strip() and not text.isalnum()}
    frame = {text for text in marks if any(text in written for written in frames)}
    parts = set(_answer_parts(frames, added))
    control = {text for text in marks if added.get(text) or text in named} | (frame - parts)
    return control, {text for text in control - (frame - parts) - named if text in source}


def _answer_parts(frames: Sequence[str], added: Collection[str]) -> Iterator[str]:
    """Pairs of marks (``<x>`` and ``</x>``) that the template writes where an answer begins, nowhere else."""
    begins = re.compile(rf"(?<={ASKED}).*?(?={ANSWERED}|$)", re.DOTALL)
    first = re.compile(rf"\A.*?(?={TOLD}|{ASKED})", re.DOTALL)
    # What a template tells the model of its own accord may name such marks; they frame nothing there.
    around = [begins.sub("", first.sub("", written, count=1)) for written in frames]
    for text in added:
        pair = {f"<{text.strip('</>')}>", f"</{text.strip('</>')}>"}
        if text in pair and pair <= set(added) and not any(m in written for m in pair for written in around):
            yield text
