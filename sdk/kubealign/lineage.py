"""Lineage on the command line: from a dataset, model or run back to the data it came from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from rich.markup import escape
from rich.tree import Tree

from kubealign.local.runs import RunInfo, find_run
from kubealign_components.data.benchmark_rows import BENCHMARK
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.licenses import joined, licenses
from kubealign_components.data.lineage import LineageStep, describe, steps_of, to_json
from kubealign_components.data.manifest import MANIFEST, Manifest
from kubealign_components.errors import CorruptDataset, KubeAlignError, NotFound, StoreError
from kubealign_components.named_paths import named_path
from kubealign_components.printable import shortened
from kubealign_components.store import scheme_of

MOUNTS = {"/gcs/": "gs://", "/s3/": "s3://", "/minio/": "minio://"}
"""Where KFP's launcher shows a pod the objects of each scheme; manifests of old name ancestors so."""
_DIGEST = re.compile("[0-9a-f]{40,64}")

LONGEST = 200
"""Characters of a setting that a line of the tree shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ancestor:
    """A dataset that a manifest names as a parent, and whether it is still what it was."""

    name: str
    uri: str
    fingerprint: str
    schema: str
    state: str
    """``found``, ``gone``, or ``changed`` with what is there now."""


def open_output(uri: str) -> Dataset:
    """The dataset or model at ``uri``, or the last one of a run, or of the newest run of an output folder;
    recipe and fingerprint are checked.

    Raises:
        NotFound: nothing of ours is there.
        CorruptDataset: a manifest whose recipe does not match its fingerprints.
    """
    uri = uri.removesuffix(f"/{MANIFEST}")
    run = find_run(uri)
    return Dataset.open(uri, allow_empty=True) if run is None else last_made(run)


def last_made(run: RunInfo) -> Dataset:
    """The last dataset or model that ``run`` made; benchmarks, which nothing is made of, after all others.

    Raises:
        NotFound: it made none, or that is gone.
    """
    *others, last = [run.folder.path, *run.made]
    made = Dataset.open(str(last), allow_empty=True)
    if made.manifest.schema == BENCHMARK and len(others) > 1:
        return Dataset.open(str(others[-1]), allow_empty=True)
    return made


def benchmark_of(uri: str) -> Dataset | None:
    """The last benchmark of the run at ``uri``, or of the newest run of that output folder; None where none
    was made, or where a dataset or model lies there."""
    run = find_run(uri)
    made = standing(reversed(run.made)) if run else ()
    return next((one for one in made if one.manifest.schema == BENCHMARK and one.rows), None)


def standing(paths: Iterable[Path]) -> Iterator[Dataset]:
    """The datasets and models at ``paths`` that are still there, and whole."""
    for path in paths:
        try:
            yield Dataset.open(str(path), allow_empty=True)
        except (NotFound, CorruptDataset):
            continue


def ancestors(dataset: Dataset) -> Iterator[Ancestor]:
    """Every ancestor that can be reached, nearest first, each once."""
    seen: set[str] = set()
    pending = [(parent, dataset.uri) for parent in dataset.manifest.parents]
    while pending:
        parent, child = pending.pop(0)
        uri = located(parent, child)
        if uri in seen:
            continue
        seen.add(uri)
        state, manifest = _look(parent, uri)
        yield Ancestor(**{**parent, "uri": uri}, state=state)
        if manifest:
            pending += [(above, uri) for above in manifest.parents]


def lineage_json(dataset: Dataset) -> dict[str, object]:
    """The whole story as plain JSON values."""
    story = to_json(dataset.manifest)
    return {"uri": dataset.uri, **story, "ancestors": [asdict(a) for a in ancestors(dataset)]}


def lineage_tree(manifest: Manifest, *, settings: bool = True) -> Tree:
    """The steps as a tree, the last one at its root; a step that comes twice is told once."""
    steps = {step.fingerprint: step for step in steps_of(manifest.fingerprint, manifest.recipe)}
    shown: set[str] = set()
    root = Tree(
        f"[bold]{escape(manifest.slug or manifest.schema)}[/]  {manifest.schema}, {manifest.rows} rows"
    )

    def grow(parent: Tree, name: str, role: str) -> None:
        step = steps[name]
        label = f"[bold cyan]{escape(step.stage)}[/] [dim]{name[:12]}{escape(role)}[/]"
        if name in shown:
            parent.add(f"{label} [dim](told above)[/]")
            return
        shown.add(name)
        branch = parent.add(label)
        if settings:
            for line in _facts(step):
                branch.add(line)
        for child_role, child in step.inputs.items():
            grow(branch, child, f"  as {child_role}")

    if names := licenses(manifest):
        root.add(f"[magenta]licence[/] {escape(joined(names))}")
    grow(root, manifest.fingerprint, "")
    return root


def _facts(step: LineageStep) -> Iterator[str]:
    for role, identity in sorted(step.models.items()):
        yield f"[magenta]{escape(role)}[/] {escape(_identity(identity))}"
    for source in step.params.get("sources", ()):
        yield f"[magenta]source[/] {escape(_settings(source))}"
    settings = {name: value for name, value in step.params.items() if name != "sources"}
    if settings:
        yield escape(_settings(settings))


def _settings(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {shortened(value, LONGEST)}" for name, value in describe(values))


def _identity(value: object) -> str:
    """Digests to twelve digits and names in full; one that has both as name and digest."""
    if not isinstance(value, Mapping):
        text = str(value)
        return text[:12] if _DIGEST.fullmatch(text) else text
    parts = [_identity(value["name"])] if "name" in value else []
    parts += [f"{key} {_identity(item)}" for key, item in value.items() if key != "name"]
    return ", ".join(parts)


def recorded(path: str) -> str:
    """The URI of what a manifest names: the launcher's mounts exist in a pod alone."""
    for mount, scheme in MOUNTS.items():
        if path.startswith(mount) and not Path(path).exists():
            return scheme + path.removeprefix(mount)
    return path


