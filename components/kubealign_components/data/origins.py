"""Where the things that a step names by digest were found, and what it ran with.

A recipe says what determines the rows, and no place is in it. Who wants to make them again needs the
places too: a manifest keeps them beside the recipe, for its own step and for every one before it.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from kubealign_components import __version__
from kubealign_components.json_types import JsonObject

Origin = JsonObject
"""``places``: URI, and revision where there is one, by digest; ``versions``: of what it ran with, by name."""

_LIBRARIES = ("torch", "transformers", "vllm", "peft", "pyarrow")
_FOUND: dict[str, dict[str, str]] = {}
"""What this process found, by digest."""


def found(digest: str, uri: str, revision: str = "") -> None:
    """Remember that what has ``digest`` lies at ``uri``."""
    _FOUND[digest] = {"uri": uri} | ({"revision": revision} if revision else {})


def origin_of(step: Mapping[str, object]) -> Origin:
    """Where what ``step`` names was found by this process, and the versions of what it runs with."""
    named = {text: _FOUND[text] for text in _texts(step) if text in _FOUND}
    return {"places": named, "versions": _versions()}


def version_of(library: str) -> str | None:
    """Version of an installed library, whichever distribution it came in; None where there is none."""
    for distribution in (library, f"{library}-cpu"):  # vLLM for CPUs has a name of its own
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def _versions() -> dict[str, str]:
    found_here = {name: version_of(name) for name in _LIBRARIES}
    versions = {"kubealign": __version__, "python": platform.python_version()}
    return versions | {name: text for name, text in found_here.items() if text is not None}


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for member in value.values():
            yield from _texts(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _texts(member)
