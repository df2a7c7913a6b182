"""Where a trained model goes, what stands there already, and where its checkpoints lie."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import Provenance, Step, digest, file_digest
from kubealign_components.data.schemas import MODEL
from kubealign_components.data.shards import digest_at
from kubealign_components.data.stats import Stats
from kubealign_components.data.weight_records import objects_below, record_weights
from kubealign_components.errors import EngineError, NotFound
from kubealign_components.store import join, store_for

STOP_AFTER = "stop_after"
"""What a recipe calls the share of its steps that a training stopped after; a whole one does not say it."""


def publish_model(
    folder: Path,
    output: str,
    provenance: Mapping[str, object],
    steps: Sequence[tuple[int, Mapping[str, object]]],
    stats: Stats,
    extra: Mapping[str, object],
) -> None:
    """Publish a trained model: its files, then its log as rows, then the manifest that makes it one.

    An attempt that was killed in the middle leaves nothing that counts, and the next one goes over it.

    Args:
        folder: the model's files.
        output: URI of the model to make.
        provenance: the members of a :class:`Provenance`, as they come out of JSON.
        steps: ``(step, metrics)``.
        stats: the counts.
        extra: what else to say of the model; the digests of its files are added.
    """
    files = publish_folder(folder, output)
    record_weights(output, objects_below(output), folder, files)
    with DatasetWriter(output, MODEL, provenance_of(provenance)) as writer:
        writer.write_rows([{"step": step, "metrics": json.dumps(metrics)} for step, metrics in steps])
        writer.commit(stats, {"files": files, **extra})


def provenance_of(members: Mapping[str, Any]) -> Provenance:
    """A :class:`Provenance` from its members, as they come out of JSON."""
    return Provenance(**{**members, "parents": tuple(members["parents"])})


def publish_folder(folder: Path, output: str) -> dict[str, str]:
    """Publish every file below ``folder`` under ``output``; SHA-256 by name.

    A file that stands there already and differs is of an attempt that never finished, and goes.
    """
    store = store_for(output)
    digests = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        digests[name] = file_digest(path)
        uri = join(output, name)
        if not store.publish_file(path, uri) and digest_at(uri) != digests[name]:
            store.delete(uri)
            store.publish_file(path, uri)
    return digests


def run_folder(work: str, stage: str, provenance: Provenance) -> str:
    """What a run keeps in the work prefix ``work`` lies below this folder, by what is trained."""
    return join(work, stage, provenance.fingerprint)


def checkpoint_uri(work: str, stage: str, provenance: Provenance, layout: str) -> str:
    """Where a run's checkpoints lie: by what is trained, and by how its state is laid out.

    Args:
        work: the work prefix.
        stage: name of the stage.
        provenance: of the model to make.
        layout: what else a checkpoint fits to, such as the strategy.
    """
    return join(run_folder(work, stage, provenance), layout)


def whole_training(step: Step) -> str:
    """Fingerprint of the whole training that the model of ``step`` is a part of, and that its checkpoints are
    kept by: of one that did not stop before its end, the model's own."""
    params = {name: value for name, value in step["params"].items() if name != STOP_AFTER}
    return digest(step | {"params": params})


def finished_run(output: str, provenance: Provenance) -> Stats | None:
    """The counts of this very model if it stands at ``output`` already."""
    try:
        standing = Dataset.open(output, MODEL).manifest
    except NotFound:
        return None
    if standing.fingerprint != provenance.fingerprint:
        return None
    return Stats.from_json(standing.stats)


def published_run(output: str, provenance: Provenance) -> Stats:
    """The counts of the model that the training processes published at ``output``.

    Raises:
        EngineError: they ended well, and it is not there.
    """
    stats = finished_run(output, provenance)
    if stats is None:
        raise EngineError(
            f"the training processes ended well, but {output} does not hold the model that they were to "
            "publish; does every node write to the same store?"
        )
    return stats
