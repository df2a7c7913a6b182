"""What is known of a model's weights where they were not fetched.

A store keeps no SHA-256 of its objects. So whoever publishes a model, or has fetched one and may write there,
leaves a record beside it: size, version and digest of every file of weights. It holds for objects of these
versions alone. Who only asks which model it is reads the record in the place of the weights.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kubealign_components.data.fingerprint import canonical_json
from kubealign_components.data.model_files import CONFIG, weights_among
from kubealign_components.data.weight_files import first_dtype
from kubealign_components.errors import EngineError, NotFound, StoreError
from kubealign_components.store import ObjectInfo, join, name_below, put, store_for

log = logging.getLogger(__name__)

RECORD = ".weights.json"
"""Name of the record beside the weights; hidden, so that it is no file of the model."""
_SHA256 = re.compile(r"[0-9a-f]{64}")

Objects = Mapping[str, ObjectInfo]
"""By name below the model's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile:
    """A file of weights that lies elsewhere."""

    size: int
    """Bytes."""
    sha256: str
    dtype: str = ""
    """Of its first matrix, by safetensors' name; empty for another format, or where nobody looked."""


def objects_below(uri: str) -> dict[str, ObjectInfo]:
    """The objects below the folder ``uri``, by name."""
    return {name_below(entry.uri, uri): entry for entry in store_for(uri).list(uri)}


def record_weights(uri: str, objects: Objects, folder: Path, digests: Mapping[str, str]) -> None:
    """Leave a record beside the model at ``uri``, of which ``folder`` is a copy. Where nothing may be
    written, or the store has no versions, there is none, and nothing else.

    Args:
        uri: of the model.
        objects: what lies there.
        folder: a copy of it.
        digests: SHA-256 of its files of weights by name, of others as well.
    """
    names = [name for name in _weights(digests, folder) if name in objects and objects[name].version]
    _write(
        uri,
        objects,
        {
            name: WeightFile(
                size=(folder / name).stat().st_size,
                sha256=digests[name],
                dtype=first_dtype(folder / name),
            )
            for name in names
        },
    )


def copy_record(source: str, target: str) -> None:
    """Leave the record of the model at ``source``, where there is one, beside its copy at ``target``."""
    recorded = recorded_weights(source, objects_below(source))
    if recorded:
        _write(target, objects_below(target), recorded)


def recorded_weights(uri: str, objects: Objects) -> dict[str, WeightFile]:
    """The files of the record beside the model at ``uri`` which are those of ``objects``, by name.

    Raises:
        StoreError: the store cannot be read.
    """
    try:
        facts = json.loads(store_for(uri).read(join(uri, RECORD)))
        read = {name: (str(one["version"]), _file(one)) for name, one in facts.items()}
    except NotFound:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        log.warning("%s is no record of weights, and is not used: %r", join(uri, RECORD), error)
        return {}
    return {
        name: file
        for name, (version, file) in read.items()
        if name in objects and version
        if (version, file.size) == (objects[name].version, objects[name].size)
    }


def _write(uri: str, objects: Objects, files: Mapping[str, WeightFile]) -> None:
    facts = {
        name: {
            "version": objects[name].version,
            "size": file.size,
            "sha256": file.sha256,
            "dtype": file.dtype,
        }
        for name, file in files.items()
        if name in objects and objects[name].version and objects[name].size == file.size
    }
    if not facts:
        return
    try:
        put(join(uri, RECORD), canonical_json(facts).encode())
    except (StoreError, NotFound) as error:
        log.info("digests of the weights at %s cannot be kept there: %s", uri, error)


def _file(facts: Mapping[str, object]) -> WeightFile:
    """What a record says of a file.

    Raises:
        KeyError, ValueError: it is malformed.
    """
    size, sha256, dtype = facts["size"], facts["sha256"], facts["dtype"]
    if not (isinstance(size, int) and isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise ValueError(f"size {size!r} and SHA-256 {sha256!r}")
    return WeightFile(size=size, sha256=sha256, dtype=str(dtype))


def _weights(names: Mapping[str, str], folder: Path) -> list[str]:
    """The files of weights among ``names``; none of what is no whole model."""
    try:
        return weights_among(names, lambda name: (folder / name).read_bytes()) if CONFIG in names else []
    except EngineError:
        return []
