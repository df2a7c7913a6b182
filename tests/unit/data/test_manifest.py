"""What a manifest is held to: nothing of it is believed before it was checked."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubealign_components.data.fingerprint import derive, digest
from kubealign_components.data.manifest import KEY, Manifest, Shard
from kubealign_components.data.schemas import PROMPTS
from kubealign_components.data.stats import Stats
from kubealign_components.errors import CorruptDataset


def manifest() -> Manifest:
    provenance = derive("import_prompts", 3, {"seed": 7, "share": 0.5}, models={"m": {"digest": "d"}})
    shards = tuple(
        Shard(path=f"shard-{i}.parquet", rows=4, size=100 + i, sha256=f"{i}" * 64) for i in range(2)
    )
    stats = Stats(rows_in=9, rows_out=8)
    stats.drop("too_long")
    stats.observe("length", [1.5, 2.5])
    return Manifest(
        schema=PROMPTS,
        rows=8,
        shards=shards,
        fingerprint=provenance.fingerprint,
        recipe=provenance.recipe,
        slug="first",
        parents=({"name": "in", "uri": "gs://b/in", "fingerprint": "0" * 64, "schema": PROMPTS},),
        identity={"policy": "p"},
        stats=stats.to_json(),
        extra={"files": {"a": "b"}},
    )


def sealed(body: dict[str, Any]) -> bytes:
    """``body`` as one who knows the rules would forge it."""
    body = {name: value for name, value in body.items() if name != "digest"}
    return json.dumps(body | {"digest": digest(body)}).encode()


def test_what_is_written_is_read() -> None:
    text = manifest().to_json()
    assert Manifest.from_json(text.encode(), "here") == manifest()


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every member of a JSON value, inner ones included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, one in inner for found in [(*path, key), *paths_of(one, (*path, key))]]


BODY = json.loads(manifest().to_json())
PLACES = paths_of(BODY)
SCALARS = st.none() | st.booleans() | st.integers(-3, 9) | st.floats(allow_nan=False) | st.text(max_size=9)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=4), SCALARS, max_size=2)


def changed(place: tuple[Any, ...], value: Any, *, remove: bool) -> dict[str, Any]:
    body = copy.deepcopy(BODY)
    target: Any = body
    for key in place[:-1]:
        target = target[key]
    if remove:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    return body


@given(st.sampled_from(PLACES), VALUES, st.booleans())
def test_every_change_is_noticed(place: tuple[Any, ...], value: Any, remove: bool) -> None:
    body = changed(place, value, remove=remove)
    if body == BODY and repr(body) == repr(BODY):
        return
    with pytest.raises(CorruptDataset, match="here"):
        Manifest.from_json(json.dumps(body).encode(), "here")


@given(st.sampled_from(PLACES), VALUES, st.booleans())
def test_what_is_forged_well_has_the_right_types_or_is_refused(
    place: tuple[Any, ...], value: Any, remove: bool
) -> None:
    try:
        text = sealed(changed(place, value, remove=remove))
    except ValueError:  # nothing that JSON can hold
        return
    try:
        read = Manifest.from_json(text, "here")
    except CorruptDataset:
        return
    assert read.rows == sum(shard.rows for shard in read.shards)
    assert all(isinstance(shard.size, int) and len(shard.sha256) == 64 for shard in read.shards)
    assert all(isinstance(step["version"], int) for step in read.recipe.values())
    assert json.loads(read.to_json())


@pytest.mark.parametrize(
    "path",
    [
        *("../secret/x.parquet", "/etc/shadow", "file:///etc/shadow", "gs://other/x.parquet", "a/../../b"),
        *("", ".", "a//b", "a/./b", "..\\x", "a\0b"),
    ],
)
def test_a_shard_lies_inside_its_dataset(path: str) -> None:
    body = json.loads(manifest().to_json())
    body["shards"][0]["path"] = path
    with pytest.raises(CorruptDataset, match=r"shards is .*, expected shards with path"):
        Manifest.from_json(sealed(body), "here")


def test_counts_that_do_not_add_up_are_refused() -> None:
    body = json.loads(manifest().to_json())
    body["shards"] = body["shards"][:1]
    with pytest.raises(CorruptDataset, match="it says 8 rows, its shards have 4"):
        Manifest.from_json(sealed(body), "here")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"version": 2, "rows": NaN}', "[" * 100_000])
def test_what_is_no_manifest_is_named(text: str) -> None:
    with pytest.raises(CorruptDataset, match="here"):
        Manifest.from_json(text.encode(), "here")


def test_with_a_key_manifests_are_signed_and_held_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    unsigned = manifest().to_json().encode()
    monkeypatch.setenv(KEY, "one secret")
    signed = manifest().to_json().encode()
    assert Manifest.from_json(signed, "here") == manifest()
    with pytest.raises(CorruptDataset, match="no signature"):
        Manifest.from_json(unsigned, "here")
    monkeypatch.setenv(KEY, "another")
    with pytest.raises(CorruptDataset, match="a signature of another key"):
        Manifest.from_json(signed, "here")
    monkeypatch.delenv(KEY)
    assert Manifest.from_json(signed, "here") == manifest()
