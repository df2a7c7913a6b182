"""What a run on a cluster left in the object store: its artifacts and its tasks' logs.

KFP's API does not tell where they lie; its launcher puts them at
``<root>/<pipeline>/<run id>/<task>/<execution>/<output>``.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kubealign.cluster.kube import Kubernetes
from kubealign.errors import ClusterError
from kubealign.lineage import ancestors
from kubealign_components.config import require
from kubealign_components.data.choice_rows import ChoiceRow
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.lineage import steps_of
from kubealign_components.data.manifest import MANIFEST
from kubealign_components.errors import ConfigError, DataError, NotFound, StoreError
from kubealign_components.json_types import JsonObject
from kubealign_components.store import ObjectInfo, inside, join, store_for
from kubealign_components.store.base import name_below
from kubealign_components.store.local import LocalStore
from kubealign_pipelines.halving import rung_of

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

MODEL = "model"
"""Of several the one that the pipeline evaluates is meant, which is the aligned one."""
CHOICE = ("choose", "dataset")
"""Task and name of the output in which a sweep says which variant it chose."""
DEPTH = 3
"""An output lies at <task>/<execution>/<output> below the run's folder."""
DEFAULT_ROOT = "minio://mlpipeline/v2/artifacts"
"""Pipeline root of a namespace whose ``kfp-launcher`` names none."""
LAUNCHER = "kfp-launcher"
_LOG = re.compile(r"executor-logs(-\d+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredOutput:
    """An output artifact of a run: a folder or an object."""

    task: str
    """KFP's name of the task."""
    execution: str
    """KFP's id of the attempt."""
    name: str
    uri: str
    objects: tuple[ObjectInfo, ...]

    @property
    def title(self) -> str:
        """As a user names it."""
        return f"{self.task}.{self.name}"

    @property
    def is_log(self) -> bool:
        """Whether it is what the task's pod wrote to its log."""
        return _LOG.fullmatch(self.name) is not None

    @property
    def whole(self) -> bool:
        """Whether it has a manifest, which a stage publishes last."""
        return any(entry.uri == join(self.uri, MANIFEST) for entry in self.objects)


def outputs_of(root: str, pipeline: str, run_id: str) -> list[StoredOutput]:
    """Every output that the run itself left below the root; none of tasks that the cache answered."""
    folder = join(root.partition("?")[0], pipeline, run_id)
    groups: dict[tuple[str, ...], list[ObjectInfo]] = {}
    for entry in store_for(folder).list(folder):
        parts = name_below(entry.uri, folder).split("/")
        if len(parts) >= DEPTH:
            groups.setdefault(tuple(parts[:DEPTH]), []).append(entry)
    return [
        StoredOutput(
            task=plain(parts[0]),
            execution=parts[1],
            name=parts[2],
            uri=join(folder, *parts),
            objects=tuple(objects),
        )
        for parts, objects in groups.items()
    ]


def find_output(
    run: V2beta1Run, spec: JsonObject, root: str, name: str, earlier: Callable[[], Iterable[V2beta1Run]]
) -> StoredOutput:
    """The output called ``task.output``, or ``output`` where one task alone has it, or at the URI ``name``.

    What the run made comes first, then what its datasets were made from, then what earlier runs of the same
    pipeline with the same parameters made: where KFP's cache answered, the artifact is one of those. Of what
    a sweep makes for each variant, the chosen one's is meant, and of the models of rounds the chosen one.

    Raises:
        ConfigError: no output is called so, or several are, or they are of variants and none is chosen.
    """
    pipeline = spec["pipelineInfo"]["name"]
    repeated = _repeated(spec)
    outputs: list[StoredOutput] = []
    matching: list[StoredOutput] = []
    sources: Sequence[Callable[[], Iterable[StoredOutput]]] = (
        lambda: outputs_of(root, pipeline, run.run_id),
        lambda: _inherited(outputs),
        lambda: (output for twin in earlier() for output in outputs_of(root, pipeline, twin.run_id)),
    )
    for source in sources:
        listed = {output.uri for output in outputs}
        outputs += [output for output in source() if output.uri not in listed]
        matching = _called(name, outputs)
        if name == MODEL:
            matching = _evaluated(spec, matching) or matching
        if name == MODEL and len({output.title for output in matching}) > 1:
            matching = _of_chosen_round(matching, outputs) or matching
        require(len({o.title for o in matching}) < 2, "OUTPUT", name, f"one of {_titles(matching)}")
        if matching and name != matching[-1].uri and matching[-1].task in repeated:
            if of_chosen := _of_chosen(matching, outputs):
                return of_chosen[-1]
        elif matching:
            return matching[-1]
    if matching:
        uris = ", ".join(sorted(output.uri for output in matching))
        expected = f"a run that has chosen a variant, or the URI of one variant's {matching[0].title}: {uris}"
        raise ConfigError("OUTPUT", name, expected)
    if not outputs:
        folder = join(root, pipeline, run.run_id)
        raise NotFound(f"run {run.run_id} has no outputs at {folder}; give the run's --pipeline-root")
    raise ConfigError("OUTPUT", name, f"one of the run's outputs: {_titles(outputs)}")


def fetch_output(output: StoredOutput, target: Path) -> Path:
    """Copy ``output`` to ``target``, whole or not at all; datasets and models are checked.

    Raises:
        ConfigError: ``target`` exists.
        StoreError: an object cannot be read, or its name leads out of its folder.
        CorruptDataset: what arrived does not match its manifest.
    """
    require(not target.exists(), "--output", str(target), "a name that is free")
    output = _with_rows(output)
    names = ["" if o.uri == output.uri else name_below(o.uri, output.uri) for o in output.objects]
    target.parent.mkdir(parents=True, exist_ok=True)
    store, here = store_for(output.uri), LocalStore()
    with tempfile.TemporaryDirectory(prefix=".kubealign-", dir=target.parent) as folder:
        goal = Path(folder) / "whole"
        copies = [inside(goal, name) if name else goal for name in names]
        for entry, copy in zip(output.objects, copies, strict=True):
            path = store.fetch(entry.uri, Path(folder) / "part")
            here.publish_file(path, str(copy))
            if path.is_relative_to(folder):
                path.unlink()
        if (goal / MANIFEST).is_file():
            Dataset.open(str(goal), allow_empty=True)
        goal.rename(target)
    return target


def _with_rows(output: StoredOutput) -> StoredOutput:
    """``output``, or the folder of its rows, which has the same manifest, where those lie beside it."""
    if not output.whole:
        return output
    home = Dataset.open(output.uri, allow_empty=True).home
    if home == output.uri:
        return output
    return replace(output, uri=home, objects=tuple(store_for(home).list(home)))


def logs_of(outputs: Iterable[StoredOutput]) -> list[StoredOutput]:
    """The logs among ``outputs``, by task, execution and attempt."""
    return sorted((o for o in outputs if o.is_log), key=lambda o: (o.task, o.execution, _number(o.name)))


def log_text(log: StoredOutput) -> Iterator[str]:
    """Lines of a stored log."""
    yield from store_for(log.uri).read(log.uri).decode(errors="replace").splitlines()


def root_of(
    run: V2beta1Run, spec: JsonObject, given: str, namespace: Callable[[], str], kubernetes: Kubernetes
) -> str:
    """The pipeline root of ``run``: the one given, the run's own, the pipeline's, or the namespace's.

    Raises:
        ConfigError: none of them can be known from here.
    """
    own = run.runtime_config.pipeline_root if run.runtime_config else None
    root = given or own or spec.get("defaultPipelineRoot")
    if root:
        return str(root)
    owner = namespace()
    try:
        config_map = kubernetes.get(f"/api/v1/namespaces/{owner}/configmaps/{LAUNCHER}")
    except ClusterError as error:
        expected = "the place of the run's outputs, such as gs://bucket/root, which Kubeflow keeps in "
        raise ConfigError(
            "--pipeline-root", "", f"{expected}the ConfigMap {LAUNCHER} of namespace {owner} ({error})"
        ) from error
    data = (config_map or {}).get("data") or {}
    return str(data.get("defaultPipelineRoot") or DEFAULT_ROOT)


def plain(name: str) -> str:
    """Titles, functions and KFP's names of tasks, written alike."""
    return name.lower().replace("_", "-").replace(" ", "-")


def names_task(name: str, task: str) -> bool:
    """Whether ``name`` is ``task`` but for the number that KFP gives tasks of one component."""
    return plain(name) == re.sub(r"-\d+$", "", task)


def _called(title: str, outputs: Sequence[StoredOutput]) -> list[StoredOutput]:
    """The outputs that ``title`` means; unfinished ones only where none is whole."""
    if at := [output for output in outputs if output.uri == title]:
        return at
    task, _, name = title.rpartition(".")
    named = [output for output in outputs if output.name == name]
    matching = [output for output in named if not task or output.task == plain(task)]
    matching = matching or [output for output in named if names_task(task, output.task)]
    return [output for output in matching if output.whole] or matching


def _repeated(spec: JsonObject) -> set[str]:
    """The tasks that are done for each item of a loop, such as for each variant of a sweep."""
    tasks = [task for dag in _dags(spec) for task in dag["tasks"].values() if "parameterIterator" in task]
    inside = [spec["components"][task["componentRef"]["name"]] for task in tasks]
    return {plain(name) for component in inside for name in component.get("dag", {}).get("tasks", ())}


def _dags(spec: JsonObject) -> list[JsonObject]:
    components = [spec["root"], *spec.get("components", {}).values()]
    return [component["dag"] for component in components if "dag" in component]


def _of_chosen(matching: Iterable[StoredOutput], outputs: Iterable[StoredOutput]) -> list[StoredOutput]:
    """Those of ``matching`` that the variant has which the choice among ``outputs`` chose, whose executions
    made what its evaluation was made from; none before one is chosen."""
    choices = [output for output in outputs if (output.task, output.name) == CHOICE and output.whole]
    steps: set[str] = set()
    if choices:
        choice = Dataset.open(choices[-1].uri)
        chosen = [row["evaluation"] for row in choice.iter_rows(of=ChoiceRow) if row["chosen"]]
        steps = {step.fingerprint for name in chosen for step in steps_of(name, choice.manifest.recipe)}
    tasks = {output.task for output in matching}
    executions = {
        (output.task, output.execution)
        for output in outputs
        if steps and output.task in tasks and output.whole
        if Dataset.open(output.uri, allow_empty=True).manifest.fingerprint in steps
    }
    return [output for output in matching if (output.task, output.execution) in executions]


def _of_chosen_round(matching: Iterable[StoredOutput], outputs: Iterable[StoredOutput]) -> list[StoredOutput]:
    """The models of ``matching`` that the choice among ``outputs`` chose; none where there is none."""
    choices = [output for output in outputs if (output.task, output.name) == CHOICE and output.whole]
    rows = Dataset.open(choices[-1].uri).iter_rows(of=ChoiceRow) if choices else iter(())
    models = {row["model_fingerprint"] for row in rows if row["chosen"]}
    return [one for one in matching if one.whole and _fingerprint(one) in models]


def _fingerprint(output: StoredOutput) -> str:
    return Dataset.open(output.uri, allow_empty=True).manifest.fingerprint


def _evaluated(spec: JsonObject, outputs: Iterable[StoredOutput]) -> list[StoredOutput]:
    """Those of ``outputs`` that the pipeline's evaluation takes."""
    taken = {
        (plain(made["producerTask"]), made["outputArtifactKey"])
        for dag in _dags(spec)
        for name, task in dag["tasks"].items()
        if name.startswith("evaluate") and not rung_of(name)
        for given in task.get("inputs", {}).get("artifacts", {}).values()
        if (made := given.get("taskOutputArtifact"))
    }
    return [output for output in outputs if (output.task, output.name) in taken]


def _inherited(outputs: Iterable[StoredOutput]) -> Iterator[StoredOutput]:
    """What the datasets and models among ``outputs`` were made from, where other runs left it."""
    seen: set[str] = set()
    for output in outputs:
        if not output.whole:
            continue
        try:
            dataset = Dataset.open(output.uri, allow_empty=True)
        except (DataError, StoreError):
            continue
        for ancestor in ancestors(dataset):
            parts = ancestor.uri.rstrip("/").split("/")
            if ancestor.state == "found" and ancestor.uri not in seen and len(parts) > DEPTH:
                seen.add(ancestor.uri)
                yield _at(ancestor.uri, *parts[-DEPTH:])


def _at(uri: str, task: str, execution: str, name: str) -> StoredOutput:
    objects = tuple(store_for(uri).list(uri))
    return StoredOutput(task=plain(task), execution=execution, name=name, uri=uri, objects=objects)


def _titles(outputs: Iterable[StoredOutput]) -> str:
    return ", ".join(sorted({output.title for output in outputs if not output.is_log}))


def _number(name: str) -> int:
    return int(name.rpartition("-")[2]) if name[-1].isdigit() else 0
