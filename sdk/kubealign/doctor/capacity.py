"""Whether what the stages ask for fits anywhere: queues, quotas and machines."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from kubealign.cluster.kube import Json
from kubealign.doctor.diagnosis import Diagnosis, Subject, ok, problem, unknown, warning
from kubealign.errors import ClusterError
from kubealign_components.json_types import JsonObject
from kubealign_pipelines.stage_resources import StageResources

KUEUE = "/apis/kueue.x-k8s.io/v1beta2"
Amounts = dict[str, Decimal]


def amounts_of(resources: StageResources) -> Amounts:
    """What one pod of a stage requests, by resource."""
    given: dict[str, object] = {"cpu": resources.cpu, "memory": resources.memory}
    if resources.accelerators:
        given[resources.accelerator or "nvidia.com/gpu"] = resources.accelerators
    return {name: _quantity(value) for name, value in given.items() if value is not None}


def check_queue(subject: Subject) -> Iterator[Diagnosis]:
    """Whether Kueue can ever admit each stage: the pods of a job all take one flavor of a resource."""
    check, name = "queue", subject.queue
    if not name:
        return
    local = subject.kubernetes.get(f"{KUEUE}/namespaces/{subject.namespace}/localqueues/{name}")
    if local is None:
        remedy = "apply an overlay of manifests/, or correct the label in the run file"
        yield problem(check, f"there is no LocalQueue {name} in {subject.namespace}", remedy)
        return
    queue = str(local["spec"]["clusterQueue"])
    try:
        cluster_queue = subject.kubernetes.get(f"{KUEUE}/clusterqueues/{queue}")
    except ClusterError as error:
        yield unknown(check, str(error), f"look at the quotas of ClusterQueue {queue}")
        return
    if cluster_queue is None:
        yield problem(check, f"LocalQueue {name} names no ClusterQueue that exists: {queue}", "create it")
        return
    short = list(shortages(subject, cluster_queue["spec"]))
    for stage, resource, asked, most in short:
        fact = f"{stage} asks for {asked} {resource}, one flavor of ClusterQueue {queue} has {most} at most"
        yield problem(check, fact, "raise its nominalQuota, or ask for less: it would wait for ever")
    if not short:
        yield ok(check, f"{name}: every stage fits ClusterQueue {queue}")


def shortages(subject: Subject, queue: JsonObject) -> Iterator[tuple[str, str, str, str]]:
    """Stage, resource, what is asked and the most there is, where the ClusterQueue ``queue`` is too small."""
    most: Amounts = {}
    for group in queue.get("resourceGroups") or ():
        for flavor in group["flavors"]:
            for one in flavor["resources"]:
                amount = _quantity(one["nominalQuota"]) + _quantity(one.get("borrowingLimit") or 0)
                most[one["name"]] = max(amount, most.get(one["name"], Decimal(0)))
    for stage, resources in subject.stages:
        for resource, amount in amounts_of(resources).items():
            asked = amount * (resources.nodes or 1)
            if asked > most.get(resource, Decimal(0)):
                yield stage, resource, _text(asked), _text(most.get(resource, Decimal(0)))


def check_quotas(subject: Subject) -> Iterator[Diagnosis]:
    """ResourceQuotas and LimitRanges of the namespace."""
    hard: Amounts = {}
    for item in subject.kubernetes.items(subject.of_namespace("resourcequotas")) or ():
        for name, value in (item["spec"].get("hard") or {}).items():
            resource = name.removeprefix("requests.")
            hard[resource] = min(_quantity(value), hard.get(resource, Decimal("Infinity")))
    for item in subject.kubernetes.items(subject.of_namespace("limitranges")) or ():
        for limit in item["spec"].get("limits") or ():
            for name, value in (limit.get("max") or {}).items():
                hard[name] = min(_quantity(value), hard.get(name, Decimal("Infinity")))
    any_quota = False
    for stage, resources in subject.stages:
        for resource, amount in amounts_of(resources).items():
            if resource in hard and amount > hard[resource]:
                any_quota = True
                asked, most = _text(amount), _text(hard[resource])
                fact = f"a pod of {stage} asks for {asked} {resource}, the namespace allows {most}"
                yield problem(
                    "namespace quota", fact, "raise the ResourceQuota or LimitRange, or ask for less"
                )
    if not any_quota:
        yield ok("namespace quota", f"{'fits' if hard else 'none is set'}")


def check_nodes(subject: Subject) -> Iterator[Diagnosis]:
    """Whether a machine that is there now could hold a pod of each stage."""
    try:
        nodes = subject.kubernetes.items("/api/v1/nodes") or []
    except ClusterError as error:
        yield unknown("machines", str(error), "run this as someone who may list nodes")
        return
    sizes = [_allocatable(node) for node in nodes if not node["spec"].get("unschedulable")]
    none = True
    for stage, resources in subject.stages:
        asked = amounts_of(resources)
        if not any(all(size.get(name, 0) >= amount for name, amount in asked.items()) for size in sizes):
            none = False
            text = ", ".join(f"{_text(amount)} {name}" for name, amount in asked.items())
            fact = f"no machine holds a pod of {stage}: {text}"
            yield warning("machines", fact, "ask for less, unless the cluster grows by itself")
    if none:
        yield ok("machines", f"one of {len(sizes)} holds a pod of each stage")


def _allocatable(node: Json) -> Amounts:
    return {name: _quantity(value) for name, value in node["status"]["allocatable"].items()}


def _quantity(value: object) -> Decimal:
    from kubernetes.utils.quantity import parse_quantity

    return Decimal(parse_quantity(str(value)))


def _text(amount: Decimal) -> str:
    if amount >= 2**30:
        return f"{amount / 2**30:.4g}Gi"
    return f"{amount.normalize():f}"
