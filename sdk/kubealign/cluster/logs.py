"""What a run's tasks wrote: from their pods, and when those are gone from the object store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from kubealign.cluster.client import PATIENCE, Cluster, patiently
from kubealign.cluster.outputs import StoredOutput, log_text, logs_of, names_task, outputs_of, plain, root_of
from kubealign.cluster.pods import Pod, arriving, failed_of, log_of, pods_of
from kubealign.errors import ClusterError
from kubealign_components.config import require
from kubealign_components.errors import KubeAlignError, NotFound
from kubealign_components.progress import ProcessBars

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run


P = TypeVar("P", Pod, StoredOutput)


def log_lines(
    cluster: Cluster, run: V2beta1Run, task: str, pipeline_root: str, over: Callable[[], bool] | None
) -> Iterator[str]:
    """Lines of the logs of ``run``, those of each pod under a line that says whose they are.

    Args:
        cluster: where the run is.
        run: as KFP gives it.
        task: whose logs; empty for those that failed, else all.
        pipeline_root: where the run's outputs lie, if the run does not say.
        over: to stay until this says that the run has ended; None to write what there is.

    Raises:
        NotFound: no pod and no stored log; says why.
        ConfigError: no such task has run.
    """
    namespace = cluster.namespace_of(run)
    titles = _titles(cluster, run)

    def look() -> list[Pod]:
        seconds = 0.0 if over is None else PATIENCE
        pods = patiently(lambda: pods_of(cluster.kubernetes, namespace, run.run_id), seconds=seconds)
        return _of_task(pods, task, titles, waiting=over is not None or not pods)

    def chosen() -> Iterable[Pod]:
        if over is not None:
            return arriving(look, over)
        pods = look()
        return pods if task else failed_of(pods) or pods

    try:
        written = _from_pods(cluster, namespace, chosen(), titles, over)
        first = next(written, None)
        reason = f"none of its pods is left in namespace {namespace}"
    except ClusterError as error:
        first, reason = None, str(error)
    if first is not None:
        yield first
        yield from written
        return
    yield from _from_store(cluster, run, task, pipeline_root, titles, reason)


def _from_pods(
    cluster: Cluster,
    namespace: str,
    pods: Iterable[Pod],
    titles: Mapping[str, str],
    over: Callable[[], bool] | None,
) -> Iterator[str]:
    for pod in pods:
        yield f"== {_pod_title(pod, titles)} {pod.name} {pod.phase}".rstrip()
        try:
            lines = log_of(cluster.kubernetes, namespace, pod, follow=over is not None)
            bars = ProcessBars()
            yield from (whole for line in lines if (whole := bars.line(line)) is not None)
        except ClusterError as error:
            yield f"-- {error}"


def _from_store(
    cluster: Cluster, run: V2beta1Run, task: str, pipeline_root: str, titles: Mapping[str, str], reason: str
) -> Iterator[str]:
    try:
        spec = cluster.pipeline_of(run)
        root = root_of(run, spec, pipeline_root, lambda: cluster.namespace_of(run), cluster.kubernetes)
        logs = logs_of(outputs_of(root, spec["pipelineInfo"]["name"], run.run_id))
    except KubeAlignError as error:
        raise NotFound(f"run {run.run_id} has no logs: {reason}; and none in the store: {error}") from error
    if not logs:
        raise NotFound(f"run {run.run_id} has no logs: {reason}, and below {root} lie none")
    for log in _of_task(logs, task, titles):
        yield f"== {titles.get(log.task, log.task)} {log.uri}"
        yield from log_text(log)


def _of_task(pods: Sequence[P], task: str, titles: Mapping[str, str], *, waiting: bool = False) -> list[P]:
    """Those of ``pods`` (pods or logs) that are of ``task``, by KFP's name of it or by its title.

    Raises:
        ConfigError: there are none, unless one is ``waiting`` for them.
    """
    tasks = {one.task for one in pods}
    exact = {one for one in tasks if plain(task) in (one, plain(titles.get(one, "")))}
    meant = exact or {one for one in tasks if names_task(task, one)}
    names = ", ".join(sorted(tasks))
    require(waiting or not task or bool(meant), "TASK", task, f"a task that has run: one of {names}")
    return [one for one in pods if not task or one.task in meant]


def _pod_title(pod: Pod, titles: Mapping[str, str]) -> str:
    parts = [titles.get(pod.task, pod.task)]
    parts += [f"chunk {chunk + 1}" for chunk in pod.chunks]
    parts += [f"attempt {pod.attempt + 1}"] if pod.attempt else []
    return ", ".join(parts)


def _titles(cluster: Cluster, run: V2beta1Run) -> dict[str, str]:
    """Titles of tasks by KFP's names of them; none where the server does not tell the pipeline."""
    try:
        spec = cluster.pipeline_of(run)
    except ClusterError:
        return {}
    dags = [spec["root"], *spec.get("components", {}).values()]
    tasks = [item for dag in dags for item in dag.get("dag", {}).get("tasks", {}).items()]
    return {plain(name): str(task.get("taskInfo", {}).get("name") or name) for name, task in tasks}
