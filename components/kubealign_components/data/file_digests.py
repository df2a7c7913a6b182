"""Digests of large files of this machine, kept from one process to the next."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path

from kubealign_components.data.cache import keep_text, kept_text
from kubealign_components.data.fingerprint import digest, file_digest

KIND = "digests"
"""Folder of the cache."""
_LARGE = 2**20
"""Bytes from which a file's digest is worth a file of its own."""
_SETTLED = 60.0
"""Seconds since its last change after which a file that is written again gets another time stamp for
certain: those of network file systems are coarse, and of another machine's clock."""


def kept_digest(path: Path) -> str:
    """SHA-256 of the bytes of ``path``, computed once for as long as the file is the same by path, inode,
    size and the times of its last changes."""
    # What a link points at says nothing of its bytes, even where its name looks like their digest.
    real = path.resolve()
    return _digest(real, _facts(real))


def _facts(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=1024)
def _digest(path: Path, facts: tuple[int, ...]) -> str:
    _, size, modified, changed = facts
    if size < _LARGE or time.time() - max(modified, changed) / 1e9 < _SETTLED:
        return file_digest(path)
    key = digest([str(path), *facts])
    kept = kept_text(KIND, key)
    if kept is not None and len(kept) == 64:
        return kept
    computed = file_digest(path)
    if _facts(path) == facts:
        keep_text(KIND, key, computed)
    return computed
