"""Settings of a chat template: what beside the model decides how a chat is rendered."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

from kubealign_components.config import require
from kubealign_components.data.fingerprint import canonical_json, digest
from kubealign_components.data.origins import note_origin
from kubealign_components.errors import ConfigError, NotFound
from kubealign_components.json_types import JsonObject
from kubealign_components.store import store_for

if TYPE_CHECKING:
    from kubealign_components.data.dataset import Dataset

DATE = "2024-07-26"
"""The date that templates write as today's, unless a setting says otherwise: the one that the template of
Llama 3.2 falls back to."""
RESERVED = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "strftime_now", "raise_exception"}
)
"""Names that a template gets from KubeAlign."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateConfig:
    """Settings of a stage that renders chats with a template of its own choice."""

    chat_template: str | None = None
    """Path or URI of a file with a chat template (Jinja), used instead of the model's own."""
    chat_template_kwargs: dict[str, object] = field(default_factory=dict)
    """Values for the template's own variables by name, such as ``enable_thinking: false``."""
    chat_template_date: str = DATE
    """The date, as YYYY-MM-DD, that a template which writes today's date is given on every day."""

    def check_template(self) -> None:
        """Raise :class:`ConfigError` for values that no template can be given."""
        for name in sorted(RESERVED & self.chat_template_kwargs.keys()):
            expected = "nothing: KubeAlign gives it to the template"
            require(False, f"chat_template_kwargs.{name}", self.chat_template_kwargs[name], expected)
        try:
            canonical_json(self.chat_template_kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                "chat_template_kwargs", self.chat_template_kwargs, "values that JSON can hold"
            ) from error
        try:
            date.fromisoformat(self.chat_template_date)
        except ValueError as error:
            raise ConfigError(
                "chat_template_date", self.chat_template_date, "a date as YYYY-MM-DD"
            ) from error

    def template_settings(self) -> TemplateSettings:
        """The settings with the template's text.

        Raises:
            ConfigError: no such file, or not a text.
        """
        return TemplateSettings(
            text=None if self.chat_template is None else _read(self.chat_template),
            kwargs=self.chat_template_kwargs,
            date=self.chat_template_date,
        )


TEMPLATE_FIELDS = ("chat_template", "chat_template_kwargs", "chat_template_date")
"""The settings of :class:`TemplateConfig`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateSettings:
    """The same with the text of the template, as recipes keep it."""

    text: str | None = None
    """Of a template that replaces the model's own."""
    kwargs: Mapping[str, object] = field(default_factory=dict)
    """Values for its variables."""
    date: str = DATE
    """Today, as YYYY-MM-DD."""

    def params(self) -> JsonObject:
        """What a recipe says of them, under the names of the settings."""
        return dict(zip(TEMPLATE_FIELDS, (self.text, dict(self.kwargs), self.date), strict=True))

    def named(self) -> dict[str, object]:
        """What a model's manifest says of the template that the model was trained under and saved with."""
        own = {} if self.text is None else {"sha256": hashlib.sha256(self.text.encode()).hexdigest()}
        kwargs = {"kwargs": dict(self.kwargs)} if self.kwargs else {}
        return {"of": "policy" if self.text is None else "setting", **own, **kwargs}


def stored_settings(dataset: Dataset) -> TemplateSettings:
    """The settings that the token ids of ``dataset`` were made with, from its recipe."""
    for step in dataset.manifest.recipe.values():
        if step["stage"] == "filter" and TEMPLATE_FIELDS[2] in step["params"]:
            text, kwargs, today = (step["params"][name] for name in TEMPLATE_FIELDS)
            return TemplateSettings(text=text, kwargs=kwargs, date=today)
    return TemplateSettings()


def _read(file: str) -> str:
    try:
        text = store_for(file).read(file).decode()
    except NotFound as error:
        raise ConfigError("chat_template", file, "a file with a chat template (Jinja)") from error
    except UnicodeDecodeError as error:
        raise ConfigError("chat_template", file, f"a text in UTF-8 ({error})") from error
    require(bool(text.strip()), "chat_template", file, "a file with a chat template, not an empty one")
    note_origin(digest(text), file)
    return text