def located(parent: Mapping[str, str], child: str) -> str:
    """The URI of a ``parent`` that the manifest at ``child`` names: where it was, or where it lies now if a
    folder around both, as of a run or of several, was moved or copied on or to this machine."""
    uri = recorded(parent["uri"])
    moved = _moved_with(uri, child) if scheme_of(child) == "file" else []
    if not moved or _fingerprint_at(uri) == parent["fingerprint"]:
        return uri
    return next((own for own in moved if _fingerprint_at(own) == parent["fingerprint"]), uri)


def _moved_with(uri: str, child: str) -> list[str]:
    """Datasets that lie below a folder around ``child`` as the one at ``uri`` lay below one of that name;
    those of the innermost folder first."""
    parts = PurePosixPath(uri.partition("://")[2] or uri).parts
    candidates: list[Path] = []
    for folder in named_path(child).resolve().parents:
        if folder.name in parts:
            below = parts[len(parts) - parts[::-1].index(folder.name) :]
            candidates.append(folder.joinpath(*below))
    return [str(path) for path in candidates if (path / MANIFEST).is_file()]


def _fingerprint_at(uri: str) -> str:
    """Of the dataset at ``uri``; an empty text where there is none."""
    try:
        return Dataset.open(uri, allow_empty=True).manifest.fingerprint
    except KubeAlignError:
        return ""


def _look(parent: Mapping[str, str], uri: str) -> tuple[str, Manifest | None]:
    try:
        manifest = Dataset.open(uri, allow_empty=True).manifest
    except NotFound:
        return "gone", None
    except (CorruptDataset, StoreError) as error:
        return f"changed: {error}", None
    if manifest.fingerprint != parent["fingerprint"]:
        return f"changed: {manifest.fingerprint[:12]} lies there now", None
    return "found", manifest
