"""Where a trained model goes, what stands there already, and where its checkpoints lie."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from pathlib import Path

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import Provenance
from kubealign_components.data.schemas import MODEL
from kubealign_components.data.stats import Stats
from kubealign_components.errors import NotFound
from kubealign_components.store import join, store_for


def publish_folder(folder: Path, output: str) -> dict[str, str]:
    """Publish every file below ``folder`` under ``output``; SHA-256 by name.

    A file that stands there already and differs is of an attempt that never finished, and goes.
    """
    store = store_for(output)
    digests = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        digests[name] = _sha256(path)
        uri = join(output, name)
        if not store.publish_file(path, uri) and not _same(uri, digests[name]):
            store.delete(uri)
            store.publish_file(path, uri)
    return digests


def checkpoint_uri(work: str, stage: str, provenance: Provenance, layout: str) -> str:
    """Where a run's checkpoints lie: by what is trained, and by how its state is laid out.

    Args:
        work: the work prefix.
        stage: name of the stage.
        provenance: of the model to make.
        layout: what else a checkpoint fits to, such as strategy and number of processes.
    """
    return join(work, stage, provenance.fingerprint, layout)


def finished_run(output: str, provenance: Provenance) -> Stats | None:
    """The counts of this very model if it stands at ``output`` already."""
    try:
        standing = Dataset.open(output, MODEL).manifest
    except NotFound:
        return None
    if standing.fingerprint != provenance.fingerprint:
        return None
    kept = standing.stats
    return Stats(
        rows_in=kept["rows_in"],
        rows_out=kept["rows_out"],
        dropped=Counter(kept["dropped"]),
        counts=Counter(kept["counts"]),
        numbers=kept["numbers"],
    )


def _same(uri: str, sha256: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="kubealign-read-") as folder:
        return _sha256(store_for(uri).fetch(uri, Path(folder))) == sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
