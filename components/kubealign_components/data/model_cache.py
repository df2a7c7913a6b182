"""Local copies of models that lie elsewhere: one folder for all of them, each published whole."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from kubealign_components.data.cache import cache_folder
from kubealign_components.data.fingerprint import digest
from kubealign_components.data.model_files import CONFIG, named_dtype, needed, weights_among, without_weights
from kubealign_components.data.weight_records import Objects, WeightFile, objects_below, recorded_weights
from kubealign_components.errors import ConfigError, EngineError, StoreError
from kubealign_components.json_types import JsonObject
from kubealign_components.store import ObjectInfo, inside, join, store_for

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

log = logging.getLogger(__name__)

_FETCHING = ".fetching-"
_ABANDONED = 2 * 24 * 3600
"""Seconds after which a fetch that has not ended never will."""
_ATTEMPTS = 3
_THREADS = 4
_OTHER_FORMATS = [
    "*.pth",
    "*.pt",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.onnx_data",
    "*.ot",
    "*.gguf",
    "original/*",
]
"""What is no use to this project, where the hub cannot be asked which files a model has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchedModel:
    """A local copy of a model that lies elsewhere."""

    path: Path
    weights: Mapping[str, WeightFile] = field(default_factory=dict)
    """The files of weights by name where they were not fetched."""
    objects: Objects = field(default_factory=dict)
    """Of an object store, what was fetched just now, weights and all; empty for a copy that was there."""


def fetch_prefix(uri: str, marker: str, field: str, *, weights: bool = True) -> FetchedModel:
    """A local copy of what a model needs of the objects below ``uri``, among them ``marker``.

    A copy is kept by name, size and version (generation or ETag) of its objects, so that a model which is
    written anew is fetched anew. It is made in a folder of its own and renamed when it is whole: whoever
    fetches the same at the same time does no harm.

    Args:
        uri: folder in an object store.
        marker: the file that a model of this kind has.
        field: the setting that errors name.
        weights: whether weights are needed; where not, they are fetched only if nothing is known of them.

    Raises:
        ConfigError: no such folder, or one without ``marker``.
        EngineError: shards are missing.
        StoreError: a name that would leave the folder, or objects that do not stop changing.
    """
    for _ in range(_ATTEMPTS):
        objects = _objects(uri)
        if marker not in objects:
            raise ConfigError(
                field, uri, f"a prefix that holds a Hugging Face model ({marker} was not found)"
            )
        read = partial(_read, uri)
        names = needed(objects, read)
        key = _key(uri, {name: objects[name] for name in names})
        target = cache_folder() / "models" / key
        if target.is_dir():
            return FetchedModel(path=target)
        elsewhere = {} if weights else _recorded(uri, objects, weights_among(objects, read))
        if elsewhere:
            names, target = without_weights(names), target.with_name(f"{key}-without-weights")
            if target.is_dir():
                return FetchedModel(path=target, weights=elsewhere)
        chosen = {name: objects[name] for name in names}
        if _fetched(uri, chosen, target):
            return FetchedModel(path=target, weights=elsewhere, objects={} if elsewhere else chosen)
    raise StoreError(f"{uri} changed while it was fetched, {_ATTEMPTS} times; wait until its writer is done")


