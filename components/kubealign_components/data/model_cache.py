"""Local copies of models that lie elsewhere: one folder for all of them, each published whole."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from pathlib import Path

from kubealign_components.data.fingerprint import digest
from kubealign_components.data.model_files import needed
from kubealign_components.errors import ConfigError, StoreError
from kubealign_components.store import ObjectInfo, inside, join, name_below, store_for

log = logging.getLogger(__name__)

CACHE = "KUBEALIGN_CACHE"
"""Environment variable: the folder for everything that is fetched once."""
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


def cache_folder() -> Path:
    """Where fetched files are kept: ``KUBEALIGN_CACHE``, else ``~/.cache/kubealign``."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "kubealign")


def fetch_prefix(uri: str, marker: str, field: str) -> Path:
    """A local copy of what a model needs of the objects below ``uri``, among them ``marker``.

    A copy is kept by name, size and version (generation or ETag) of its objects, so that a model which is
    written anew is fetched anew. It is made in a folder of its own and renamed when it is whole: whoever
    fetches the same at the same time does no harm.

    Args:
        uri: folder in an object store.
        marker: the file that a model of this kind has.
        field: the setting that errors name.

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
        names = needed(objects, lambda name: store_for(uri).read(join(uri, name)))
        chosen = {name: objects[name] for name in names}
        target = cache_folder() / "models" / _key(uri, chosen)
        if target.is_dir() or _fetched(uri, chosen, target):
            return target
    raise StoreError(f"{uri} changed while it was fetched, {_ATTEMPTS} times; wait until its writer is done")


def fetch_hub(name: str, revision: str | None) -> Path:
    """The snapshot of a hub id in the hub's own cache, with the files that a model needs.

    Raises:
        ConfigError: nothing of that name, or no way to fetch it.
        EngineError: shards are missing.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns: list[str] | None = None
    try:
        try:
            info = HfApi().model_info(name, revision=revision)
            revision = info.sha or revision
            names = [sibling.rfilename for sibling in info.siblings or ()]
            chosen = needed(names, lambda n: Path(hf_hub_download(name, n, revision=revision)).read_bytes())
            patterns = [escape(file) for file in chosen]
        except (OSError, LocalEntryNotFoundError) as error:
            if isinstance(error, HfHubHTTPError):
                raise
            log.info("the hub cannot be asked for %s, looking for a copy on this machine", name)
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, ignore_patterns=_OTHER_FORMATS
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            "model", name, f"a model directory on this machine, or a hub id that can be fetched ({reason})"
        ) from error


def _objects(uri: str) -> dict[str, ObjectInfo]:
    """The objects below ``uri`` by name, of which none leaves the folder."""
    objects = {name_below(entry.uri, uri): entry for entry in store_for(uri).list(uri)}
    for name in objects:
        inside(cache_folder(), name)
    return objects


def _key(uri: str, objects: Mapping[str, ObjectInfo]) -> str:
    facts = [[name, entry.size, entry.version] for name, entry in sorted(objects.items())]
    return digest([uri.rstrip("/"), facts])[:32]


def _fetched(uri: str, objects: Mapping[str, ObjectInfo], target: Path) -> bool:
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
