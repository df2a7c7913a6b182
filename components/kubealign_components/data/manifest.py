"""The manifest of a dataset: what it is, where it came from and what is in it, under one digest.

Whoever reads a manifest trusts nothing of it before it has been checked: the type of every member, the
digest over all of them, the recipe's own fingerprints, names of shards that stay inside the dataset, and
row counts that add up. Where :data:`KEY` is set, a manifest also bears a signature and one without a good
one is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kubealign_components.data.deletions import count_deletions, is_deletions
from kubealign_components.data.fingerprint import Provenance, Recipe, check_recipe, digest
from kubealign_components.data.origins import USE_OF_PODS, Origin
from kubealign_components.errors import CorruptDataset
from kubealign_components.json_types import JsonObject
from kubealign_components.pod_use import is_use

MANIFEST = "manifest.json"
MANIFEST_VERSION = 2
KEY = "KUBEALIGN_MANIFEST_KEY"
"""Environment variable: a secret that manifests are signed with (HMAC-SHA256 of their digest) and held to."""

DROPPED_EXAMPLES = "dropped_examples"
"""Member of what a manifest says beside the counts: texts of some of what was dropped, by reason."""
ENDED_EARLY = "ended_early"
"""Member of what a manifest says beside the counts: why nothing was made."""
UNDELETED = "undeleted"
"""Member of the same: fingerprint of the dataset that this is with the rows that are deleted."""
UNDELETED_FROM = "undeleted_from"
"""Member of the same: what that one's manifest says, as far as another withdrawal needs it."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "the manifest was changed, make the dataset again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One Parquet file of a dataset."""

    path: str
    """Relative to the dataset."""
    rows: int
    """Without those that are deleted."""
    size: int
    """Bytes."""
    sha256: str
    deleted: str = ""
    """Deletion vector of the rows in the file (:mod:`.deletions`); empty where all are of the dataset."""

    @property
    def rows_in_file(self) -> int:
        """Rows that the file has, those that are deleted included."""
        return self.rows + count_deletions(self.deleted)

    def to_json(self) -> dict[str, str | int]:
        """The form that manifests keep: without a deletion vector where there is none."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if name != "deleted" or value}


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a dataset is, where it came from and what is in it."""

    schema: str
    rows: int
    shards: tuple[Shard, ...]
    fingerprint: str
    recipe: Recipe
    slug: str
    parents: tuple[dict[str, str], ...] = ()
    identity: dict[str, str] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    """Of every step of the recipe, by fingerprint: where models and sources lay, and what it ran with."""
    stats: JsonObject = field(default_factory=dict)
    extra: JsonObject = field(default_factory=dict)
    """What a stage has to say beside the counts, such as examples of malformed rows."""
    shards_in: str = ""
    """Name of the folder beside this one that holds the shards; empty where they lie with the manifest."""

    @property
    def provenance(self) -> Provenance:
        """The part of the manifest that was known before the rows."""
        return Provenance(
            fingerprint=self.fingerprint,
            recipe=self.recipe,
            slug=self.slug,
            parents=self.parents,
            identity=self.identity,
            origins=self.origins,
            ended_early=self.ended_early,
        )

    @property
    def ended_early(self) -> str:
        """Why nothing was made, where a stage ended early; empty for what was made."""
        return str(self.extra.get(ENDED_EARLY, ""))

    @property
    def undeleted(self) -> str:
        """Fingerprint of the dataset that has the rows of the shards, those that are deleted included, in the
        same order; empty where none is known."""
        return str(self.extra.get(UNDELETED, ""))

    @property
    def numbers(self) -> dict[str, float]:
        """What a stage measured, and means of what it added up."""
        means = {f"{name}_mean": total / n for name, (total, n) in self.stats.get("sums", {}).items()}
        return {**means, **self.stats["numbers"]}

    def origin_of(self, word: str) -> Mapping[str, str]:
        """Where lay what a step knows by the digest or commit ``word``: ``uri``, and ``revision`` of what was
        on the hub; nothing where no step tells."""
        for origin in self.origins.values():
            origins: Mapping[str, Mapping[str, str]] = origin["places"]
            if word in origins:
                return origins[word]
        return {}

    def to_json(self, *, signed: bool = True) -> str:
        """Stable JSON text, with its digest and, where :data:`KEY` is set, its signature if ``signed``."""
        body = {name: getattr(self, name) for name in self.__slots__}
        body["shards"] = [shard.to_json() for shard in self.shards]
        body = {"version": MANIFEST_VERSION, **body}
        seal = {"digest": digest(body)}
        if signed and (key := os.environ.get(KEY)):
            seal["signature"] = _signature(key, seal["digest"])
        return json.dumps(body | seal, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: bytes, where: str) -> Manifest:
        """Read and check a manifest.

        Args:
            text: JSON.
            where: URI for errors.

        Raises:
            CorruptDataset: not a manifest, one of another version, one that was changed since it was written
                or bears no good signature, a shard outside of its dataset, or counts that do not add up.
        """
        body = _object(text, where)
        version = body.get("version")
        if version != MANIFEST_VERSION:
            raise CorruptDataset(
                f"{where}: manifest version {version!r}, this KubeAlign reads version {MANIFEST_VERSION}; "
                "make the dataset again or use the KubeAlign that wrote it"
            )
        _check_seal(body, where)
        for name, (expected, is_right) in _MEMBERS.items():
            if name not in body or not is_right(body[name]):
                shown = repr(body.get(name))[:80]
                raise CorruptDataset(f"{where}: {name} is {shown}, expected {expected}; {_AGAIN}")
        unknown = body.keys() - _MEMBERS.keys() - {"version"}
        if unknown:
            raise CorruptDataset(f"{where}: a manifest has no {min(unknown)!r}; {_AGAIN}")
        shards = tuple(Shard(**shard) for shard in body["shards"])
        held = sum(shard.rows for shard in shards)
        if held != body["rows"]:
            raise CorruptDataset(f"{where}: it says {body['rows']} rows, its shards have {held}; {_AGAIN}")
        values = {name: body[name] for name in _MEMBERS}
        manifest = cls(**values | {"shards": shards, "parents": tuple(body["parents"])})
        check_recipe(manifest.fingerprint, manifest.recipe, where)
        return manifest


