"""Where the things that a step names by digest were found, and what it ran with.

A recipe says what determines the rows, and no place is in it. Who wants to make them again needs the
places too: a manifest keeps them beside the recipe, for its own step and for every one before it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from kubealign_components import __version__
from kubealign_components.images import IMAGE_VARIABLE
from kubealign_components.json_types import JsonObject
from kubealign_components.pod_use import pod_use

Origin = JsonObject
"""``places``: URI, and revision where there is one, by digest; ``versions``: of what it ran with, by name;
``use``: hours of its pods and their cost, where prices were known (:mod:`kubealign_components.pod_use`)."""
USE_OF_PODS = "use"

_LIBRARIES = ("torch", "transformers", "vllm", "peft", "pyarrow")
_ORIGINS: dict[str, dict[str, str]] = {}
"""What this process found, by digest."""


def note_origin(digest: str, uri: str, revision: str = "", *, license: str = "") -> None:
    """Remember that what has ``digest`` lies at ``uri``, and under which licence it is."""
    facts = {"revision": revision, "license": license}
    _ORIGINS[digest] = {"uri": uri} | {name: text for name, text in facts.items() if text}


def origin_of(digests: Iterable[str]) -> Origin:
    """Where this process found what has one of ``digests``, and what it runs with."""
    origins = {digest: _ORIGINS[digest] for digest in digests if digest in _ORIGINS}
    return {"places": origins, "versions": _versions()}


def with_use(origins: Mapping[str, Origin], fingerprint: str) -> dict[str, Origin]:
    """``origins`` with what the step ``fingerprint`` took, up to now, unless they say it already."""
    own, use = origins.get(fingerprint), pod_use()
    if own is None or USE_OF_PODS in own or not use:
        return dict(origins)
    return {**origins, fingerprint: {**own, USE_OF_PODS: use}}


@cache  # a distribution's whole description is parsed for it
def version_of(library: str) -> str | None:
    """Version of an installed library, whichever distribution it came in; None where there is none."""
    for distribution in (library, f"{library}-cpu"):  # vLLM for CPUs has a name of its own
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def _versions() -> dict[str, str]:
    libraries = {name: version_of(name) for name in _LIBRARIES}
    versions = {"kubealign": __version__, "python": platform.python_version()}
    if image := os.environ.get(IMAGE_VARIABLE):
        versions["image"] = image
    return versions | {name: text for name, text in libraries.items() if text is not None}
