"""What may go of an output folder: runs that came to nothing, old models, rows that no kept run refers to,
and what killed processes left."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubealign.local.runs import DONE, FAILED, RUNNING, STOPPED, WORK, RunInfo, runs_below, size_of
from kubealign.local.scratch import dead_scratch, remove, unfinished
from kubealign_components.data.finished import FINISHED, recorded_output
from kubealign_components.data.leftovers import stale
from kubealign_components.data.manifest import MANIFEST, Manifest
from kubealign_components.errors import CorruptDataset
from kubealign_components.stages import CONFIGS
from kubealign_components.store import scheme_of
from kubealign_components.training.publishing import whole_training
from kubealign_pipelines.stage_resources import TRAINING

PARTS = "parts"
"""Folder of a stage's finished chunks in the work prefix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """Something that may go."""

    path: Path
    reason: str
    size: int
    """Bytes on the disk."""

    @property
    def uri(self) -> str:
        """Its path."""
        return str(self.path)

    def remove(self) -> None:
        """Let it go."""
        remove(self.path)


def garbage(output: Path, *, models: int, keep_failed: bool = False) -> list[Garbage]:
    """What may go of ``output``; nothing that a run under way has or may look up.

    Args:
        output: folder of the runs.
        models: how many of the newest runs keep their models.
        keep_failed: keep runs that failed or were killed, and the rows that they made, to go on with them.

    Raises:
        NotFound: no output folder.
    """
    runs = runs_below(output)
    ended = [run for run in runs if run.state != RUNNING]
    failed = [run for run in ended if run.state in (FAILED, STOPPED) and not keep_failed]
    kept = [run for run in ended if run not in failed]
    garbage = [(run.folder.path, f"the run {run.state}") for run in failed]
    with_models = [run for run in kept if run.models]
    garbage += [(path, "an older run's model") for run in with_models[models:] for path in run.models]
    # What a run under way, or one that is to go on, refers to is not yet known.
    if all(run.state == DONE for run in runs if run not in failed):
        garbage += [
            (path, "no kept run refers to it")
            for path in _unreferenced(output / WORK, kept, with_models[:models])
        ]
        going = [path for path, _ in garbage]
        garbage += [(path, "what it points at is gone") for path in _dead_records(output / WORK, going)]
        taken = {path for path, _ in garbage}
        left = [(path, "empty, or half written by a killed process") for path in unfinished(output / WORK)]
        left += [(Path(one.uri), one.reason) for one in stale(str(output / WORK), older=0) if not one.half]
        garbage += [(path, why) for path, why in left if taken.isdisjoint({path, *path.parents})]
    garbage += [(path, "temporary files of a killed run") for path in dead_scratch()]
    seen: set[tuple[int, int]] = set()
    return [Garbage(path=path, reason=reason, size=size_of([path], seen)) for path, reason in garbage]


def _unreferenced(work: Path, kept: Sequence[RunInfo], with_models: Sequence[RunInfo]) -> Iterator[Path]:
    """Parts and slices below ``work`` of what no run in ``kept`` has in its lineage, and checkpoints of
    models that no run in ``with_models`` made."""
    referred = {name for run in kept for path in _manifests(run) for name in _read(path).recipe}
    trained = {
        name for run in with_models for path in run.models for name in _trainings(_read(path / MANIFEST))
    }
    for stage in sorted(CONFIGS):
        # What a benchmark has measured lies in files: it is small, and a policy's is every run's on it.
        folders = sorted(path for path in (work / stage).glob("*") if path.is_dir())
        parts = {part: _slices_of(part, referred) for part in sorted((work / stage / PARTS).glob("*"))}
        yield from (part for part, slices in parts.items() if slices is None)
        needed = trained if stage in TRAINING else {PARTS, *parts.values()}
        yield from (folder for folder in folders if folder.name not in needed)


def _dead_records(work: Path, going: Sequence[Path]) -> Iterator[Path]:
    """Records of finished outputs below ``work`` that are not there any more once ``going`` has gone."""
    for record in sorted((work / FINISHED).glob("*/*/*.json")):
        try:
            uri = recorded_output(str(record), str(json.loads(record.read_bytes())["output"]))
        except (OSError, ValueError, KeyError, TypeError):
            yield record
            continue
        if scheme_of(uri) != "file":
            continue
        output = Path(uri).resolve()
        if not (output / MANIFEST).is_file() or any(output.is_relative_to(gone.resolve()) for gone in going):
            yield record


def _trainings(model: Manifest) -> tuple[str, str]:
    """What a training is called that made ``model``, and the whole one that goes on from where it stopped."""
    return model.fingerprint, whole_training(model.provenance.step)


def _manifests(run: RunInfo) -> Iterator[Path]:
    return run.folder.artifacts.rglob(MANIFEST)


def _slices_of(part: Path, referred: Collection[str]) -> str | None:
    """The folder of the slices that ``part`` was made of; None where nothing refers to it, or none can take
    it."""
    try:
        manifest = _read(part / MANIFEST)
    except (OSError, CorruptDataset):
        return None
    return str(manifest.extra.get("slices", "")) if manifest.fingerprint in referred else None


def _read(path: Path) -> Manifest:
    return Manifest.from_json(path.read_bytes(), str(path))
