"""Licences: what may be done with a dataset or model is what everything that went into it allows.

A recipe says under which licence each source is, and cannot be changed unnoticed; that of a model stands with
its origin. Both are gathered from the manifest alone, so that no stage can lose one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kubealign_components.data.front_matter import CARD, CARD_BYTES, front_matter
from kubealign_components.data.hub_licenses import OTHER, name_of_other
from kubealign_components.data.manifest import MANIFEST, Manifest
from kubealign_components.errors import ConfigError, CorruptDataset
from kubealign_components.store import last_part

UNKNOWN = "unknown"
"""Of what does not say its licence: to be taken for one that allows nothing."""
_UNSAID = (UNKNOWN, OTHER)
_IDENTIFIER = re.compile(r"(?!(?:and|or|with)$)[a-z0-9][a-z0-9.+-]*")
_NO_MODELS = ("tokenizer", "template", "principles", "functions")
"""What a step names by a digest among its models, too."""
_AND = re.compile(r"\s+and\s+")


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Licensed:
    """A source or model that went into a dataset or model."""

    kind: str
    """``source``, or what the model was to the step that took it, such as ``policy`` or ``reward model``."""
    name: str
    license: str
    """An identifier, or several joined by AND."""


def parse_license(text: str, field: str = "license") -> tuple[str, ...]:
    """The identifiers of ``text``, several of which are joined by AND, in lower case and ascending.

    Args:
        text: what is stated.
        field: the setting that an error names.

    Raises:
        ConfigError: no identifiers of licences.
    """
    words = _AND.split(text.strip().lower())
    if not all(map(_IDENTIFIER.fullmatch, words)):
        expected = "an SPDX identifier, such as CC-BY-4.0, or several joined by AND"
        raise ConfigError(field, text, expected)
    return tuple(sorted(set(words)))


def joined(licenses: Iterable[str]) -> str:
    """All of ``licenses`` as one text, which :func:`parse_license` reads."""
    return " AND ".join(sorted(set(licenses)))


def united(*texts: str) -> str:
    """All licences of ``texts``, each of which :func:`parse_license` reads, or is empty."""
    return joined(word for text in texts if text for word in parse_license(text))


def license_in_card(card: str | None) -> str:
    """What the text of a README.md says of the licence, :data:`OTHER` of each that is no identifier nor named
    by one; empty where it says nothing."""
    try:
        head = front_matter(card)
    except ConfigError:
        return ""
    said = head.get("license")
    each = said if isinstance(said, list) else [said]
    words = {word for one in each if one for word in _readable(str(one))}
    if OTHER in words and (name := name_of_other(head)):
        words = words - {OTHER} | set(_readable(name))
    return joined(words)


def strictest(stated: str, card: str) -> str:
    """The licence of a source that is stated to be under ``stated`` and whose card says ``card``: both, where
    the card names one, so that nothing that is stated makes it freer."""
    own, said = (parse_license(text) if text else () for text in (stated, card))
    return joined([*own, *(word for word in said if not own or word not in _UNSAID)])


def license_of_model(folder: Path) -> str:
    """The licence of the model in ``folder``, from its card and, of one that was made here, its manifest."""
    card, manifest = folder / CARD, folder / MANIFEST
    said = license_in_card(_beginning(card)) if card.is_file() else ""
    try:
        made_of = licenses(Manifest.from_json(manifest.read_bytes(), str(manifest)))
    except (OSError, CorruptDataset):  # no model of ours
        return said
    return united(*made_of, said)


def licensed(manifest: Manifest) -> list[Licensed]:
    """Every source and model that went into what ``manifest`` describes, each once."""
    each: set[Licensed] = set()
    for step in manifest.recipe.values():
        sources = step["params"].get("sources", ())
        for source in sources if isinstance(sources, list) else ():
            stated = source if isinstance(source, Mapping) else {}
            name = str(stated.get("name", ""))
            each.add(Licensed(kind="source", name=name, license=_checked(stated.get("license"))))
        for role, digest in _models(step["models"]):
            if role not in step["inputs"]:  # of which the recipe has all
                origin = manifest.origin_of(digest)
                name = last_part(str(origin.get("uri", digest[:12])))
                each.add(Licensed(kind=role, name=name, license=_checked(origin.get("license"))))
    return sorted(each)


def licenses(manifest: Manifest) -> list[str]:
    """The licences of all that went into what ``manifest`` describes, ascending; :data:`UNKNOWN` is one."""
    return sorted({word for one in licensed(manifest) for word in parse_license(one.license)})


def _models(models: Mapping[str, object], within: str = "") -> Iterator[tuple[str, str]]:
    """Role and digest of each model that a step used; a ``model`` within ``reward`` is ``reward model``."""
    for name, identity in models.items():
        if isinstance(identity, Mapping) and name not in _NO_MODELS:
            role = f"{within} {name}".lstrip()
            if isinstance(digest := identity.get("digest"), str):
                yield role, digest
            yield from _models(identity, role)


def _checked(stated: object) -> str:
    """What a manifest, which anybody may have written, says of a licence."""
    try:
        return joined(parse_license(str(stated))) if stated else UNKNOWN
    except ConfigError:
        return UNKNOWN


def _readable(text: str) -> Iterator[str]:
    for word in _AND.split(text.strip().lower()):
        yield word if _IDENTIFIER.fullmatch(word) else OTHER


def _beginning(card: Path) -> str:
    with card.open(encoding="utf-8", errors="replace") as file:
        return file.read(CARD_BYTES)
