"""What may go of an output folder: runs that came to nothing, old models, rows that no kept run refers to,
and what killed processes left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubealign.local.runs import DONE, FAILED, RUNNING, STOPPED, WORK, RunInfo, runs_below, size_of
from kubealign.local.scratch import dead_scratch, remove, unfinished
from kubealign_components.data.fingerprint import digest
from kubealign_components.data.manifest import MANIFEST, Manifest
from kubealign_components.errors import CorruptDataset
from kubealign_components.stages import CONFIGS
from kubealign_pipelines.resources import TRAINING

PARTS = "parts"
_KEY = 16
"""Characters of a stage's key in the name of the folder of its slices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """Something that may go."""

    path: Path
    reason: str
    size: int
    """Bytes on the disk."""

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
    wanted = [(run.folder.path, f"the run {run.state}") for run in failed]
    with_models = [run for run in kept if run.models]
    wanted += [(path, "an older run's model") for run in with_models[models:] for path in run.models]
    # What a run under way, or one that is to go on, refers to is not yet known.
    if all(run.state == DONE for run in runs if run not in failed):
        wanted += [
            (path, "no kept run refers to it")
            for path in _unreferenced(output / WORK, kept, with_models[:models])
        ]
        taken = {path for path, _ in wanted}
        left = [path for path in unfinished(output / WORK) if taken.isdisjoint({path, *path.parents})]
        wanted += [(path, "left by a killed process") for path in left]
    wanted += [(path, "left by a killed process") for path in dead_scratch()]
    seen: set[tuple[int, int]] = set()
    return [Garbage(path=path, reason=reason, size=size_of([path], seen)) for path, reason in wanted]


def _unreferenced(work: Path, kept: Sequence[RunInfo], with_models: Sequence[RunInfo]) -> Iterator[Path]:
    """Slices and parts below ``work`` that no run in ``kept`` has in its lineage, and checkpoints of models
    that no run in ``with_models`` made."""
    keys, fingerprints = _referred(kept)
    models = [path / MANIFEST for run in with_models for path in run.models]
    trained = {_read(path).fingerprint for path in models}
    for stage in sorted(CONFIGS):
        for place in sorted((work / stage).glob("*")):
            if place.name == PARTS:
                yield from (part for part in sorted(place.glob("*")) if _of_none(part, fingerprints))
            elif place.name not in (trained if stage in TRAINING else keys):
                yield place


def _referred(runs: Sequence[RunInfo]) -> tuple[set[str], set[str]]:
    """Of all steps in the lineage of what ``runs`` made: keys of their rows, and fingerprints."""
    keys: set[str] = set()
    fingerprints: set[str] = set()
    for run in runs:
        for path in run.folder.artifacts.rglob(MANIFEST):
            recipe = _read(path).recipe
            fingerprints |= recipe.keys()
            steps = ({k: v for k, v in step.items() if k != "inputs"} for step in recipe.values())
            keys |= {digest(step)[:_KEY] for step in steps}
    return keys, fingerprints


def _of_none(part: Path, fingerprints: set[str]) -> bool:
    try:
        return _read(part / MANIFEST).fingerprint not in fingerprints
    except (OSError, CorruptDataset):
        return True  # no run can take it


def _read(path: Path) -> Manifest:
    return Manifest.from_json(path.read_bytes(), str(path))
