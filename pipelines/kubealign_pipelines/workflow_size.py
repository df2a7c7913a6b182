"""How large Kubeflow's object of a run gets, and how many chunks a fan-out may have so that it fits.

Kubeflow Pipelines runs a pipeline as one Argo Workflow, an object that Argo refuses above :data:`LIMIT`. It
holds the specification, and the state of every node ever made: of a task six (driver, group and pod, each
with the parent that retries it, which 2.17 puts around every template), of a chunk twelve, and one more for
every attempt of a pod. Each carries the texts that it was called with; Argo packs them by gzip and base64. A
node is imitated here with those texts, in the random order of Argo's keys, and packed in the same way.

A run of two chunks a fan-out and twelve other tasks on Kubeflow Pipelines 2.17 had 160 nodes, 0.65 MB of
state in 96 kB and 0.19 MB of specification; imitated, it has 168 nodes in 93 kB and 0.19 MB.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kubealign_components.json_types import JsonObject
from kubealign_pipelines.halving import left_of, times_halved

Json = JsonObject
LIMIT = 2**20
"""Bytes of a Workflow, packed: Argo's own limit, below etcd's."""
ROOM = 0.8
"""Share of it that is planned with: URIs and names are of other lengths elsewhere."""
_ROUGHLY, _CLOSELY = (2, 4), (8, 16)
"""Chunks of the two imitations from which larger ones are extrapolated: packed bytes grow ever slower, so
that few chunks give a lower bound, and many nearly the number."""
_CHUNKS, _VARIANTS = "chunks", "variants"
_TEMPLATES = 1.25
"""What the templates around components, containers and tasks add to them."""
_URI = "gs://acme-llm-platform-artifacts/kubealign/runs/pipeline/8ac687c3-b129-4c86-9178-07a6e9353e2d"


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkflowSize:
    """Of a run with a number of chunks in every fan-out."""

    nodes: int
    state: int
    """Bytes of the nodes."""
    packed: int
    """Bytes of the nodes as Argo stores them."""
    specification: int
    """Bytes of what does not grow with chunks."""

    @property
    def total(self) -> int:
        """Bytes of the object."""
        return self.packed + self.specification


def workflow_size(spec: Json, chunks: int, *, variants: int = 0, retries: bool = True) -> WorkflowSize:
    """The size of a run of the compiled pipeline ``spec``.

    Args:
        spec: the IR.
        chunks: of every fan-out.
        variants: items of a parameter for each of which tasks run.
        retries: whether every pod is taken to need all of its attempts.
    """
    imitation = _Imitation(spec, chunks, variants=variants, retries=retries)
    nodes = list(imitation.dag(spec["root"]["dag"]))
    draw = random.Random(0)
    for node in nodes:
        node["id"] = f"{spec['pipelineInfo']['name']}-abcde-{draw.randrange(10**9, 4 * 10**9)}"
        node["children"] = [f"{spec['pipelineInfo']['name']}-abcde-{draw.randrange(10**9, 4 * 10**9)}"]
    state = _text({node["id"]: node for node in nodes}, sort=True).encode()
    packed = base64.b64encode(gzip.compress(state, 6))
    return WorkflowSize(
        nodes=len(nodes), state=len(state), packed=len(packed), specification=_specification(spec)
    )


def most_chunks(spec: Json, most: int, *, variants: int = 0) -> int:
    """How many chunks every fan-out of ``spec`` may have, ``most`` at most and one at least.

    Args:
        spec: the IR.
        most: the limit if there is room.
        variants: items of a parameter for each of which tasks run.
    """
    spec = json.loads(json.dumps(spec, sort_keys=True))  # KFP's order differs from process to process
    dags = [spec["root"], *(one for one in spec["components"].values() if "dag" in one)]
    tasks = [task for one in dags for task in one["dag"]["tasks"].values()]
    if not any("parameterIterator" in task and _items(task) == _CHUNKS for task in tasks):
        return most
    chunks = 1
    for few, more in (_ROUGHLY, _CLOSELY):
        small, large = (workflow_size(spec, number, variants=variants) for number in (few, more))
        each = (large.packed - small.packed) / (more - few)
        chunks = max(chunks, int(more + (LIMIT * ROOM - large.total) / each))
        if chunks >= most:
            return most
    return chunks


class _Imitation:
    """The nodes of a run, with the texts that they carry."""

    def __init__(self, spec: Json, chunks: int, *, variants: int, retries: bool) -> None:
        self._spec = spec
        self._chunks = chunks
        self._variants = variants
        self._retries = retries

    def dag(self, dag: Json) -> Iterator[Json]:
        """The nodes of the tasks of ``dag``, with those of its own driver and group."""
        yield from self._twice("Pod", {"component": _text(dag)[:2000], "driver-type": "DAG"}, "dag-driver")
        yield from self._twice("DAG", {"parent-dag-id": "12"}, "dag")
        yield from self._tasks(dag)

    def _tasks(self, dag: Json, index: int = -1) -> Iterator[Json]:
        for name, task in dag["tasks"].items():
            component = self._spec["components"][task["componentRef"]["name"]]
            if "dag" not in component:
                yield from self._task(name, task, component, index)
            elif "parameterIterator" in task:
                yield from self._loop(name, task, component, *times_halved(dag["tasks"], name))
            else:
                yield from self.dag(component["dag"])

    def _loop(self, name: str, task: Json, component: Json, halved: int, factor: int) -> Iterator[Json]:
        texts = {"component": _text(component), "task": _text(task), "task-name": name}
        yield from self._twice("Pod", {**texts, "driver-type": "DAG"}, name)
        yield from self._twice("DAG", {"parent-dag-id": "12"}, name)
        items = _items(task)
        each = {_CHUNKS: self._chunks, _VARIANTS: self._variants}
        count = each[items] if isinstance(items, str) else items
        for index in range(left_of(self._variants, factor, halved) if halved else count):
            yield from self._twice("DAG", {"iteration-index": str(index)}, name)
            yield from self._twice("Pod", {**texts, "iteration-index": str(index)}, name)
            yield from self._twice("DAG", {"parent-dag-id": str(100 + index)}, name)
            yield from self._tasks(component["dag"], index)

    def _task(self, name: str, task: Json, component: Json, index: int = -1) -> Iterator[Json]:
        """Driver, group and pod of a task; the driver's answer is the group's and the pod's question."""
        container = self._spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        pod = _pod(_executor_input(name, task, component, index), component, container)
        texts = {"component": _text(component), "task": _text(task), "container": _text(container)}
        asked = {"pod-spec-patch": pod, "cached-decision": "false", "retry-max-count": "3"}
        yield from self._twice("Pod", {**texts, "iteration-index": str(index)}, name, answer=pod)
        yield from self._twice("DAG", asked, name)
        attempts = 1 + (task.get("retryPolicy", {}).get("maxRetryCount", 0) if self._retries else 0)
        yield self._node("Retry", asked, name)
        for _ in range(int(attempts)):
            yield self._node("Pod", asked, name)

    def _twice(self, kind: str, texts: Mapping[str, str], name: str, answer: str = "") -> Iterator[Json]:
        """A node, and the parent that retries it."""
        yield self._node("Retry", texts, name, answer)
        yield self._node(kind, texts, name, answer)

    def _node(self, kind: str, texts: Mapping[str, str], name: str, answer: str = "") -> Json:
        outputs = {"pod-spec-patch": answer} if answer else {}
        return {
            "type": kind,
            "name": f"{self._spec['pipelineInfo']['name']}-abcde.root.{name}",
            "displayName": name,
            "templateName": f"system-{kind.lower()}",
            "templateScope": f"local/{self._spec['pipelineInfo']['name']}-abcde",
            "phase": "Succeeded",
            "boundaryID": "abcde-125927881",
            "startedAt": "2026-01-01T00:00:00Z",
            "finishedAt": "2026-01-01T00:00:00Z",
            "progress": "1/1",
            "resourcesDuration": {"cpu": 100, "memory": 100},
            "hostNodeName": "pool-1234567-abcd",
            "inputs": _parameters(texts),
            "outputs": {"exitCode": "0", **_parameters(outputs)},
        }


