"""Finished results in a work prefix.

A stage says what a row's results are called: keys, content hashes of all that each of them depends on. The
folder is named by the stage's settings and models. So a worker that starts again, another run, or a run over
a grown or changed dataset finds every result that was ever finished, whatever the chunk and slice sizes were.

A slice is published under a name made of its content, then committed to the index
(:mod:`kubealign_components.data.slice_index`). It is verified when it is taken; one that is damaged is set
aside, and its results are missing again.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Generic, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from kubealign_components.data.fingerprint import file_digest
from kubealign_components.data.named_objects import (
    NAME_DIGITS,
    DamagedObject,
    check_named,
    content_name,
    publish_named,
    set_aside,
)
from kubealign_components.data.slice_index import ROW_ID, SliceIndex
from kubealign_components.errors import NotFound
from kubealign_components.store import join, scheme_of, store_for

log = logging.getLogger(__name__)

Result = TypeVar("Result", bound=Mapping[str, object])
"""A result as a stage computes it, by columns."""

KEY = "row_key"
"""Column of a slice: the key of a result."""
OPEN_SLICES = 8
"""Slices whose rows are kept in memory; neighbours in a dataset were mostly made together."""


@dataclass(frozen=True, slots=True)
class Finished(Generic[Result]):
    """Results of one row."""

    row_id: str
    keys: tuple[str, ...]
    results: tuple[Result, ...]
    """As many as there are keys."""


class SliceStore(Generic[Result]):
    """Finished results in the folder ``uri``, as far as some rows need them; a context that cleans up.

    Args:
        uri: the folder.
        schema: columns of a result.
        index: of the same folder.
        rows: prompt ids of the rows in question.
    """

    def __init__(self, uri: str, schema: pa.Schema, index: SliceIndex, rows: Iterable[str]) -> None:
        self._uri = uri
        self._index = index
        self._schema = pa.schema([(ROW_ID, pa.string()), (KEY, pa.string()), *schema])
        self._files: dict[str, Path | None] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="kubealign-slices-")
        self._keys = lru_cache(maxsize=8 * OPEN_SLICES)(self._read_keys)
        self._results = lru_cache(maxsize=OPEN_SLICES)(self._read_results)
        self._slices_of = index.find(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def finished(self, row_id: str, keys: Collection[str]) -> set[str]:
        """Those of ``keys`` whose results are finished."""
        committed: set[str] = set()
        for name in self._slices_of.get(row_id, ()):
            if len(committed) == len(keys):
                break
            committed.update(self._keys(name).intersection(keys))
        return committed

    def results(self, row_id: str, keys: Sequence[str]) -> dict[str, Result]:
        """Results of ``keys`` as far as they are finished, by key."""
        missing, results = set(keys), dict[str, Result]()
        for name in self._slices_of.get(row_id, ()):
            if len(results) == len(missing):
                break
            held = self._results(name)
            results |= {key: held[key] for key in missing - results.keys() if key in held}
        return results

    def commit(self, finished: Sequence[Finished[Result]]) -> None:
        """Publish results of some rows as one slice, and enter them in the index."""
        lines = [
            {**result, ROW_ID: one.row_id, KEY: key}
            for one in finished
            for key, result in zip(one.keys, one.results, strict=True)
        ]
        encoded = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(lines, schema=self._schema), encoded, compression="zstd")
        content = encoded.getvalue()
        name = content_name(content)
        publish_named(self._uri_of(name), content)
        self._index.add(name, (one.row_id for one in finished))
        self._keep(name, content)
        for one in finished:
            self._slices_of[one.row_id] = [*self._slices_of.get(one.row_id, ()), name]

    def _keep(self, name: str, content: bytes) -> None:
        """Spare the transfer of what this process made, where there is room for it."""
        if name in self._files:
            del self._files[name]
            self._forget()  # that it was lost, or had no row in question
        if scheme_of(self._uri) != "file":
            with suppress(OSError):
                path = Path(self._folder.name) / name
                path.write_bytes(content)
                self._files[name] = path

    def _uri_of(self, name: str) -> str:
        return join(self._uri, "data", f"{name}.parquet")

    def _read_keys(self, name: str) -> frozenset[str]:
        rows = self._read(name, [ROW_ID, KEY])
        return frozenset(rows[KEY].to_pylist()) if rows is not None else frozenset()

    def _read_results(self, name: str) -> dict[str, Result]:
        rows = self._read(name, None)
        return (
            {row.pop(KEY): row for row in rows.drop_columns(ROW_ID).to_pylist()} if rows is not None else {}
        )

    def _read(self, name: str, columns: list[str] | None) -> pa.Table | None:
        """The rows in question of a slice; None when it is damaged or gone."""
        path = self._file(name)
        try:
            return self._asked(pq.read_table(path, columns=columns)) if path else None
        except (OSError, pa.ArrowException) as error:
            log.warning("%s was whole before and is not now: %s", self._uri_of(name), error)
            self._files[name] = None
            self._forget()
            return None

    def _asked(self, results: pa.Table) -> pa.Table:
        """Those of ``results`` that are of rows in question: where these are few, most are not."""
        asked = [name in self._slices_of for name in results.column(ROW_ID).to_pylist()]
        return results if all(asked) else results.filter(pa.array(asked))

    def _forget(self) -> None:
        self._keys.cache_clear()
        self._results.cache_clear()

    def _file(self, name: str) -> Path | None:
        """The slice as a file of this machine, fetched and verified once; None when it is damaged or gone."""
        if name not in self._files:
            self._files[name] = self._fetched(name)
        return self._files[name]

    def _fetched(self, name: str) -> Path | None:
        uri = self._uri_of(name)
        try:
            path = store_for(uri).fetch(uri, Path(self._folder.name))
            check_named(uri, file_digest(path)[:NAME_DIGITS], path.stat().st_size)
        except DamagedObject as damage:
            set_aside(damage)
            return None
        except (NotFound, FileNotFoundError):
            log.warning("%s is gone since it was committed; its results are made again", uri)
            return None
        return path
