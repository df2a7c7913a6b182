"""Prompt templates in files of their own: what a model is told, checked and versioned.

A template is a YAML file, shipped or the user's own, with Jinja texts::

    schema: kubealign.judge-template/v1
    name: judge
    version: 1
    user: |             # the question, with messages, first, second, principle.name and principle.text
      …
    answer: "I prefer ("    # what the answer starts with; a letter, a or b, continues it
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from kubealign_components.config import require
from kubealign_components.data.fingerprint import digest
from kubealign_components.data.shipped import read_shipped
from kubealign_components.errors import ConfigError

JUDGE_SCHEMA = "kubealign.judge-template/v1"
SHIPPED = ("judge",)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeTemplate:
    """How a policy is asked which of two responses is better."""

    name: str
    version: int
    user: str
    """Jinja text of the user turn."""
    answer: str
    """Beginning of the assistant turn. The letter of the better response, a or b, is its next token."""

    def question(
        self, messages: Sequence[Mapping[str, Any]], first: str, second: str, **principle: str
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
        from jinja2 import TemplateError

        try:
            return str(
                _compiled(self.user).render(
                    messages=messages, first=first, second=second, principle=principle
                )
            )
        except TemplateError as error:
            raise ConfigError(f"template {self.name!r}: user", self.user, f"a Jinja text: {error}") from error

    def identity(self) -> dict[str, Any]:
        """What a recipe says of the template."""
        return {"name": self.name, "version": self.version, "digest": digest(asdict(self))}


def load_judge_template(place: str) -> JudgeTemplate:
    """The template at ``place``: a shipped name, a path, or a ``gs://`` or ``s3://`` URI.

    Raises:
        ConfigError: nothing there, or a file that breaks the format; names the file and the field.
    """
    found = read_shipped(place, parameter="template", kind="template", folder="templates", names=SHIPPED)
    return _parse(*found)


def _parse(content: bytes, file: str) -> JudgeTemplate:
    try:
        body = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(file, "…", f"YAML: {error}") from error
    expected = ("schema", "name", "version", "user", "answer")
    require(
        isinstance(body, Mapping) and set(body) == set(expected), file, body, f"exactly {', '.join(expected)}"
    )
    require(body["schema"] == JUDGE_SCHEMA, f"{file}: schema", body["schema"], repr(JUDGE_SCHEMA))
    version = body["version"]
    require(type(version) is int and version > 0, f"{file}: version", version, "a positive whole number")
    for name in ("name", "user", "answer"):
        require(isinstance(body[name], str) and body[name], f"{file}: {name}", body[name], "text")
    template = JudgeTemplate(**{name: body[name] for name in expected[1:]})
    asked = template.question([{"role": "user", "content": "<m>"}], "<1>", "<2>", name="<n>", text="<t>")
    for part in ("<m>", "<1>", "<2>", "<t>"):
        require(part in asked, f"{file}: user", body["user"], "messages, first, second and principle.text")
    return template


@functools.cache
def _compiled(text: str) -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
        text
    )
