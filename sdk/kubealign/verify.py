"""A dataset or model held to its manifest, byte for byte, and every ancestor that is still there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kubealign.lineage import located
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.licenses import joined, licenses
from kubealign_components.data.manifest import MANIFEST
from kubealign_components.data.shards import digest_at
from kubealign_components.errors import CorruptDataset, KubeAlignError, NotFound
from kubealign_components.store import join, store_for

GOOD, GONE, DAMAGED = "good", "gone", "damaged"
"""States of what was looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """One dataset or model, and what became of it."""

    uri: str
    stage: str
    """That made it; empty where its manifest cannot be read."""
    state: str
    rows: int = 0
    files: int = 0
    """Whose digests were recomputed, the manifest included."""
    license: str = ""
    """All that it may be used under, as its recipe has them."""
    reason: str = ""
    """What is damaged, and how."""


def verify(uri: str) -> Iterator[Verified]:
    """Recompute every digest and count of what lies at ``uri`` and of its ancestors, nearest first.

    The manifest's own digest and those of its recipe, the SHA-256 of every shard and of every file of a
    model, and the rows of every shard. Of an ancestor also that it is the one which was taken.
    """
    seen: set[str] = set()
    pending = [(uri, "")]
    while pending:
        location, fingerprint = pending.pop(0)
        if location in seen:
            continue
        seen.add(location)
        try:
            dataset = Dataset.open(location, allow_empty=True)
        except NotFound as error:
            yield Verified(uri=location, stage="", state=GONE, reason=str(error))
            continue
        except CorruptDataset as error:
            yield Verified(uri=location, stage="", state=DAMAGED, reason=str(error))
            continue
        yield _verified(dataset, fingerprint)
        pending += [(located(each, location), each["fingerprint"]) for each in dataset.manifest.parents]


def _verified(dataset: Dataset, fingerprint: str) -> Verified:
    manifest = dataset.manifest
    files = dict(manifest.extra.get("files", {}))
    reason = ""
    try:
        _check_text(dataset)
        if fingerprint and manifest.fingerprint != fingerprint:
            raise CorruptDataset(
                f"{dataset.uri}: {manifest.fingerprint[:12]} is not the ancestor that was taken"
            )
        dataset.verify()
        for name, sha256 in files.items():
            _check_file(join(dataset.uri, name), str(sha256))
    except KubeAlignError as error:
        reason = str(error)
    return Verified(
        uri=dataset.uri,
        stage=str(manifest.provenance.step["stage"]),
        state=DAMAGED if reason else GOOD,
        rows=manifest.rows,
        license=joined(licenses(manifest)),
        files=1 + len(manifest.shards) + len(files),
        reason=reason,
    )


def _check_text(dataset: Dataset) -> None:
    """Hold the manifest's text, of which the digest covers what it says, to how KubeAlign writes it."""
    uri = join(dataset.uri, MANIFEST)
    text = store_for(uri).read(uri).decode()
    body, comma, signature = text.rpartition(',\n "signature": "')
    unsigned = f"{body}\n}}\n" if comma and signature.endswith('"\n}\n') else text
    if unsigned != dataset.manifest.to_json(signed=False):
        raise CorruptDataset(f"{uri}: not as KubeAlign wrote it; make the dataset again")


def _check_file(uri: str, sha256: str) -> None:
    actual = digest_at(uri)
    if actual != sha256:
        raise CorruptDataset(f"{uri}: SHA-256 {actual[:12]}, the manifest says {sha256[:12]}")
