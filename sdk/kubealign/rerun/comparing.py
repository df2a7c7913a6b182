"""Whether what was made again is the same."""

from __future__ import annotations

from pathlib import Path

from kubealign.errors import RunFailed
from kubealign.local.results import Results
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import digest
from kubealign_components.data.manifest import Manifest
from kubealign_components.errors import NotFound


def check(original: Dataset, results: Results) -> list[str]:
    """What is not the same about ``original`` and what a rerun made: nothing when all of it is.

    Where a pipeline has a stage twice, the output is meant that comes nearest.

    Raises:
        RunFailed: the rerun made nothing of the same stage.
    """
    stage = original.manifest.provenance.step["stage"]
    kind = (original.manifest.schema, stage)
    alike = [
        made
        for made in _made(results)
        if (made.manifest.schema, made.manifest.provenance.step["stage"]) == kind
    ]
    if not alike:
        raise RunFailed("rerun", f"{results.folder} holds nothing made by {stage!r} to compare with")
    same = [made for made in alike if made.manifest.fingerprint == original.manifest.fingerprint]
    return _apart(original, (same or alike)[0])


def rerun_folder(output: Path, manifest: Manifest) -> Path:
    """Where a rerun goes: a folder of its own, so that nothing of an earlier run is taken for made again."""
    return output / f"rerun-{manifest.fingerprint[:12]}"


def _made(results: Results) -> list[Dataset]:
    datasets = []
    for output in results.outputs:
        try:
            datasets.append(Dataset.open(str(output.path), allow_empty=True))
        except NotFound:
            continue
    return datasets


def _apart(original: Dataset, made: Dataset) -> list[str]:
    ours, theirs = original.manifest, made.manifest
    differences = []
    if ours.fingerprint != theirs.fingerprint:
        changed = [s["stage"] for name, s in theirs.recipe.items() if name not in ours.recipe]
        differences.append(
            f"fingerprint {theirs.fingerprint[:12]}, it was {ours.fingerprint[:12]}: {changed}"
        )
    files, others = (m.extra.get("files", {}) for m in (ours, theirs))
    differences += [
        f"file {name} differs" for name in sorted(files | others) if files.get(name) != others.get(name)
    ]
    if not files and _rows(original) != _rows(made):
        differences.append("rows differ")
    return differences


def _rows(dataset: Dataset) -> str:
    return digest([digest(repr(row)) for row in dataset.iter_rows()])
