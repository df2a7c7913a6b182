"""What a run will find outside of itself, in a word: the same word means the same data and models.

It is told from listings and commits, no file is read for it. Where it cannot be told the word is one that
never comes again, and nobody takes a result for one of the same data.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from kubealign_components.data.fingerprint import digest
from kubealign_components.store import scheme_of, store_for
from kubealign_pipelines.checking.models import models_of
from kubealign_pipelines.checking.reach import in_time
from kubealign_pipelines.checking.stages import LATER, Checked

Facts = list[list[str | int]]
"""Of each file its name, its size and its version; of a repository of the hub its commit."""
WORK = "work"
"""The parameter of the one place that runs write to."""


def identify(checked: Checked) -> str:
    """A digest of what lies at every place that the settings of a run name."""
    facts_of: dict[str, Facts] = {}
    for kind, name, revision in sorted(set(_inputs(checked))):
        facts = in_time(partial(_facts, kind, name, revision))
        if isinstance(facts, str):
            return f"not known: {name} ({facts}), {uuid.uuid4().hex}"
        facts_of[f"{kind} {name} {revision}"] = facts
    return digest(facts_of)


def _inputs(checked: Checked) -> Iterator[tuple[str, str, str]]:
    """Kind of place (stored, or dataset or model of the hub), name and revision of all that a run reads."""
    yield from _stored_uris({name: value for name, value in checked.values.items() if name != WORK})
    for stage in checked.stages:
        for source in getattr(stage.config, "sources", ()):
            if not _is_stored(source.uri):
                yield "dataset", source.uri, source.revision or ""
        reference = getattr(stage.config, "reference", "")
        if reference and reference != LATER and not _is_stored(reference):
            yield "model", reference, ""
    for model in models_of(checked):
        if model.name and model.name != LATER and not _is_stored(model.name):
            yield "model", model.name, model.revision or ""


def _stored_uris(value: object) -> Iterator[tuple[str, str, str]]:
    """Every path and URI in a setting, wherever it stands."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _stored_uris(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _stored_uris(item)
    elif isinstance(value, str) and _is_stored(value):
        yield "stored", value, ""


def _is_stored(name: str) -> bool:
    return name.startswith(("/", "file://")) or scheme_of(name) in ("gs", "s3", "minio")


def _facts(kind: str, name: str, revision: str) -> Facts:
    return _listed(name) if kind == "stored" else [[_commit(kind, name, revision)]]


def _listed(uri: str) -> Facts:
    root = uri.removeprefix("file://").rstrip("/")
    store = store_for(root)
    entries = list(store.list(root))
    entries = entries or [store.info(root)]
    return [[entry.uri, entry.size, entry.version or Path(entry.uri).stat().st_mtime_ns] for entry in entries]


def _commit(kind: str, name: str, revision: str) -> str:
    """The commit that a name of the hub stands for now; where there is no network, the one that is cached."""
    from huggingface_hub import snapshot_download

    little = {"dataset": "README.md", "model": "config.json"}[kind]
    folder = snapshot_download(name, repo_type=kind, revision=revision or None, allow_patterns=[little])
    return Path(folder).name
