"""Where rows wait until all sources are read: a sorted file, so that memory stays bounded.

Duplicates of a prompt, or of a pair, can be anywhere in any source. Rows go to a temporary SQLite
file as they are read; an index over (key, source, row) then brings the rows of one key together, and
only those are in memory at a time. The index sorts 60 bytes a row, not the rows.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType

from kubealign_components.errors import StoreError

Entry = tuple[str, int, int, str]
"""Key (a content hash), number of the source, number of the row in it, and the row as JSON text."""


class Spool:
    """Rows by key, such as the prompt id. Use as a context: the file goes when the block ends.

    Raises:
        StoreError: the temporary folder is full or cannot be written.
    """

    def __enter__(self) -> Spool:
        self._folder = tempfile.TemporaryDirectory(prefix="kubealign-spool-")
        self._rows = sqlite3.connect(Path(self._folder.name) / "rows.sqlite", isolation_level=None)
        # The file is thrown away in any case: nothing to make safe against a crash.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-65536"):
            self._rows.execute(f"PRAGMA {pragma}")
        self._rows.execute("CREATE TABLE rows (key TEXT, source INTEGER, row INTEGER, body TEXT)")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.close()
        self._folder.cleanup()
        if isinstance(error, sqlite3.Error):
            raise StoreError(
                f"cannot keep the rows read in {self._folder.name}: {error}; "
                "name a folder with as much room as the sources take as JSON in TMPDIR"
            ) from error

    def add(self, entries: Iterable[Entry]) -> None:
        """Take in entries as they come."""
        self._rows.execute("BEGIN")
        self._rows.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", entries)
        self._rows.execute("COMMIT")

    def forget(self, source: int) -> None:
        """Let go of all entries of a source."""
        self._rows.execute("DELETE FROM rows WHERE source = ?", (source,))

    def sort(self) -> None:
        """Bring the rows of one key together; call it once, after the last :meth:`add`."""
        self._rows.execute("CREATE INDEX by_key ON rows (key, source, row)")

    def keys(self) -> Iterator[tuple[str, int]]:
        """Every key once, in order, with the first source that has it."""
        yield from self._rows.execute(
            "SELECT key, min(source) FROM rows INDEXED BY by_key GROUP BY key ORDER BY key"
        )

    def groups(self) -> Iterator[tuple[str, list[tuple[int, str]]]]:
        """Every key, in the order of :meth:`keys`, with (source, row as JSON), by source and then by what
        the row says: neither the order of a source's files nor of its rows can be seen in it."""
        rows = self._rows.execute(
            "SELECT key, source, body FROM rows INDEXED BY by_key ORDER BY key, source, row"
        )
        for key, group in groupby(rows, key=lambda row: str(row[0])):
            yield key, sorted((source, body) for _, source, body in group)
