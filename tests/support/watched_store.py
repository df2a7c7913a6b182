"""A local store that tells what it was asked for, and lets a test act between two requests."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from kubealign_components.store import faulty, register
from kubealign_components.store.base import ObjectInfo


class WatchedStore(faulty.FaultyStore):
    """Requests are counted by what they do and the folder of the object: ``("read", "commits")``."""

    def __init__(self) -> None:
        super().__init__({})
        self.asked: Counter[tuple[str, str]] = Counter()
        self.bytes_read = 0
        self.before: Callable[[str, str], object] = lambda _what, _uri: None
        """Called with every request before it is served."""
        self._counting = threading.Lock()
        register(faulty.SCHEME, lambda: self)

    def times(self, what: str, *folders: str) -> int:
        """How often ``what`` was asked for, in ``folders`` or anywhere."""
        asked = self.asked.items()
        return sum(n for (name, at), n in asked if name == what and (not folders or at in folders))

    def read(self, uri: str) -> bytes:
        self._ask("read", uri)
        content = super().read(uri)
        with self._counting:
            self.bytes_read += len(content)
        return content

    def publish(self, uri: str, data: bytes) -> bool:
        self._ask("publish", uri)
        return super().publish(uri, data)

    def publish_file(self, path: Path, uri: str) -> bool:
        self._ask("publish", uri)
        return super().publish_file(path, uri)

    def fetch(self, uri: str, directory: Path) -> Path:
        self._ask("fetch", uri)
        return super().fetch(uri, directory)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._ask("list", f"{prefix}/")
        yield from super().list(prefix)

    def delete(self, uri: str) -> None:
        self._ask("delete", uri)
        super().delete(uri)

    def _ask(self, what: str, uri: str) -> None:
        with self._counting:
            self.asked[what, uri.rsplit("/", 2)[1]] += 1
        self.before(what, uri)
