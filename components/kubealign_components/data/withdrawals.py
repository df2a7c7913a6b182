"""Withdrawals: prompts and sources that people took back, which no dataset made from now on may hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kubealign_components.config import require
from kubealign_components.data.fingerprint import Recipe, digest
from kubealign_components.data.origins import note_origin
from kubealign_components.data.sampled import sampled
from kubealign_components.errors import ConfigError, NotFound
from kubealign_components.store import store_for

SCHEMA = "kubealign.withdrawal/v1"
WITHDRAWN = "withdrawn"
"""The setting that names a withdrawal, what its rows are counted under, and what a recipe knows it by."""
WITHDRAWN_SOURCES = "withdrawn_sources"
"""What a recipe calls the names of sources that a step left out: what it made holds nothing of them."""
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Withdrawal:
    """What was taken back."""

    prompt_ids: frozenset[str] = frozenset()
    """Ids of prompts: whatever source they came from."""
    sources: frozenset[str] = frozenset()
    """Names of sources, of which nothing is taken."""

    def __post_init__(self) -> None:
        for one in self.prompt_ids:
            require(_ID.fullmatch(one) is not None, "prompt_ids", one, "the id of a prompt: 32 hex digits")
        for name in self.sources:
            require(bool(name.strip()), "sources", name, "the name of a source")

    def __bool__(self) -> bool:
        return bool(self.prompt_ids or self.sources)

    def __or__(self, other: Withdrawal) -> Withdrawal:
        return Withdrawal(prompt_ids=self.prompt_ids | other.prompt_ids, sources=self.sources | other.sources)

    def holds(self, prompt_id: str, source: str) -> bool:
        """Whether a row of that prompt and source was taken back."""
        return source in self.sources or prompt_id in self.prompt_ids

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        """Which rows of ``batch`` (columns ``prompt_id`` and, where there is one, ``source``) it holds."""
        held = _in(batch.column("prompt_id"), self.prompt_ids)
        if "source" in batch.schema.names:
            held = pc.or_(held, _in(batch.column("source"), self.sources))
        return held

    def beside(self, recipe: Recipe, fingerprint: str) -> dict[str, frozenset[str]]:
        """Sources in whose rows completions of sources that were taken back may stand, and of which.

        A prompt that several sources have is one row, which has the name of the first of them and the
        completions of all. A recipe tells what was read together, not which prompts they share.

        Args:
            recipe: of a dataset.
            fingerprint: of the same dataset.
        """
        holders: dict[str, frozenset[str]] = {}
        seen: set[tuple[str, frozenset[str]]] = set()
        ways = [(fingerprint, self.sources)]
        while ways:
            name, gone = ways.pop()
            step = recipe[name]
            gone -= frozenset(step["params"].get(WITHDRAWN_SOURCES, ()))
            if not gone or (name, gone) in seen:
                continue
            seen.add((name, gone))
            ways += [(parent, gone) for parent in step["inputs"].values()]
            together = _names_of(step["params"].get("sources"))
            for position, source in enumerate(together):
                if later := gone.intersection(together[position + 1 :]):
                    holders[source] = holders.get(source, frozenset()) | later
        return holders

    def among(self, prompt_ids: Iterable[str], sources: Iterable[str]) -> Withdrawal:
        """The part of it that is about these."""
        return Withdrawal(
            prompt_ids=self.prompt_ids.intersection(prompt_ids), sources=self.sources.intersection(sources)
        )

    def to_json(self) -> dict[str, list[str]]:
        """Plain values in a fixed order."""
        return {"prompt_ids": sorted(self.prompt_ids), "sources": sorted(self.sources)}

    def request(self) -> dict[str, dict[str, list[str]]]:
        """What a request for finished work says of it: nothing where it names nothing."""
        return {WITHDRAWN: self.to_json()} if self else {}

    def params(self, uri: str) -> dict[str, object]:
        """What a recipe says of rows that are not there for it: nothing where there are none.

        Args:
            uri: where the withdrawal lies, which is noted.
        """
        if not self:
            return {}
        name = digest(self.to_json())
        note_origin(name, uri)
        return {WITHDRAWN: name} | ({WITHDRAWN_SOURCES: sorted(self.sources)} if self.sources else {})


def read_withdrawal(uri: str) -> Withdrawal:
    """The withdrawal at ``uri``; an empty one where none is named.

    Raises:
        ConfigError: there is no withdrawal.
        StoreError: the store cannot be read.
    """
    if not uri:
        return Withdrawal()
    expected = "a file that `kubealign withdraw` wrote"
    try:
        content = json.loads(store_for(uri).read(uri))
    except NotFound as error:
        raise ConfigError(WITHDRAWN, uri, f"{expected}; there is none") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(WITHDRAWN, uri, f"{expected} ({error})") from error
    if not isinstance(content, Mapping) or content.get("schema") != SCHEMA:
        raise ConfigError(WITHDRAWN, uri, f"{expected}: schema {SCHEMA}")
    ids, sources = (_texts(content.get(name), uri, name) for name in ("prompt_ids", "sources"))
    try:
        return Withdrawal(prompt_ids=ids, sources=sources)
    except ConfigError as error:
        raise ConfigError(f"{WITHDRAWN} {uri} {error.field}", error.value, error.expected) from error


def may_hold(sources: Iterable[str], batch: pa.RecordBatch) -> pa.BooleanArray:
    """Which rows of ``batch`` are of ``sources`` and have a completion that came with a source.

    Args:
        sources: by name.
        batch: with the columns ``source`` and ``completions``, of which :data:`FACTS` are looked at.
    """
    lists = batch.column("completions")
    offline = pa.array(~sampled(lists.flatten()))
    having = pc.unique(pc.list_parent_indices(lists).filter(offline)).cast(pa.int64())
    has_offline = pc.is_in(pa.array(range(batch.num_rows), pa.int64()), value_set=having)
    return pc.and_(has_offline, _in(batch.column("source"), frozenset(sources)))


def withdrawal_text(withdrawal: Withdrawal) -> str:
    """What is written to the file of ``withdrawal``."""
    return json.dumps({"schema": SCHEMA, **withdrawal.to_json()}, indent=1, ensure_ascii=False) + "\n"


def _names_of(sources: object) -> list[str]:
    """Names of the sources that a step read, in their order."""
    listed = sources if isinstance(sources, list) else []
    return [str(source["name"]) for source in listed if isinstance(source, Mapping) and "name" in source]


def _texts(value: object, uri: str, name: str) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ConfigError(f"{WITHDRAWN} {uri} {name}", str(value)[:80], "a list of texts")
    return frozenset(value)


def _in(column: pa.Array, values: frozenset[str]) -> pa.BooleanArray:
    return pc.is_in(column, value_set=_array(values))


@lru_cache(maxsize=4)
def _array(values: frozenset[str]) -> pa.Array:
    # Of an array of NumPy: one that is made of a list loads pandas.
    return pa.array(np.array(sorted(values), dtype=object), pa.string())
