"""Prompt templates in files of their own: what a model is told, checked and versioned.

A template is a YAML file, shipped or the user's own, with Jinja texts. How a policy is asked to judge::

    schema: kubealign.judge-template/v1
    name: judge
    version: 1
    user: |             # the question, with messages, first, second, principle.name and principle.text
      …
    answer: "I prefer ("    # what the answer starts with; a letter, a or b, continues it

What a reward model reads::

    schema: kubealign.reward-template/v1
    name: reward
    version: 1
    text: |             # with messages, and principles of a name and a text each, possibly none
      …
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from kubealign_components.config import require
from kubealign_components.data.fingerprint import canonical_json, digest
from kubealign_components.data.origins import note_origin
from kubealign_components.data.packaged import parse_document, read_shipped
from kubealign_components.errors import ConfigError
from kubealign_components.json_types import JsonObject

if TYPE_CHECKING:
    import jinja2

JUDGE_SCHEMA = "kubealign.judge-template/v1"
REWARD_SCHEMA = "kubealign.reward-template/v1"
JUDGE_TEMPLATES = ("judge",)
REWARD_TEMPLATES = ("reward",)

Shown = Mapping[str, str]
"""A principle as a model is shown it: its name and its text, the positive or the negative statement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """What all templates have."""

    name: str
    version: int
    """Raised by its author whenever the text changes."""

    def identity(self) -> JsonObject:
        """What a recipe says of the template."""
        return {"name": self.name, "version": self.version, "digest": digest(asdict(self))}

    def _render(self, field: str, *, trim: bool = False, **values: object) -> str:
        """The Jinja text of ``field`` with ``values``.

        Raises:
            ConfigError: the text uses something that is not there.
        """
        from jinja2 import TemplateError

        text = getattr(self, field)
        try:
            return str(_compiled(text, trim).render(values))
        except (TemplateError, TypeError) as error:
            raise ConfigError(f"template {self.name!r}: {field}", text, f"a Jinja text: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeTemplate(Template):
    """How a policy is asked which of two responses is better."""

    user: str
    """Jinja text of the user turn."""
    answer: str
    """Beginning of the assistant turn. The letter of the better response, a or b, is its next token."""

    def question(
        self, messages: Sequence[Mapping[str, object]], first: str, second: str, **principle: str
    ) -> str:
        """The user turn.

        Args:
            messages: the conversation that is responded to.
            first: the response that is shown as (a).
            second: the response that is shown as (b).
            principle: its name and text.

        Raises:
            ConfigError: the template uses something that is not there.
        """
        return self._render("user", messages=messages, first=first, second=second, principle=principle)


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardTemplate(Template):
    """What a reward model reads: a conversation, then the principles that its last turn is scored by."""

    text: str
    """Jinja text, with the whitespace rules of chat templates (``trim_blocks`` and ``lstrip_blocks``)."""

    def conversation(self, messages: Sequence[Mapping[str, object]], principles: Sequence[Shown]) -> str:
        """What the reward model reads of a conversation.

        Args:
            messages: plain turns with role and content; the last one is scored.
            principles: possibly none.

        Raises:
            ConfigError: the template uses something that is not there.
        """
        return self._render("text", trim=True, messages=messages, principles=principles)

    def chat_template(self, default_principles: Sequence[Shown], *, beginning: str = "") -> str:
        """The chat template to save with a reward model: Jinja over ``messages`` and ``principles``.

        Args:
            default_principles: shown when the caller of the template passes no ``principles`` at all.
            beginning: plain text before everything, such as a tokenizer's BOS.
        """
        defaults = canonical_json([{"name": p["name"], "text": p["text"]} for p in default_principles])
        start = canonical_json(beginning)
        unless = "{%- if principles is not defined or principles is none -%}"
        # An expression, even an empty one, keeps the text's first blanks from being trimmed.
        return f"{unless}{{%- set principles = {defaults} -%}}{{%- endif -%}}{{{{ {start} }}}}{self.text}"


def load_judge_template(source: str) -> JudgeTemplate:
    """The template at ``source``: a shipped name, a path, or a ``gs://`` or ``s3://`` URI.

    Raises:
        ConfigError: nothing there, or a file that breaks the format; names the file and the field.
    """
    values, file = _load(source, JUDGE_SCHEMA, JUDGE_TEMPLATES, ("user", "answer"))
    template = JudgeTemplate(**values)
    asked = template.question([{"role": "user", "content": "<m>"}], "<1>", "<2>", name="<n>", text="<t>")
    for part in ("<m>", "<1>", "<2>", "<t>"):
        require(part in asked, f"{file}: user", template.user, "messages, first, second and principle.text")
    note_origin(digest(asdict(template)), source)
    return template


def load_reward_template(source: str) -> RewardTemplate:
    """The template at ``source``: a shipped name, a path, or a ``gs://`` or ``s3://`` URI.

    Raises:
        ConfigError: nothing there, or a file that breaks the format; names the file and the field.
    """
    values, file = _load(source, REWARD_SCHEMA, REWARD_TEMPLATES, ("text",))
    template = RewardTemplate(**values)
    turns = [{"role": "user", "content": "<m>"}, {"role": "assistant", "content": "<c>"}]
    read = template.conversation(turns, [{"name": "<n>", "text": "<t>"}])
    offsets = [read.find(part) for part in ("<m>", "<c>", "<t>")]
    # Principles come last, so that several draws of them share the conversation's tokens.
    in_order = -1 not in offsets and sorted(offsets) == offsets
    require(in_order, f"{file}: text", template.text, "messages, and after them the text of each principle")
    require(bool(template.conversation(turns, [])), f"{file}: text", template.text, "text without principles")
    note_origin(digest(asdict(template)), source)
    return template


def _load(
    source: str, schema: str, shipped: tuple[str, ...], texts: tuple[str, ...]
) -> tuple[JsonObject, str]:
    """The checked members of the template at ``source``, and what errors call the file."""
    content, file = read_shipped(
        source, parameter="template", kind="template", folder="templates", names=shipped
    )
    body = parse_document(content, file, schema=schema, members=texts)
    for name in texts:
        require(isinstance(body[name], str) and body[name], f"{file}: {name}", body[name], "text")
    return {name: body[name] for name in ("name", "version", *texts)}, file


@functools.cache
def _compiled(text: str, trim: bool) -> jinja2.Template:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=not trim, trim_blocks=trim, lstrip_blocks=trim
    )
    return environment.from_string(text)
