"""Which language a text is in, by py3langid: offline, 139 languages, its model in the package."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

MIN_CONFIDENCE = 0.8
"""Below it, in short texts above all, the language counts as unknown."""
MAX_CHARACTERS = 2000
"""A longer text says no more of its language."""


def identify_language(text: str, min_confidence: float = MIN_CONFIDENCE) -> str | None:
    """ISO 639-1 code of the language of ``text``; None when it is not clear.

    Args:
        text: of any length; its beginning is read.
        min_confidence: least probability of the language among all that are known.
    """
    code, confidence = _identifier().classify(text[:MAX_CHARACTERS])
    return str(code) if confidence >= min_confidence else None


def identifier_version() -> str:
    """What a recipe says of the identifier."""
    return f"py3langid {version('py3langid')}"


@cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
