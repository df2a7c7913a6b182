"""Which slices of a folder hold results of which rows.

A worker that has published a slice *commits* it: a small record with the slice's name and its rows.
``merge`` joins the records of many workers and runs into *packs*: the rows in order of their hash, cut into
buckets, and a head that names them. So a worker reads, beside the packs' heads, the buckets that its rows
fall into and the records that were made since; records of other chunks of its own plan, which share no row
with it, it skips.

Nothing is ever overwritten, and every object is named by what it holds. A record is deleted when a pack with
its rows has been published, not before; a reader lists records before packs, and packs until no new one has
come, so it misses no row whatever is joined meanwhile. What a damaged record or pack knew stands in the
slices themselves, and is entered again from them.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kubealign_components.data.named_objects import (
    DamagedObject,
    content_name,
    name_in,
    publish_named,
    read_named,
    set_aside,
)
from kubealign_components.errors import CorruptDataset, NotFound
from kubealign_components.store import join, last_part, store_for

log = logging.getLogger(__name__)

ROW_ID = "row_id"
"""Column of a slice: the prompt id of the row that a result is of."""
BUCKET_ROWS = 16384
"""Rows of a bucket, about: 320 KB."""
ABSORBED = 4
"""A pack that holds up to this many times the rows that are joined is joined with them: what is written over
the years is a few times what is new, and packs stay few."""
READERS = 16
"""Objects that are read at once."""
HEALINGS = 5
"""Times that damage is mended before the storage is given up."""

PACKS, BUCKETS = "packs", "buckets"
"""Folders of the heads and of what they name."""

_TOKEN = 16
_LINE = _TOKEN + 4  # bytes of a row in a bucket: its token, and the number of its slice

Tokens = NDArray[np.uint64]
"""Of shape (rows, 2): the halves of each token, the high one first."""


@dataclass(frozen=True, slots=True)
class Pack:
    """The head of a pack."""

    uri: str
    rows: int
    slices: tuple[str, ...]
    """Names of slices, which the buckets refer to by number."""
    buckets: tuple[str, ...]
    """Names of the buckets, in order of the tokens in them; empty where there are none."""

    def bucket_uri(self, number: int) -> str:
        """Where bucket ``number`` lies."""
        return join(self.uri.rsplit("/", 2)[0], BUCKETS, f"{name_in(self.uri)}-{self.buckets[number]}.bin")

    def bucket_uris(self) -> list[str]:
        """Where all buckets lie."""
        return [self.bucket_uri(n) for n, name in enumerate(self.buckets) if name]

    @classmethod
    def parse(cls, uri: str, content: bytes) -> Pack:
        """From the bytes of a head."""
        head = json.loads(content)
        return cls(uri, head["rows"], tuple(head["slices"]), tuple(head["buckets"]))


@dataclass(slots=True)
class _Scan:
    """What a pass over the index gave."""

    slices: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Names of slices by row."""
    damaged: list[DamagedObject] = field(default_factory=list)


