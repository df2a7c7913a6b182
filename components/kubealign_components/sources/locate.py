"""Where a source's files are: one file, a folder or prefix, a saved dataset, or the Hugging Face hub."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kubealign_components.data.front_matter import CARD
from kubealign_components.data.licenses import license_in_card
from kubealign_components.data.manifest import MANIFEST
from kubealign_components.errors import ConfigError, NotFound, StoreError
from kubealign_components.named_paths import FOLDER, kind_at, named_path
from kubealign_components.sources.bytes_of import COMPRESSIONS
from kubealign_components.sources.file_readers import READERS, is_readable
from kubealign_components.sources.splits import DEFAULT_SPLIT, splits_of, unread_of
from kubealign_components.store import scheme_of, store_for

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One file of rows."""

    name: str
    """Relative to the source: never a path of this machine."""
    size: int
    """Bytes; 0 when it is not known before the file is fetched."""
    fetch: Callable[[Path], Path]
    """The file on this machine; one that has to be moved here goes into the given folder."""
    version: str = ""
    """Place and version of a stored object, which change with its bytes; empty where a store has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFiles:
    """The files that make up the split of a source, in order."""

    files: tuple[SourceFile, ...]
    hub: tuple[str, str] | None = None
    """Hub id and commit, which say what the files hold; other files are identified by their bytes."""
    license: str = ""
    """What the card of the folder says; empty where it says nothing."""
    unread: tuple[str, ...] = ()
    """Files of rows that are in no split, although no card says what the splits are."""


Listing = Mapping[str, SourceFile]


def find_files(
    uri: str, *, split: str, revision: str | None = None, subset: str | None = None
) -> SourceFiles:
    """The files of ``split`` of what lies at ``uri``.

    Args:
        uri: a file or folder, local, ``gs://`` or ``s3://``, or the hub id of a dataset.
        split: train, validation, test or another name that the source uses.
        revision: branch, tag or commit of a hub id.
        subset: which configuration of the dataset card to use.

    Raises:
        ConfigError: nothing there, no file of rows, or no such split; says what was looked for.
    """
    listing, hub = _stored(uri), None
    if listing is None:
        listing, commit = _hub_listing(uri, revision)
        hub = (uri, commit)
    elif len(listing) == 1 and "" in listing:
        return SourceFiles(files=(_single(uri, listing[""], split),))
    if not any(map(is_readable, listing)):
        raise ConfigError("uri", uri, f"a folder with files of rows ({_suffixes()}); found {_some(listing)}")
    _refuse_deleted(uri, listing)
    card = _text(listing, CARD)
    license = license_in_card(card)
    saved = _saved_dataset(listing, uri, split)
    if saved is not None:
        return SourceFiles(files=tuple(saved), hub=hub, license=license)
    splits = splits_of(listing, card, subset)
    if not splits.get(split):
        raise ConfigError(
            "split", split, f"a split of {uri}, which has {', '.join(sorted(splits)) or 'none'}"
        )
    files = tuple(listing[name] for name in splits[split])
    return SourceFiles(files=files, hub=hub, license=license, unread=unread_of(listing, splits, card))


def _stored(uri: str) -> dict[str, SourceFile] | None:
    """Files by name below a path or URI, one named ``""`` for a file itself; None for a hub id."""
    local = scheme_of(uri) == "file"
    path = str(named_path(uri)) if local else uri.rstrip("/")
    store = store_for(path)
    with suppress(NotFound):
        entry = store.info(path)
        return {"": _stored_file(path, path.rsplit("/", 1)[-1], entry.size, entry.version)}
    kind = kind_at(Path(path)) if local else ""
    prefix = path.rstrip("/") + "/"
    objects = list(store.list(path)) if not local or kind == FOLDER else []
    if objects:
        named = [(entry.uri.removeprefix(prefix), entry) for entry in objects]
        return {name: _stored_file(entry.uri, name, entry.size, entry.version) for name, entry in named}
    if local and not kind and _HUB_ID.fullmatch(uri) and not is_readable(uri):
        return None
    content = "this folder is empty" if kind == FOLDER else "there is nothing at this place"
    if set("*?[") & set(uri) and kind != FOLDER:
        content = "patterns are not read: name the folder, or each file as a source"
    raise ConfigError("uri", uri, f"a file of rows ({_suffixes()}), a folder of them or a hub id; {content}")


def _stored_file(uri: str, name: str, size: int, version: str = "") -> SourceFile:
    def fetch(folder: Path) -> Path:
        return store_for(uri).fetch(uri, folder)

    return SourceFile(name=name, size=size, fetch=fetch, version=f"{uri} {version}" if version else "")


def _single(uri: str, file: SourceFile, split: str) -> SourceFile:
    """A source of one file, which is read whole: it is the split that its name says, and ``train``."""
    if not is_readable(file.name):
        packed = ", ".join(COMPRESSIONS)
        raise ConfigError("uri", uri, f"a file of rows: {_suffixes()}, text also as {packed}")
    splits = dict.fromkeys([DEFAULT_SPLIT, *splits_of([file.name])])
    if split not in splits:
        raise ConfigError(
            "split",
            split,
            f"{' or '.join(splits)}: {uri} is one file and is read whole; name the file or folder that has "
            "the split",
        )
    return file


def _saved_dataset(listing: Listing, uri: str, split: str) -> list[SourceFile] | None:
    """The files of a dataset that ``save_to_disk`` wrote; None when the folder holds another thing."""
    splits = _record(listing, "dataset_dict.json", uri).get("splits")
    if splits is not None and not (isinstance(splits, list) and all(isinstance(s, str) for s in splits)):
        raise ConfigError("uri", uri, 'a saved dataset, whose dataset_dict.json has {"splits": [names]}')
    if splits is None and "state.json" not in listing:
        return None
    folder = ""
    if splits is not None:
        if split not in splits:
            raise ConfigError("split", split, f"a split of {uri}, which has {', '.join(splits) or 'none'}")
        folder = f"{split}/"
    state = _record(listing, f"{folder}state.json", uri)
    recorded = str(state.get("_split") or "train")
    if splits is None and split != recorded:
        raise ConfigError("split", split, f"the split of {uri}, which is {recorded}")
    listed = state.get("_data_files", [])
    files = [e.get("filename") for e in listed if isinstance(e, dict)] if isinstance(listed, list) else [None]
    if not all(isinstance(name, str) for name in files):
        raise ConfigError(
            "uri", uri, 'a saved dataset, whose state.json has {"_data_files": [{"filename": …}]}'
        )
    names = [f"{folder}{name}" for name in files]
    missing = [name for name in names if name not in listing]
    if missing or not names:
        raise ConfigError(
            "uri", uri, f"a whole saved dataset; it lacks {_some(missing or [folder + 'state.json'])}"
        )
    return [listing[name] for name in names]


def _record(listing: Listing, name: str, uri: str) -> dict[str, object]:
    """A JSON object that ``save_to_disk`` wrote; empty when the file is not there."""
    try:
        value = json.loads(_text(listing, name) or "{}")
    except (ValueError, RecursionError) as error:
        raise ConfigError("uri", uri, f"a saved dataset with a whole {name} ({error})") from error
    if not isinstance(value, dict):
        raise ConfigError("uri", uri, f"a saved dataset, whose {name} is an object")
    return value


def _hub_listing(name: str, revision: str | None) -> tuple[dict[str, SourceFile], str]:
    """The files of a hub dataset and the commit they are of; from the local cache when offline."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        # Fetches little, but resolves the revision and keeps the listing of its commit in the cache.
        folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=[CARD]))
    except Exception as error:  # the hub client lets the errors of its HTTP library through
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            "uri",
            name,
            "a path (no such file or folder is here), or a dataset of the Hugging Face hub at revision "
            f"{revision or 'main'} ({reason})",
        ) from error
    commit = folder.name
    try:
        tree = get_cached_repo_tree(name, repo_type="dataset", revision=commit)
        sizes = {str(file.path): int(file.size) for file in tree}
    except CachedRepoTreeNotFoundError:  # a cache that another tool filled
        sizes = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    return {
        n: SourceFile(name=n, size=z, fetch=_hub_fetch(name, n, commit)) for n, z in sizes.items()
    }, commit


