"""Objects that are named by what they hold, so that damage shows when one is taken."""

from __future__ import annotations

import hashlib
import logging

from kubealign_components.errors import KubeAlignError, NotFound
from kubealign_components.store import beside, join, last_part, store_for

log = logging.getLogger(__name__)

NAME_DIGITS = 32
"""Hex digits of a SHA-256 that make up a name: 128 bits."""
DAMAGED = "damaged"
"""The folder of what was set aside."""


class DamagedObject(Exception):
    """The bytes at ``uri`` are not those that its name stands for, or are gone."""

    def __init__(self, uri: str, why: str) -> None:
        super().__init__(f"{uri} {why}")
        self.uri = uri
        self.why = why


def content_name(content: bytes) -> str:
    """What an object with ``content`` is called."""
    return hashlib.sha256(content).hexdigest()[:NAME_DIGITS]


def name_in(uri: str) -> str:
    """The content's name in ``uri``: the last digits before the suffix."""
    return last_part(uri).partition(".")[0][-NAME_DIGITS:]


def read_named(uri: str) -> bytes:
    """The object at ``uri``, whose name ends with that of its content.

    Raises:
        DamagedObject: it holds something else.
        NotFound: it is not there.
    """
    content = store_for(uri).read(uri)
    check_named(uri, content_name(content), len(content))
    return content


def check_named(uri: str, name: str, size: int) -> None:
    """Raise :class:`DamagedObject` unless ``name``, that of ``size`` bytes, is the one in ``uri``."""
    if name != name_in(uri):
        raise DamagedObject(uri, f"is damaged: its {size} bytes are not those that its name stands for")


def publish_named(uri: str, content: bytes) -> None:
    """Publish ``content`` under ``uri``; what stands there already must be the same, or is set aside."""
    store = store_for(uri)
    while not store.publish(uri, content):
        try:
            if store.read(uri) == content:
                return
        except NotFound:
            continue
        set_aside(DamagedObject(uri, "is damaged: it is not what was published under its name"))


def set_aside(damage: DamagedObject, target: str = "") -> None:
    """Move a damaged object to ``target``, or into the folder :data:`DAMAGED` beside its own, and say so."""
    folder, _, name = damage.uri.rpartition("/")
    target = target or join(beside(folder, DAMAGED), name)
    log.warning("%s; it is set aside as %s, and made again from what is good", damage, target)
    store = store_for(damage.uri)
    try:
        store.copy(damage.uri, target)
    except KubeAlignError as error:  # a copy would have helped to find out what happened, no more
        log.warning("no copy of %s is kept: %s", damage.uri, error)
    store.delete(damage.uri)
