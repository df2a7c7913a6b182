"""What a run on a cluster wrote: its pods by task, and its outputs in the object store."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubealign_components.config import require
from kubealign_components.data.dataset import MANIFEST, Dataset
from kubealign_components.errors import ConfigError, NotFound
from kubealign_components.store import ObjectInfo, join, store_for
from kubealign_components.store.local import LocalStore

EXECUTOR = "executor"
"""What KFP calls the pod that does a task's work."""
DEPTH = 3
"""An output lies at <task>/<execution>/<output> below the run's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pod:
    """A pod that does a task's work."""

    task: str
    name: str
    state: str


def pods_of(details: Iterable[Any], task: str = "") -> list[Pod]:
    """The pods of a run's tasks, or of one task, in the order in which they were made.

    KFP lists its drivers and groups, too. A pod that works is called executor and is a child of its
    task; a server that does not tell it so has each task's pod with the task itself.
    """
    details = sorted(details, key=lambda d: str(d.create_time or ""))
    owner = {_id(child): d for d in details for child in d.child_tasks or ()}
    by_id = {d.task_id: d for d in details}
    found = []
    for detail in details:
        if _base(detail) == EXECUTOR:
            parent = owner.get(_id(detail)) or by_id.get(detail.parent_task_id)
            found.append(_pod(detail, _base(parent) if parent else EXECUTOR))
    if not found:
        found = [_pod(d, _base(d)) for d in details if d.pod_name and not _base(d).endswith("-driver")]
    known = sorted({pod.task for pod in found})
    if task:
        require(_plain(task) in known, "TASK", task, f"a task that has run: one of {', '.join(known)}")
    return [pod for pod in found if not task or pod.task == _plain(task)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """An output artifact of a run: a folder or an object."""

    task: str
    name: str
    uri: str
    objects: tuple[ObjectInfo, ...]

    @property
    def title(self) -> str:
        """As a user names it."""
        return f"{self.task}.{self.name}"


def outputs_of(root: str, pipeline: str, run_id: str) -> list[Output]:
    """Every output that the run left below the pipeline root.

    KFP's API does not tell where artifacts lie; its launcher puts them at
    ``<root>/<pipeline>/<run id>/<task>/<execution>/<output>``.
    """
    folder = join(root.partition("?")[0], pipeline, run_id)
    groups: dict[tuple[str, ...], list[ObjectInfo]] = {}
    for found in store_for(folder).list(folder):
        parts = _below(found.uri, folder).split("/")
        if len(parts) >= DEPTH:
            groups.setdefault(tuple(parts[:DEPTH]), []).append(found)
    if not groups:
        raise NotFound(f"run {run_id} has no outputs at {folder}; give the run's --pipeline-root")
    return [
        Output(task=_plain(parts[0]), name=parts[-1], uri=join(folder, *parts), objects=tuple(objects))
        for parts, objects in groups.items()
    ]


def choose(outputs: Iterable[Output], wanted: str) -> Output:
    """The output called ``task.output``, or ``output`` where one task alone has it."""
    outputs = list(outputs)
    task, dot, name = wanted.rpartition(".")
    found = [o for o in outputs if o.name == name and (not dot or o.task == _plain(task))]
    # An execution that failed may have left some of an output behind; a manifest is published last.
    whole = [o for o in found if any(i.uri.endswith(f"/{MANIFEST}") for i in o.objects)]
    found = whole or found
    if len(found) != 1:
        known = ", ".join(sorted({output.title for output in outputs}))
        raise ConfigError("OUTPUT", wanted, f"one of the run's outputs: {known}")
    return found[0]


def fetch_output(output: Output, target: Path) -> Path:
    """Copy ``output`` to ``target``, whole or not at all; datasets and models are checked.

    Raises:
        ConfigError: ``target`` exists.
        StoreError: an object cannot be read.
        CorruptDataset: what arrived does not match its manifest.
    """
    require(not target.exists(), "--output", str(target), "a name that is free")
    target.parent.mkdir(parents=True, exist_ok=True)
    store, here = store_for(output.uri), LocalStore()
    with tempfile.TemporaryDirectory(prefix=".kubealign-", dir=target.parent) as folder:
        goal = Path(folder) / "whole"
        for found in output.objects:
            path = store.fetch(found.uri, Path(folder) / "part")
            name = _below(found.uri, output.uri)
            here.publish_file(path, str(goal / name if name else goal))
            if path.is_relative_to(folder):
                path.unlink()
        if (goal / MANIFEST).is_file():
            Dataset.open(str(goal), allow_empty=True)
        goal.rename(target)
    return target


def root_of(run: Any, spec: Mapping[str, Any], given: str) -> str:
    """The pipeline root of ``run``: the one given, the run's own, or the pipeline's.

    Raises:
        ConfigError: none of them is known.
    """
    own = run.runtime_config.pipeline_root if run.runtime_config else None
    root = given or own or spec.get("defaultPipelineRoot") or ""
    require(bool(root), "--pipeline-root", root, "the place of the run's outputs, such as gs://bucket/root")
    return str(root)


def _below(uri: str, folder: str) -> str:
    return uri.removeprefix("file://").removeprefix(folder.removeprefix("file://").rstrip("/")).lstrip("/")


def _id(detail: Any) -> str:
    return str(detail.pod_name or detail.task_id)


def _pod(detail: Any, task: str) -> Pod:
    return Pod(task=task, name=_id(detail), state=str(detail.state or ""))


def _base(detail: Any) -> str:
    """The task's name without the number of an attempt."""
    return re.sub(r"\(\d+\)$", "", _plain(detail.display_name or ""))


def _plain(name: str) -> str:
    """Titles, functions and KFP's names of tasks, written alike."""
    return name.lower().replace("_", "-").replace(" ", "-")


def log_lines(cluster: Any, run_id: str, pods: Iterable[Pod], *, follow: bool) -> Iterator[str]:
    """What the pods wrote, each under a line with its task and name."""
    for pod in pods:
        yield f"== {pod.task} {pod.name} {pod.state}".rstrip()
        yield from cluster.log(run_id, pod.name, follow=follow)