def _hub_fetch(name: str, file: str, commit: str) -> Callable[[Path], Path]:
    def fetch(folder: Path) -> Path:  # noqa: ARG001
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(name, file, repo_type="dataset", revision=commit))
        except Exception as error:  # the hub client lets the errors of its HTTP library through
            raise StoreError(f"cannot fetch {file} of {name} at {commit} from the hub: {error}") from error

    return fetch


def _refuse_deleted(uri: str, listing: Listing) -> None:
    """Raise ConfigError for a dataset of this project whose files hold rows that are deleted in it."""
    try:
        manifest = json.loads(_text(listing, MANIFEST) or "null")
    except ValueError:
        return  # of another tool
    shards = manifest.get("shards") if isinstance(manifest, dict) else None
    if isinstance(shards, list) and any(isinstance(one, dict) and one.get("deleted") for one in shards):
        without = "a folder whose files have no deleted rows: `kubealign export --format parquet` writes one"
        raise ConfigError("uri", uri, without)


def _text(listing: Listing, name: str) -> str | None:
    """The text of a small file of the listing, or None when it is not there."""
    if name not in listing:
        return None
    with tempfile.TemporaryDirectory(prefix="kubealign-card-") as folder:
        return listing[name].fetch(Path(folder)).read_text(errors="replace")


def _suffixes() -> str:
    return ", ".join(sorted(READERS))


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(listed[:5]) + more if listed else "none"