def _items(task: Json) -> str | int:
    """What a loop is over: chunks, which a task planned, variants, as those of any parameter of the pipeline
    are counted, or so many values that stand in the pipeline itself."""
    items = task["parameterIterator"]["items"]
    if "raw" in items:
        return len(json.loads(items["raw"]))
    given = task.get("inputs", {}).get("parameters", {}).get(items["inputParameter"], {})
    return _VARIANTS if "componentInputParameter" in given else _CHUNKS


def _executor_input(name: str, task: Json, component: Json, index: int) -> str:
    """What KFP's driver writes for the launcher: values of parameters, places of artifacts."""
    draw = random.Random(f"{name} {index}")
    digest = "".join(draw.choices("0123456789abcdef", k=64))
    made = component.get("outputDefinitions", {}).get("artifacts", {})
    values = {key: key for key in task.get("inputs", {}).get("parameters", {})}
    if index >= 0:
        values["chunk"] = _text(_chunk(f"{_URI}/{name}/dataset", index, digest))
    uris = {key: f"{_URI}/{name}/{digest[:36]}/{key}" for key in made}
    return _text({"inputs": {"parameterValues": values}, "outputs": {"artifacts": uris}})


def _chunk(dataset: str, index: int, digest: str) -> Json:
    """A descriptor as a plan gives it (``kubealign_components.data.chunks.Chunk``), of a dataset with deleted
    rows: its texts are longest."""
    spans = [[shard, index * 99_990, (index + 1) * 99_990] for shard in (index, index + 1)]
    work, fingerprint = dataset.partition("/runs/")[0] + "/work", "f" * 64
    counts = {"index": index, "of": 128, "rows": 199_980}
    names = {"dataset": dataset, "fingerprint": fingerprint, "row_ids": digest, "work": work}
    return {
        **names,
        **counts,
        "spans": spans,
        "undeleted_spans": [[*span[:2], span[2] + 9] for span in spans],
    }


def _pod(executor_input: str, component: Json, container: Json) -> str:
    arguments = ["--executor_input", executor_input, "--component_spec", _text(component)]
    command = ["/kfp-launcher/launch", *arguments]
    main = {"name": "main", "command": command, "args": [*container.get("command", []), *container["args"]]}
    return _text({"containers": [{**main, "image": container["image"]}]})


def _specification(spec: Json) -> int:
    """Bytes of the Workflow before it runs: each container once, whatever components are called that have it,
    a component for each, and each task in its template."""
    executors = {name: _text(one["container"]) for name, one in spec["deploymentSpec"]["executors"].items()}
    components = {
        executors.get(one.get("executorLabel"), name): _text(one)
        for name, one in reversed(spec["components"].items())
    }
    dags = [spec["root"], *(one for one in spec["components"].values() if "dag" in one)]
    tasks = [_text(task) for one in dags for task in one["dag"]["tasks"].values()]
    texts = sum(len(json.dumps(text)) for text in [*components.values(), *{*executors.values()}, *tasks])
    return int(_TEMPLATES * texts)


def _parameters(values: Mapping[str, str]) -> Json:
    return {"parameters": [{"name": name, "value": value} for name, value in values.items()]}


def _text(value: object, *, sort: bool = False) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=sort)
