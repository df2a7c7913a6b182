"""A chat template that is loaded when it is first needed: what identifies it is kept from before.

Loading a tokenizer brings in transformers and torch, seconds in which a stage that then finds its output
finished would do nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from kubealign_components.data.cache import keep_text, kept_text
from kubealign_components.data.chat.ends import checked, ids_of_files
from kubealign_components.data.chat.policy import ChatTemplate
from kubealign_components.data.chat.settings import TemplateSettings
from kubealign_components.data.fingerprint import canonical_json, digest, file_digest
from kubealign_components.data.model_files import CONFIG, GENERATION_CONFIG
from kubealign_components.data.models import ModelFiles
from kubealign_components.data.origins import version_of
from kubealign_components.errors import EngineError

KIND = "templates"
"""Folder of the cache."""
_LIBRARIES = (
    "transformers",
    "tokenizers",
    "jinja2",
    "sentencepiece",
    "protobuf",
    "tiktoken",
    "mistral-common",
)
"""What a tokenizer and its template are read with."""
_BESIDE = ("model_files.py", "models.py")
"""What a model's files are read by, the ends that they name among them; beside the package of templates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateFacts:
    """What is kept of a template that could be used."""

    fingerprint: str
    """See :attr:`ChatTemplate.fingerprint`."""
    end_ids: tuple[int, ...]
    """See :attr:`ChatTemplate.end_ids`; empty where nothing ends a turn."""


class DeferredTemplate:
    """A model's chat template, not yet loaded.

    Args:
        model: the model whose tokenizer is used.
        settings: of the template.
    """

    def __init__(self, model: ModelFiles, settings: TemplateSettings | None = None) -> None:
        self.model = model
        self.settings = settings or TemplateSettings()

    @cached_property
    def loaded(self) -> ChatTemplate:
        """The template itself.

        Raises:
            ConfigError, EngineError: see :class:`ChatTemplate`.
        """
        return ChatTemplate(self.model, self.settings)

    @property
    def identity(self) -> dict[str, str]:
        """As :attr:`ChatTemplate.identity`.

        Raises:
            ConfigError, EngineError: see :class:`ChatTemplate`.
        """
        return {
            "policy": self.model.identity()["digest"],
            "tokenizer": self.model.tokenizer_digest(),
            "template": self._facts.fingerprint,
        }

    @property
    def end_ids(self) -> tuple[int, ...]:
        """As :attr:`ChatTemplate.end_ids`.

        Raises:
            ConfigError, EngineError: see there.
        """
        return self._facts.end_ids or self.loaded.end_ids

    @cached_property
    def _facts(self) -> TemplateFacts:
        key = digest(
            {
                "tokenizer": self.model.tokenizer_digest(),
                "configs": [_digest_of(self.model.path / name) for name in (CONFIG, GENERATION_CONFIG)],
                "settings": self.settings.params(),
                "made_by": _made_by(),
            }
        )
        facts = _facts_in(kept_text(KIND, key))
        if facts is None:
            facts = _facts_of(self.loaded)
            content = {"fingerprint": facts.fingerprint, "end_ids": list(facts.end_ids)}
            keep_text(KIND, key, canonical_json(content))
        return facts


def end_token_ids(model: Path, settings: TemplateSettings | None = None) -> tuple[int, ...]:
    """Ids of the tokens that end a turn, ascending: those of the generation config, the tokenizer's, and the
    one that the chat template writes after an answer.

    Raises:
        EngineError: none is named.
    """
    try:
        return DeferredTemplate(ModelFiles(name=model.name, path=model), settings).end_ids
    except EngineError:
        return checked(ids_of_files(model), model)


def _facts_of(template: ChatTemplate) -> TemplateFacts:
    try:
        ends = template.end_ids
    except EngineError:
        ends = ()
    return TemplateFacts(fingerprint=template.fingerprint, end_ids=ends)


def _facts_in(text: str | None) -> TemplateFacts | None:
    """The facts that were kept as ``text``; None where it says none."""
    try:
        content = json.loads(text or "")
        return TemplateFacts(
            fingerprint=str(content["fingerprint"]), end_ids=tuple(int(token) for token in content["end_ids"])
        )
    except (ValueError, TypeError, KeyError):
        return None


def _digest_of(path: Path) -> str:
    return file_digest(path) if path.is_file() else ""


@cache
def _made_by() -> dict[str, object]:
    """What decides the facts of given files: the libraries, and the code of this package."""
    own = Path(__file__).parent
    paths = [*own.glob("*.py"), *(own.parent / name for name in _BESIDE)]
    code = {str(path.relative_to(own.parent)): file_digest(path) for path in sorted(paths)}
    return {"libraries": {name: version_of(name) for name in _LIBRARIES}, "code": code}