class SliceIndex:
    """The index in the folder ``uri``.

    Args:
        uri: folder of the slices' stage and settings.
        plan: names a cut of a dataset into chunks; empty for a worker of no chunk.
        chunk: number of the chunk that commits and looks.
    """

    def __init__(self, uri: str, plan: str = "", chunk: int = 0) -> None:
        self._uri = uri
        self._plan = plan or "0" * 16
        self._chunk = chunk

    def find(self, rows: Iterable[str]) -> dict[str, list[str]]:
        """Names of the slices that hold results of ``rows``, by row.

        Raises:
            CorruptDataset: the storage damages what was just mended.
        """
        row_of = {_token(row): row for row in rows}
        for _ in range(HEALINGS):
            scan = self._scan(row_of)
            if not scan.damaged:
                return {row: sorted(names) for row, names in scan.slices.items()}
            self._mend(scan.damaged)
        raise self._given_up()

    def add(self, name: str, rows: Iterable[str]) -> None:
        """Commit the slice ``name`` with results of ``rows``."""
        self._commit(name, rows, f"{self._plan}-{self._chunk}")

    def compact(self) -> None:
        """Join the records of all workers, and packs that are not much larger, into one pack.

        Several may do so at once, and be killed at any moment: rows stand in the index at all times.
        """
        for _ in range(HEALINGS):
            damaged: list[DamagedObject] = []
            joined = self._joined(damaged)
            if not damaged:
                break
            self._mend(damaged)
        else:
            raise self._given_up()
        if joined is None:
            return
        tokens, numbers, names, records, packs = joined
        kept = self._write(tokens, numbers, names)
        self._delete([uri for uri in (*records, *(pack.uri for pack in packs)) if uri != kept])
        self._delete(
            pack.bucket_uri(n)
            for pack in packs
            if pack.uri != kept
            for n, name in enumerate(pack.buckets)
            if name
        )

    def names(self) -> set[str]:
        """Names of all slices that the index knows."""
        names: set[str] = set()
        for _, lines in self._read_all(self._commits()):
            if not isinstance(lines, DamagedObject):
                names.add(json.loads(lines)["slice"])
        for _, pack in self._packs():
            if not isinstance(pack, DamagedObject):
                names.update(pack.slices)
        return names

    def _commit(self, name: str, rows: Iterable[str], label: str) -> None:
        tokens = b"".join(sorted({_token(row) for row in rows}))
        content = json.dumps({"slice": name, "rows": tokens.hex()}).encode()
        publish_named(join(self._uri, "commits", f"{label}-{content_name(content)}.json"), content)

    def _scan(self, row_of: Mapping[bytes, str]) -> _Scan:
        scan = _Scan()
        for _, content in self._read_all(self._commits(own=True)):
            if isinstance(content, DamagedObject):
                scan.damaged.append(content)
                continue
            record = json.loads(content)
            for token in _split(bytes.fromhex(record["rows"])):
                if token in row_of:
                    scan.slices[row_of[token]].add(record["slice"])
        for _, pack in self._packs():
            if isinstance(pack, DamagedObject):
                scan.damaged.append(pack)
            else:
                self._look_up(pack, row_of, scan)
        return scan

    def _look_up(self, pack: Pack, row_of: Mapping[bytes, str], scan: _Scan) -> None:
        """Add what ``pack`` knows of the rows that are wanted; only their buckets are read."""
        by_bucket: dict[int, list[bytes]] = defaultdict(list)
        for token in row_of:
            by_bucket[_bucket(token, len(pack.buckets))].append(token)
        tokens_by_uri = {pack.bucket_uri(n): tokens for n, tokens in by_bucket.items() if pack.buckets[n]}
        for uri, content in self._read_all(tokens_by_uri, pack.uri):
            if isinstance(content, DamagedObject):
                scan.damaged += [content, DamagedObject(pack.uri, "is of no use without its buckets")]
                continue
            tokens, numbers = _parse_bucket(content)
            for position in np.flatnonzero(np.isin(tokens[:, 0], _halves(tokens_by_uri[uri])[:, 0])).tolist():
                row = row_of.get(content[_TOKEN * position : _TOKEN * (position + 1)])
                if row is not None:
                    scan.slices[row].add(pack.slices[numbers[position]])

    def _joined(
        self, damaged: list[DamagedObject]
    ) -> tuple[Tokens, NDArray[np.uint32], list[str], list[str], list[Pack]] | None:
        """Rows, their slices and the slices' names of what is to be joined, and where that stands; None where
        one pack would take the place of one record or pack."""
        numbers: dict[str, int] = {}
        lines: list[tuple[Tokens, NDArray[np.uint32]]] = []
        records: list[str] = []
        for uri, content in self._read_all(self._commits()):
            if isinstance(content, DamagedObject):
                damaged.append(content)
                continue
            record = json.loads(content)
            number = numbers.setdefault(record["slice"], len(numbers))
            tokens = _halves([bytes.fromhex(record["rows"])])
            lines.append((tokens, np.full(len(tokens), number, np.uint32)))
            records.append(uri)
        packs = self._absorbed(sum(len(tokens) for tokens, _ in lines), damaged)
        for pack in packs:
            own = np.array([numbers.setdefault(name, len(numbers)) for name in pack.slices], np.uint32)
            bucket_uris = pack.bucket_uris()
            read = list(self._read_all(bucket_uris, pack.uri))
            if len(read) < len(bucket_uris):
                return None  # another is joining them right now
            for _, content in read:
                if isinstance(content, DamagedObject):
                    damaged += [content, DamagedObject(pack.uri, "is of no use without its buckets")]
                    break
                tokens, positions = _parse_bucket(content)
                lines.append((tokens, own[positions]))
        if damaged or not records or len(records) + len(packs) < 2:
            return None
        present = {name_in(o.uri) for o in store_for(self._uri).list(join(self._uri, "data"))}
        return (*_in_order(lines, list(numbers), present), records, packs)

    def _absorbed(self, rows: int, damaged: list[DamagedObject]) -> list[Pack]:
        """The packs that are joined with ``rows`` new ones."""
        packs: list[Pack] = []
        for _, pack in self._packs():
            if isinstance(pack, DamagedObject):
                damaged.append(pack)
            else:
                packs.append(pack)
        chosen: list[Pack] = []
        for pack in sorted(packs, key=lambda pack: pack.rows):
            if pack.rows <= ABSORBED * rows:
                chosen.append(pack)
                rows += pack.rows
        return chosen

    def _write(self, tokens: Tokens, numbers: NDArray[np.uint32], names: Sequence[str]) -> str:
        """Publish a pack: its buckets, then its head; gives the head's URI."""
        count = 1
        while count * BUCKET_ROWS < len(tokens):
            count *= 2
        of_row = (tokens[:, 0] >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)
        bounds = np.searchsorted(of_row, np.arange(count + 1, dtype=np.uint64)).tolist()

        def content(number: int) -> bytes:
            start, stop = bounds[number], bounds[number + 1]
            return tokens[start:stop].astype(">u8").tobytes() + numbers[start:stop].astype("<u4").tobytes()

        buckets = [content_name(content(n)) if bounds[n] < bounds[n + 1] else "" for n in range(count)]
        head = json.dumps({"rows": len(tokens), "slices": list(names), "buckets": buckets}).encode()
        pack = Pack.parse(join(self._uri, PACKS, f"{content_name(head)}.json"), head)
        with ThreadPoolExecutor(READERS, "publish-bucket") as pool:
            filled = [n for n, name in enumerate(buckets) if name]
            list(pool.map(lambda n: publish_named(pack.bucket_uri(n), content(n)), filled))
        publish_named(pack.uri, head)
        return pack.uri

    def _commits(self, own: bool = False) -> list[str]:
        """URIs of the records; with ``own`` without those of other chunks of this plan."""
        listed = (o.uri for o in store_for(self._uri).list(join(self._uri, "commits")))
        names = [(uri, last_part(uri).split("-")) for uri in listed if uri.endswith(".json")]
        mine = [self._plan, str(self._chunk)]
        return [uri for uri, name in names if not own or name[0] != self._plan or name[:2] == mine]

    def _packs(self) -> Iterator[tuple[str, Pack | DamagedObject]]:
        """Every pack, those included that take the place of others meanwhile."""
        seen: set[str] = set()
        while True:
            listed = [o.uri for o in store_for(self._uri).list(join(self._uri, PACKS))]
            fresh = [uri for uri in listed if uri not in seen]
            if not fresh:
                return
            seen.update(fresh)
            for uri, content in self._read_all(fresh):
                yield uri, content if isinstance(content, DamagedObject) else Pack.parse(uri, content)

    def _read_all(
        self, uris: Collection[str], needed_by: str = ""
    ) -> Iterator[tuple[str, bytes | DamagedObject]]:
        """Each object and its bytes, or its damage. One that is gone was joined into a pack and is left out;
        where the object ``needed_by`` still stands, it is damage."""

        def read(uri: str) -> bytes | DamagedObject | None:
            try:
                return read_named(uri)
            except DamagedObject as damage:
                return damage
            except NotFound:
                if needed_by and store_for(needed_by).exists(needed_by):
                    return DamagedObject(uri, f"is gone, and {needed_by} needs it")
                return None

        with ThreadPoolExecutor(READERS, "read-index") as pool:
            for uri, content in zip(uris, pool.map(read, uris)):
                if content is not None:
                    yield uri, content

    def _mend(self, damaged: Sequence[DamagedObject]) -> None:
        """Set ``damaged`` aside and commit again the slices that nothing else knows."""
        for one in {damage.uri: damage for damage in damaged}.values():
            set_aside(one)
        names = self.names()
        for entry in store_for(self._uri).list(join(self._uri, "data")):
            if name_in(entry.uri) in names:
                continue
            try:
                content = read_named(entry.uri)
            except DamagedObject as damage:
                set_aside(damage)
                continue
            except NotFound:
                continue
            rows = pq.read_table(io.BytesIO(content), columns=[ROW_ID]).column(ROW_ID)
            self._commit(name_in(entry.uri), pc.unique(rows).to_pylist(), f"{'0' * 16}-0")

    def _delete(self, uris: Iterable[str]) -> None:
        store = store_for(self._uri)
        with ThreadPoolExecutor(READERS, "delete-index") as pool:
            list(pool.map(store.delete, uris))

    def _given_up(self) -> CorruptDataset:
        return CorruptDataset(
            f"{self._uri}: records were found damaged {HEALINGS} times, also those just made again; the "
            "storage damages what is written to it, look after it before you run again"
        )


