"""What the dead have left in a work prefix: halves of objects, uploads, buckets of no pack, and damage.

Whoever is alive may be writing the very same kinds of things, and nothing but their age tells the two apart.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

from kubealign_components.data.named_objects import DAMAGED, name_in
from kubealign_components.data.slice_index import BUCKETS, PACKS, pack_of
from kubealign_components.errors import KubeAlignError
from kubealign_components.store import Leftover, ObjectInfo, store_for

log = logging.getLogger(__name__)

ABANDONED = 2 * 24 * 3600.0
"""Seconds after which nobody goes on with what has been begun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stale:
    """Something of a work prefix that may go."""

    uri: str
    size: int
    """Bytes."""
    reason: str
    half: Leftover | None = None
    """What the store calls it where it is no whole object."""

    def remove(self) -> None:
        """Let it go."""
        store = store_for(self.uri)
        if self.half is None:
            store.delete(self.uri)
        else:
            store.discard(self.half)


def stale(work: str, *, older: float = ABANDONED) -> Iterator[Stale]:
    """What may go of the work prefix ``work`` and was not written in the last ``older`` seconds.

    Raises:
        StoreError: the prefix cannot be listed.
    """
    before = time.time() - older
    yield from _halves(work, before)
    heads: set[str] = set()
    buckets: list[ObjectInfo] = []
    for entry in store_for(work).list(work):
        folder = entry.uri.rsplit("/", 2)[1]
        if folder == PACKS:
            heads.add(name_in(entry.uri))
        elif entry.written > before:
            continue
        elif folder == BUCKETS:
            buckets.append(entry)
        elif folder == DAMAGED:
            yield Stale(uri=entry.uri, size=entry.size, reason="it was damaged, and set aside")
    for entry in buckets:
        if pack_of(entry.uri) not in heads:
            yield Stale(uri=entry.uri, size=entry.size, reason="of a pack that was never finished")


def collect(work: str) -> int:
    """Remove what was begun in the work prefix ``work`` and is abandoned; gives how much that was.

    A run that starts calls it. It is no reason to fail that a store does not let go of it.
    """
    count = 0
    try:
        for half in _halves(work, time.time() - ABANDONED):
            half.remove()
            count += 1
    except KubeAlignError as error:
        log.warning("what killed processes have left in %s stays there: %s", work, error)
    if count:
        log.info("removed %d objects that killed processes had begun in %s", count, work)
    return count


def _halves(work: str, before: float) -> Iterator[Stale]:
    for half in store_for(work).leftovers(work):
        if half.since <= before:
            yield Stale(uri=half.uri, size=half.size, reason="begun by a process that was killed", half=half)