def fetch_hub(name: str, revision: str | None, *, weights: bool = True) -> FetchedModel:
    """The snapshot of a hub id in the hub's own cache, with the files that a model needs.

    Args:
        name: hub id.
        revision: branch, tag or commit.
        weights: whether weights are needed; where not, they are fetched only if the hub does not say what
            their digests are.

    Raises:
        ConfigError: nothing of that name, or no way to fetch it.
        EngineError: shards are missing, or a file of the model is damaged.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # of the HTTP library, whose errors the client lets through
        LocalEntryNotFoundError,
    )

    patterns: list[str] | None = None
    elsewhere: dict[str, WeightFile] = {}
    try:
        try:
            info = HfApi().model_info(name, revision=revision, files_metadata=not weights)
            revision = info.sha or revision

            def read(file: str) -> bytes:
                return Path(hf_hub_download(name, file, revision=revision)).read_bytes()

            files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
            chosen = needed(files, read)
            if not weights:
                elsewhere = _weights_of(name, revision, files, read)
            if elsewhere:
                chosen = without_weights(chosen)
            patterns = [escape(file) for file in chosen]
        except (OSError, HTTPError, LocalEntryNotFoundError) as error:
            if isinstance(error, HfHubHTTPError):
                raise
            log.info("the hub cannot be asked for %s, looking for a copy on this machine", name)
            elsewhere = {}
        path = snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=_OTHER_FORMATS
        )
        return FetchedModel(path=Path(path), weights=elsewhere)
    except (HTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            "model", name, f"a model directory on this machine, or a hub id that can be fetched ({reason})"
        ) from error


def _recorded(uri: str, objects: Objects, names: Sequence[str]) -> dict[str, WeightFile]:
    """What is recorded of the files of weights ``names``; nothing unless all of them are."""
    recorded = recorded_weights(uri, objects)
    return {name: recorded[name] for name in names} if recorded.keys() >= set(names) else {}


def _weights_of(
    name: str, revision: str | None, files: Mapping[str, RepoSibling], read: Callable[[str], bytes]
) -> dict[str, WeightFile]:
    """What the hub says of the files of weights of a model; nothing unless it knows the digests of all.

    Args:
        name: hub id.
        revision: its commit.
        files: of the model, with what the hub keeps of each.
        read: gives the bytes of one of them.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    kept = {file: files[file].lfs for file in weights_among(files, read)}
    dtype = ""
    first = min(kept, default="")
    if first.endswith(".safetensors") and CONFIG in files and not named_dtype(_object(name, read(CONFIG))):
        try:
            header = HfApi().parse_safetensors_file_metadata(name, first, revision=revision)
        except SafetensorsParsingError as error:
            reason = str(error).splitlines()[0]
            raise EngineError(
                f"{first} of {name} at {revision} is cut, or no safetensors file ({reason}); name a revision "
                "whose files are whole"
            ) from error
        dtype = header.tensors[min(header.tensors)].dtype if header.tensors else ""
    stored = {
        file: WeightFile(size=lfs.size, sha256=lfs.sha256, dtype=dtype) for file, lfs in kept.items() if lfs
    }
    return stored if len(stored) == len(kept) else {}


def _object(name: str, body: bytes) -> JsonObject:
    """The config of the model ``name``."""
    try:
        config = json.loads(body)
    except ValueError as error:
        raise EngineError(f"{CONFIG} of {name} is no JSON ({error}); name another revision") from error
    if not isinstance(config, dict):
        raise EngineError(f"{CONFIG} of {name} holds a {type(config).__name__}, expected a JSON object")
    return config


def _read(uri: str, name: str) -> bytes:
    return store_for(uri).read(join(uri, name))


def _objects(uri: str) -> dict[str, ObjectInfo]:
    """The objects below ``uri`` by name, of which none leaves the folder."""
    objects = objects_below(uri)
    for name in objects:
        inside(cache_folder(), name)
    return objects


def _key(uri: str, objects: Objects) -> str:
    facts = [[name, entry.size, entry.version] for name, entry in sorted(objects.items())]
    return digest([uri.rstrip("/"), facts])[:32]


def _fetched(uri: str, objects: Objects, target: Path) -> bool:
    """Fetch ``objects`` to ``target``; False when they were changed meanwhile, and nothing stands there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target.parent)
    folder = Path(tempfile.mkdtemp(prefix=_FETCHING, dir=target.parent))
    try:
        _download(uri, objects, folder / "whole")
        now = _objects(uri)
        if any(now.get(name) != entry for name, entry in objects.items()):
            return False
        _publish(folder / "whole", target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return True


def _download(uri: str, names: Collection[str], folder: Path) -> None:
    store = store_for(uri)
    downloads = [(join(uri, name), inside(folder, name)) for name in names]

    def fetch(uri: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        store.fetch(uri, target.parent).replace(target)

    with ThreadPoolExecutor(_THREADS, "fetch-model") as pool:
        list(pool.map(lambda each: fetch(*each), downloads))


def _publish(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():  # else another one was first, with the same bytes
            raise


def _remove_abandoned(parent: Path) -> None:
    """Remove what fetches that were killed have left."""
    for left in parent.glob(f"{_FETCHING}*"):
        if time.time() - left.stat().st_mtime > _ABANDONED:
            shutil.rmtree(left, ignore_errors=True)
