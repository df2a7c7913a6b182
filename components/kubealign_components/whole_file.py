"""Files that stand whole or not at all: a full disk or a kill leaves what was there before."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kubealign_components.store.base import TEMPORARY


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write in the place of ``path``, which it replaces when the block ends well.

    What is no regular file, such as a pipe, is written to as it is.

    Args:
        path: file to write; its folder is there. A link is followed.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        yield target
        return
    part = target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        yield part
        part.replace(target)
    except OSError as error:
        if error.filename == str(part) or error.filename is None:
            error.filename = str(path)  # whoever reads it knows of no other
        raise
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
