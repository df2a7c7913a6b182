"""Finished results in a work prefix.

A finished slice is committed: first its data under a name made of its content, then a commit record with the
keys of its rows, published only if absent. A row's key is a content hash, and the folder it lies in is named
by the stage's settings and models: so a worker that starts again, another run, or a run over a grown dataset
finds every row that was ever finished, whatever the chunk and slice sizes were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kubealign_components.data.chunks import Row
from kubealign_components.data.fingerprint import digest
from kubealign_components.errors import CorruptDataset, NotFound
from kubealign_components.store import join, store_for


class SliceStore:
    """Finished rows under one work prefix, by key."""

    def __init__(self, uri: str, schema: pa.Schema) -> None:
        self._uri = uri
        self._schema = pa.schema([("row_key", pa.string()), *schema])
        self._slice_of: dict[str, tuple[str, str, str]] = {}
        self._load = lru_cache(maxsize=8)(self._read)
        store = store_for(uri)
        commits = [o.uri for o in store.list(join(uri, "commits")) if o.uri.endswith(".json")]
        with ThreadPoolExecutor(16) as pool:
            records = pool.map(lambda u: _parse_commit(store.read(u), u), commits)
            for commit, record in zip(commits, records):
                self._index(record, commit)

    def __contains__(self, key: str) -> bool:
        return key in self._slice_of

    def __getitem__(self, key: str) -> Row:
        return self._load(*self._slice_of[key])[key]

    def commit(self, keys: Sequence[str], results: Sequence[Row]) -> None:
        """Publish the results of one slice; when another worker was first, its results stand."""
        rows = [{**result, "row_key": key} for key, result in zip(keys, results, strict=True)]
        store = store_for(self._uri)
        encoded = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=self._schema), encoded, compression="zstd")
        content = encoded.getvalue().to_pybytes()
        sha256 = hashlib.sha256(content).hexdigest()
        data = join(self._uri, "data", f"{sha256[:32]}.parquet")
        store.publish(data, content)
        record = {"data": data.rsplit("/", 1)[1], "sha256": sha256, "keys": list(keys)}
        commit = join(self._uri, "commits", f"{digest(list(keys))[:32]}.json")
        if not store.publish(commit, json.dumps(record).encode()):
            record = _parse_commit(store.read(commit), commit)
        self._index(record, commit)

    def _index(self, record: dict[str, Any], commit: str) -> None:
        for key in record["keys"]:
            self._slice_of.setdefault(key, (record["data"], record["sha256"], commit))

    def _read(self, name: str, sha256: str, commit: str) -> dict[str, Row]:
        uri = join(self._uri, "data", name)
        try:
            data = store_for(uri).read(uri)
        except NotFound as error:
            raise CorruptDataset(
                f"{uri} is gone since it was committed; delete {commit} and run again"
            ) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptDataset(
                f"{uri}: bytes changed since they were committed; delete it and {commit}, and run again"
            )
        return {row.pop("row_key"): row for row in pq.read_table(pa.BufferReader(data)).to_pylist()}


def _parse_commit(text: bytes, where: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(text)
        if {"data", "sha256", "keys"} <= record.keys():
            return record
    except (ValueError, AttributeError):
        pass
    raise CorruptDataset(f"{where}: not a commit record; delete it and run again")