def _object(text: bytes, where: str) -> JsonObject:
    try:
        body = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptDataset(f"{where}: not a KubeAlign manifest ({error})") from error
    if not isinstance(body, dict):
        raise CorruptDataset(f"{where}: not a KubeAlign manifest (a JSON {type(body).__name__})")
    return body


def _check_seal(body: JsonObject, where: str) -> None:
    """Take digest and signature out of ``body`` and hold them to the rest."""
    stated, signature = body.pop("digest", None), body.pop("signature", None)
    try:
        actual = digest(body)
    except ValueError as error:  # a number or a text that JSON cannot hold
        raise CorruptDataset(f"{where}: not a KubeAlign manifest ({error})") from error
    if stated != actual:
        raise CorruptDataset(
            f"{where}: its content has SHA-256 {actual[:12]}, it says {str(stated)[:12]}; {_AGAIN}"
        )
    key = os.environ.get(KEY)
    if key and not hmac.compare_digest(str(signature), _signature(key, actual)):
        raise CorruptDataset(
            f"{where}: {'a signature of another key' if signature else 'no signature'}, and {KEY} asks for "
            "one: the dataset is not of those who have the key; make it again with it"
        )


def _signature(key: str, text: str) -> str:
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_inside(value: object) -> bool:
    """Whether ``value`` names a file below the dataset, whatever store it lies in."""
    if not isinstance(value, str) or "\\" in value or "\0" in value or "://" in value:
        return False
    return all(part not in ("", ".", "..") for part in value.split("/"))


def _is_shard(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() | {"deleted"} == set(Shard.__slots__)
        and _is_inside(value["path"])
        and _is_count(value["rows"])
        and _is_count(value["size"])
        and _is_sha256(value["sha256"])
        and ("deleted" not in value or is_deletions(value["deleted"], value["rows"]))
    )


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_parent(value: object) -> bool:
    named = isinstance(value, dict) and {"name", "uri", "fingerprint", "schema"} <= value.keys()
    return named and _is_texts(value)


def _is_step(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("stage"), str)
        and _is_count(value.get("version"))
        and isinstance(value.get("params"), dict)
        and isinstance(value.get("models"), dict)
        and _is_texts(value.get("inputs"))
    )


def _is_recipe(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_sha256(name) and _is_step(step) for name, step in value.items()
    )


def _is_stats(value: object) -> bool:
    """Counts by name, numbers and sums, as :meth:`Stats.to_json` gives them."""
    members: Mapping[str, Callable[[object], bool]] = {
        "rows_in": _is_count,
        "rows_out": _is_count,
        "dropped": lambda v: isinstance(v, dict) and all(map(_is_count, v.values())),
        "counts": lambda v: isinstance(v, dict) and all(type(n) is int for n in v.values()),
        "numbers": lambda v: isinstance(v, dict) and all(type(n) in (int, float) for n in v.values()),
        "sums": lambda v: isinstance(v, dict) and all(map(_is_sum, v.values())),
    }
    return isinstance(value, dict) and all(
        name in value and is_(value[name]) for name, is_ in members.items()
    )


def _is_sum(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and type(value[0]) in (int, float)
        and type(value[1]) is int
    )


def _is_origin(value: JsonObject) -> bool:
    origins = value.get("places")
    return (
        isinstance(origins, dict)
        and all(map(_is_texts, origins.values()))
        and _is_texts(value.get("versions"))
        and is_use(value.get(USE_OF_PODS, {}))
    )


_MEMBERS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "schema": ("the name of a kind of dataset", lambda v: isinstance(v, str) and bool(v)),
    "rows": ("a number of rows", _is_count),
    "shards": (
        "shards with path, rows, size and sha256, the path below the dataset without '..', and deletion "
        "vectors of as many rows as the shards have",
        lambda v: isinstance(v, list) and all(map(_is_shard, v)),
    ),
    "fingerprint": ("a SHA-256", _is_sha256),
    "recipe": ("steps by their fingerprints", _is_recipe),
    "slug": ("a text", lambda v: isinstance(v, str)),
    "parents": (
        "inputs with name, uri, fingerprint and schema",
        lambda v: isinstance(v, list) and all(map(_is_parent, v)),
    ),
    "identity": ("digests by name", _is_texts),
    "origins": (
        "places, versions and use by fingerprint",
        lambda v: isinstance(v, dict) and all(isinstance(o, dict) and _is_origin(o) for o in v.values()),
    ),
    "stats": ("the counts of a stage", _is_stats),
    "extra": ("an object", lambda v: isinstance(v, dict)),
    "shards_in": (
        "the name of a folder beside the manifest's, or none",
        lambda v: v == "" or (_is_inside(v) and "/" not in str(v)),
    ),
}
