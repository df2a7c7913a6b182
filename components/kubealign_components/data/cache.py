"""The folder for everything that is fetched or found out once."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

CACHE = "KUBEALIGN_CACHE"
"""Environment variable: where that folder is."""


def cache_folder() -> Path:
    """Where such files are kept: ``KUBEALIGN_CACHE``, else ``~/.cache/kubealign``."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "kubealign")


def kept_text(kind: str, key: str) -> str | None:
    """What :func:`keep_text` kept, None where it kept nothing or nothing can be read."""
    try:
        return (cache_folder() / kind / key).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def keep_text(kind: str, key: str, text: str) -> None:
    """Keep ``text``, whole or not at all. A cache that cannot be written saves nothing, and does no harm.

    Args:
        kind: of such texts, the folder in the cache.
        key: a digest of all that the text depends on.
        text: what was found out.
    """
    folder = cache_folder() / kind
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".", dir=folder)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            Path(name).replace(folder / key)
        finally:
            Path(name).unlink(missing_ok=True)  # there still where it could not be written or moved
