"""Commands that speak to Kubeflow Pipelines of runs: submit, upload, runs, cancel, retry, logs, fetch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kubealign.cli.arguments import LocalPath
from kubealign.cli.connection import compiled, connected, placement, print_rows
from kubealign.cli.local_runs import print_logs
from kubealign.cli.options import Given, run_options
from kubealign.cli.terminal import say
from kubealign.cluster.workflows import DONE, GONE, OVER, UNENDED, reported_state, states_of
from kubealign.errors import ClusterError, RunFailed
from kubealign_components.config import require
from kubealign_components.errors import NotFound

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

    from kubealign.cluster.client import Cluster
    from kubealign.cluster.outputs import StoredOutput


@click.command("submit")
@run_options
@placement
@click.option("--name", default="", help="Name of the run; pipeline, date and time by default.")
@click.option("--wait", is_flag=True, help="Wait for its end; exit code 1 unless it succeeds.")
@connected
def submit(
    given: Given,
    name: str,
    wait: bool,
    connect: Callable[[], Cluster],
    **placed: str,
) -> None:
    """Run PIPELINE on a cluster; parameters are checked before anything is sent."""
    run = given.checked()
    with compiled(run) as (package, parameters):
        cluster = connect()
        name = name or f"{run.name} {datetime.now():%Y-%m-%d %H-%M-%S}"
        run_id = cluster.submit(package, parameters, name=name, **placed)
    say(f"{run_id}  {name}\n{cluster.link(run_id)}".rstrip())
    if wait:
        _wait(cluster, run_id)


@click.command("upload")
@run_options
@click.option("--name", default="", help="Name of the pipeline; its own by default.")
@click.option("--version", default="", help="Name of the version; by default package version and digest.")
@click.option("--description", default="", help="What is said of it in the UI.")
@connected
def upload(
    given: Given,
    name: str,
    version: str,
    description: str,
    connect: Callable[[], Cluster],
) -> None:
    """Upload PIPELINE as a version; parameters of the run file become defaults."""
    from kubealign.cluster.client import names_of

    run = given.checked(complete=False)
    with compiled(run, as_defaults=True) as (package, _):
        own, digest = names_of(package)
        name, version = name or own, version or digest
        uploaded = connect().upload(package, pipeline=name, version=version, description=description)
    say(f"{uploaded.id}  {name} {version}")


@click.command("runs")
@click.option("--experiment", default="", help="Only those of one experiment.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="How many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@connected
def runs(experiment: str, limit: int, as_json: bool, connect: Callable[[], Cluster]) -> None:
    """List the runs of a cluster, newest first.

    A run that did not end and whose Workflow is gone is unknown: nobody can say what became of it.
    """
    cluster = connect()
    rows = cluster.runs(experiment=experiment, limit=limit)
    states = _states(cluster, rows)
    print_rows([_run_row(run, states[str(run.run_id)]) for run in rows], as_json)
    if GONE in states.values():
        say(f"{GONE}: no Workflow in the cluster of the kubeconfig, if that is the one of --host", err=True)


@click.command("cancel")
@click.argument("run")
@connected
def cancel(run: str, connect: Callable[[], Cluster]) -> None:
    """Stop RUN (id or name); finished rows and checkpoints are kept."""
    cluster = connect()
    chosen = cluster.run(run)
    state = _state(cluster, chosen)
    require(state in UNENDED or state == GONE, "RUN", run, f"a run that has not ended; this one is {state}")
    cluster.cancel(chosen)
    say(f"{chosen.run_id}  {chosen.display_name}: canceling")


@click.command("retry")
@click.argument("run")
@click.option("--wait", is_flag=True, help="Wait for its end; exit code 1 unless it succeeds.")
@connected
def retry(run: str, wait: bool, connect: Callable[[], Cluster]) -> None:
    """Let RUN (id or name) go on from the tasks that failed; what is finished stays."""
    cluster = connect()
    chosen = cluster.run(run)
    state = _state(cluster, chosen)
    expected = "a run that failed or was canceled; this one"
    require(state in ("failed", "canceled"), "RUN", run, f"{expected} is {state}")
    cluster.retry(chosen)
    say(f"{chosen.run_id}  {chosen.display_name}: goes on")
    if wait:
        _wait(cluster, chosen.run_id)


@click.command("logs")
@click.argument("run")
@click.argument("task", required=False, default="")
@click.option("--follow", is_flag=True, help="Stay, pod by pod, until the run ends.")
@click.option("--pipeline-root", default="", help="Where the run's outputs lie, if the run does not say.")
@connected
def logs(run: str, task: str, follow: bool, pipeline_root: str, connect: Callable[[], Cluster]) -> None:
    """Print what the tasks of RUN wrote; of TASK, else of what failed, else of all.

    RUN is a run here (folder, or name below runs/), or one of a cluster (id or name): from the cluster while
    its pods are there, and then from the object store, where KFP keeps it.
    """
    from kubealign.local.runs import find_run

    if here := find_run(run):
        print_logs(here, task, follow=follow)
        return
    from kubealign.cluster.client import patiently
    from kubealign.cluster.logs import log_lines

    cluster = cluster_for(run, connect)
    chosen = cluster.run(run)

    def over() -> bool:
        return _state(cluster, patiently(lambda: cluster.run(chosen.run_id))) not in UNENDED

    for line in log_lines(cluster, chosen, task, pipeline_root, over if follow else None):
        say(line)


@click.command("fetch")
@click.argument("run")
@click.argument("output_name", metavar="[OUTPUT]", required=False, default="model")
@click.option("-o", "--output", type=LocalPath(), help="Where to; by default ./OUTPUT.")
@click.option("--pipeline-root", default="", help="Where the run's outputs lie, if the run does not say.")
@connected
def fetch(
    run: str, output_name: str, output: Path | None, pipeline_root: str, connect: Callable[[], Cluster]
) -> None:
    """Copy an output of RUN (id or name) here: OUTPUT or TASK.OUTPUT, by default the model."""
    from kubealign.cluster.outputs import fetch_output

    chosen = output_of(connect(), run, output_name, pipeline_root)
    target = fetch_output(chosen, output or Path(chosen.name))
    say(f"{target}: {chosen.title}, {len(chosen.objects)} files, {sum(o.size for o in chosen.objects)} B")


def cluster_for(run: str, connect: Callable[[], Cluster]) -> Cluster:
    """The cluster to ask for ``run``, which is not on this machine.

    Raises:
        NotFound: there is none to ask.
    """
    from kubealign.local.runs import no_such_run

    try:
        return connect()
    except ClusterError as error:
        raise NotFound(f"{no_such_run(run)}; and no cluster could be asked for it ({error})") from error


def output_of(cluster: Cluster, run: str, name: str, pipeline_root: str) -> StoredOutput:
    """The output ``name`` of ``run`` (id or name)."""
    from kubealign.cluster.outputs import find_output, root_of

    chosen = cluster.run(run)
    spec = cluster.pipeline_of(chosen)
    root = root_of(chosen, spec, pipeline_root, lambda: cluster.namespace_of(chosen), cluster.kubernetes)
    return find_output(chosen, spec, root, name, lambda: cluster.earlier(chosen))


def _wait(cluster: Cluster, run_id: str, seconds: float = 5.0) -> None:
    from kubealign.cluster.client import patiently

    state, had_workflow = "", False
    while state not in OVER:
        run = patiently(lambda: cluster.run(run_id))
        now = _state(cluster, run)
        # What was never there is not gone: the kubeconfig may be of another cluster.
        now = reported_state(run) if now == GONE and not had_workflow else now
        had_workflow = had_workflow or now in UNENDED
        if now != state:
            state = now
            say(state)
        if state not in OVER:
            time.sleep(seconds)
    if state not in DONE:
        reason = run.error.message if run.error else f"{state}; see `kubealign logs {run_id}`"
        raise RunFailed(f"run {run_id}", reason)


def _states(cluster: Cluster, runs: Sequence[V2beta1Run]) -> dict[str, str]:
    if not runs:
        return {}
    return states_of(runs, cluster.kubernetes, cluster.namespace_of(runs[0]))


def _state(cluster: Cluster, run: V2beta1Run) -> str:
    return _states(cluster, [run])[str(run.run_id)]


def _run_row(run: V2beta1Run, state: str) -> dict[str, str]:
    seconds = (run.finished_at - run.created_at).total_seconds() if _ended(run) else None
    return {
        "id": str(run.run_id),
        "name": str(run.display_name),
        "state": state,
        "created": f"{run.created_at:%Y-%m-%d %H:%M}" if run.created_at else "",
        "seconds": "" if seconds is None else f"{seconds:.0f}",
    }


def _ended(run: V2beta1Run) -> bool:
    # The server gives the year 1970 for a run that has not ended.
    return bool(run.created_at and run.finished_at and run.finished_at >= run.created_at)