def _token(row: str) -> bytes:
    """What stands for a row in the index: evenly spread, whatever ids look like."""
    return hashlib.sha256(row.encode()).digest()[:_TOKEN]


def pack_of(bucket: str) -> str:
    """Name of the pack that the bucket at the URI ``bucket`` is of."""
    return last_part(bucket).partition("-")[0]


def _split(tokens: bytes) -> Iterator[bytes]:
    return (tokens[i : i + _TOKEN] for i in range(0, len(tokens), _TOKEN))


def _halves(tokens: Sequence[bytes]) -> Tokens:
    return np.frombuffer(b"".join(tokens), ">u8").reshape(-1, 2).astype(np.uint64)


def _bucket(token: bytes, buckets: int) -> int:
    return int.from_bytes(token[:4], "big") * buckets >> 32


def _parse_bucket(content: bytes) -> tuple[Tokens, NDArray[np.uint32]]:
    rows = len(content) // _LINE
    return _halves([content[: rows * _TOKEN]]), np.frombuffer(content, "<u4", rows, rows * _TOKEN)


def _in_order(
    lines: Sequence[tuple[Tokens, NDArray[np.uint32]]], names: list[str], present: Collection[str]
) -> tuple[Tokens, NDArray[np.uint32], list[str]]:
    """Rows in order, each once for each of its slices; slices that are gone are left out."""
    tokens = np.concatenate([tokens for tokens, _ in lines])
    numbers = np.concatenate([numbers for _, numbers in lines])
    order = np.lexsort((numbers, tokens[:, 1], tokens[:, 0]))
    tokens, numbers = tokens[order], numbers[order]
    there = np.array([name in present for name in names], bool)
    kept = there[numbers]
    kept[1:] &= (tokens[1:] != tokens[:-1]).any(axis=1) | (numbers[1:] != numbers[:-1])
    renumbered = (np.cumsum(there) - 1).astype(np.uint32)
    return tokens[kept], renumbered[numbers[kept]], [name for name in names if name in present]
