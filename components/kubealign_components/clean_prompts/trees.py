"""Message trees: conversations with branches, as OpenAssistant publishes them, flat or nested.

Replies can stand anywhere in any file, before or after what they reply to. Messages go to a temporary
SQLite file as they are read, and the trees are followed there, in bounded memory. Only the text of
roots is kept.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kubealign_components.errors import StoreError
from kubealign_components.sources.values import Malformed, name_of, truth_of

USERS = ("prompter", "user", "human")


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeMessage:
    """One message of a tree."""

    id: str
    parent: str | None
    """Null for the root of a tree."""
    role: str
    text: str
    language: str | None = None
    """As the source says, such as en or pt-BR."""
    deleted: bool = False


@dataclass(kw_only=True, slots=True)
class Root:
    """The root of a tree, and what is known of the tree."""

    source: int
    """Number of the source."""
    row: int
    """Number of its row in the source."""
    message: TreeMessage
    turns: int
    """Messages on the longest path from the root, counted up to the limit that was asked for."""


def read_messages(row: object) -> list[TreeMessage]:
    """The messages of one row: a single message, or a tree with nested ``replies``.

    A nested tree is a message with ``replies``, or an object that has it under ``prompt``. A parent
    stands before its replies.

    Raises:
        Malformed: not_an_object, no_message_id, no_text, bad_replies or bad_parent.
    """
    if not isinstance(row, Mapping):
        raise Malformed("not_an_object")
    root = row.get("prompt") if isinstance(row.get("prompt"), Mapping) else row
    assert isinstance(root, Mapping)
    messages: list[TreeMessage] = []
    waiting = [(root, _parent(root))]
    while waiting:
        value, parent = waiting.pop()
        message = _message(value, parent)
        messages.append(message)
        replies = value.get("replies")
        if replies is None:
            continue
        if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
            raise Malformed("bad_replies")
        waiting += [(reply, message.id) for reply in reversed(replies)]
    return messages


def _parent(value: Mapping[str, object]) -> str | None:
    parent = value.get("parent_id")
    if parent is None or parent == "":
        return None
    if not isinstance(parent, str):
        raise Malformed("bad_parent")
    return parent


def _message(value: Mapping[str, object], parent: str | None) -> TreeMessage:
    name, text = name_of(value.get("message_id")), value.get("text")
    if name is None:
        raise Malformed("no_message_id")
    if not isinstance(text, str):
        raise Malformed("no_text")
    try:
        f"{name}{text}{parent}{value.get('lang')}".encode()
    except UnicodeEncodeError:
        raise Malformed("not_json") from None
    return TreeMessage(
        id=name,
        parent=parent,
        role=str(value.get("role") or "").lower(),
        text=text,
        language=name_of(value.get("lang")),
        deleted=truth_of(value.get("deleted")) is True,
    )


class Trees:
    """The messages of all sources. Use as a context: the file goes when the block ends.

    Raises:
        StoreError: the temporary folder is full or cannot be written.
    """

    def __enter__(self) -> Trees:
        self._folder = tempfile.TemporaryDirectory(prefix="kubealign-trees-")
        self._file = sqlite3.connect(Path(self._folder.name) / "trees.sqlite", isolation_level=None)
        # The file is thrown away in any case: nothing to make safe against a crash.
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-65536"):
            self._file.execute(f"PRAGMA {pragma}")
        self._file.execute(
            "CREATE TABLE messages (source INTEGER, id TEXT, parent TEXT, row INTEGER, body TEXT,"
            " PRIMARY KEY (source, id)) WITHOUT ROWID"
        )
        self._file.execute("BEGIN")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._folder.cleanup()
        if isinstance(error, sqlite3.Error):
            raise StoreError(
                f"cannot keep messages in {self._folder.name}: {error}; "
                "name a folder with as much room as the sources take as JSON in TMPDIR"
            ) from error

    def add(self, source: int, row: int, message: TreeMessage) -> bool:
        """Take in a message; False when the source had one of that id before.

        Of several, the one that comes first by parent and text stays, wherever it stands in the files.
        """
        body = None
        if message.parent is None:
            body = json.dumps([message.role, message.text, message.language, message.deleted])
        done = self._file.execute(
            "INSERT OR IGNORE INTO messages VALUES (?, ?, ?, ?, ?)",
            (source, message.id, message.parent, row, body),
        )
        if done.rowcount == 1:
            return True
        self._file.execute(
            "UPDATE messages SET parent = ?1, row = ?2, body = ?3 WHERE source = ?4 AND id = ?5"
            " AND (ifnull(?1, ''), ifnull(?3, '')) < (ifnull(parent, ''), ifnull(body, ''))",
            (message.parent, row, body, source, message.id),
        )
        return False

    def link(self) -> None:
        """Make replies findable; call it once, after the last :meth:`add`."""
        self._file.execute("COMMIT")
        self._file.execute("CREATE INDEX by_parent ON messages (source, parent)")

    def orphans(self) -> int:
        """Messages that reply to one that is not there."""
        (count,) = self._file.execute(
            "SELECT count(*) FROM messages m WHERE parent IS NOT NULL AND NOT EXISTS"
            " (SELECT 1 FROM messages p WHERE p.source = m.source AND p.id = m.parent)"
        ).fetchone()
        return int(count)

    def roots(self, turns: int) -> Iterator[Root]:
        """Every root, by source and id, with the length of its longest path, counted up to ``turns``."""
        paths = self._file.execute(
            "WITH RECURSIVE path (source, root, id, turns) AS ("
            " SELECT source, id, id, 1 FROM messages WHERE parent IS NULL"
            " UNION SELECT path.source, root, m.id, turns + 1 FROM path"
            " JOIN messages m ON m.source = path.source AND m.parent = path.id WHERE turns < ?)"
            " SELECT r.source, r.row, r.id, r.body, longest.turns FROM messages r JOIN"
            " (SELECT source, root, max(turns) AS turns FROM path GROUP BY source, root) longest"
            " ON r.source = longest.source AND r.id = longest.root ORDER BY r.source, r.id",
            (turns,),
        )
        for source, row, name, body, longest in paths:
            role, text, language, deleted = json.loads(body)
            message = TreeMessage(
                id=name, parent=None, role=role, text=text, language=language, deleted=deleted
            )
            yield Root(source=source, row=row, message=message, turns=longest)
