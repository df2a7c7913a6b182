"""Commands that speak to Kubeflow Pipelines: submit, schedule, runs, logs, fetch, upload."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click

from kubealign.cli.options import load_run, run_options
from kubealign_components import __version__
from kubealign_components.config import require

DONE = {"SUCCEEDED", "SKIPPED"}
OVER = DONE | {"FAILED", "CANCELED"}
_CONNECTION: tuple[tuple[str, str, str], ...] = (
    ("host", "KF_PIPELINES_ENDPOINT", "Address of the KFP API; without it this pod's cluster or kubeconfig."),
    ("namespace", "KUBEALIGN_NAMESPACE", "Profile, on a multi-user installation."),
    ("token", "KUBEALIGN_TOKEN", "Bearer token."),
    ("token-file", "KUBEALIGN_TOKEN_FILE", "File with a bearer token, read anew for each request."),
    ("cookies", "KUBEALIGN_COOKIES", "Session cookies of Dex or oauth2-proxy."),
    ("iap-client-id", "KF_PIPELINES_IAP_OAUTH2_CLIENT_ID", "Client id of Identity-Aware Proxy."),
    ("kube-context", "KUBEALIGN_KUBE_CONTEXT", "Context of the kubeconfig."),
    ("ca-cert", "KUBEALIGN_CA_CERT", "File with the server's certificate authority."),
    ("proxy", "KUBEALIGN_PROXY", "HTTP proxy before the server."),
)


def _connected(command: Callable[..., None]) -> Callable[..., None]:
    """The options of the connection; the command gets a ``connect`` that opens it."""

    @wraps(command)
    def wrapped(*args: Any, insecure: bool, **kwargs: Any) -> None:
        names = [name.replace("-", "_") for name, _, _ in _CONNECTION]
        given = {name: kwargs.pop(name) for name in names}

        def connect() -> Any:
            from kubealign.cluster.client import Cluster, Connection

            return Cluster(Connection(verify_ssl=not insecure, **given))

        command(*args, connect=connect, **kwargs)

    decorated: Callable[..., None] = click.option(
        "--insecure", is_flag=True, help="Do not check the server's certificate."
    )(wrapped)
    for name, variable, text in reversed(_CONNECTION):
        decorated = click.option(f"--{name}", default="", envvar=variable, show_envvar=True, help=text)(
            decorated
        )
    return decorated


def _placement(command: Callable[..., None]) -> Callable[..., None]:
    """Options of what runs: experiment, pipeline root, service account."""
    for name, default, text in (
        ("service-account", "", "Service account of the pods."),
        ("pipeline-root", "", "Where outputs go; by default the installation's."),
        ("experiment", "Default", "Experiment; made if it is new."),
    ):
        command = click.option(f"--{name}", default=default, show_default=bool(default), help=text)(command)
    return command


@click.command("submit")
@run_options
@_placement
@click.option("--name", default="", help="Name of the run; pipeline, date and time by default.")
@click.option("--wait", is_flag=True, help="Wait for its end; exit code 1 unless it succeeds.")
@_connected
def submit(
    pipeline: str | None,
    file: Path | None,
    assignments: tuple[str, ...],
    name: str,
    wait: bool,
    connect: Callable[[], Any],
    **placement: str,
) -> None:
    """Run PIPELINE on a cluster; parameters are checked before anything is sent."""
    run = load_run(pipeline, file, assignments)
    with _compiled(run) as package:
        cluster = connect()
        name = name or f"{run.pipeline} {datetime.now():%Y-%m-%d %H-%M-%S}"
        run_id = cluster.submit(package, run.parameters, name=name, **placement)
    click.echo(f"{run_id}  {name}\n{cluster.link(run_id)}".rstrip())
    if wait:
        _wait(cluster, run_id)


@click.command("upload")
@run_options
@click.option("--name", default="", help="Name of the pipeline; its own by default.")
@click.option("--version", default="", help="Name of the version; by default package version and digest.")
@click.option("--description", default="", help="What is said of it in the UI.")
@_connected
def upload(
    pipeline: str | None,
    file: Path | None,
    assignments: tuple[str, ...],
    name: str,
    version: str,
    description: str,
    connect: Callable[[], Any],
) -> None:
    """Upload PIPELINE as a version; parameters of the run file become defaults."""
    run = load_run(pipeline, file, assignments)
    with _compiled(run, as_defaults=True) as package:
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        version = version or f"{__version__}-{digest[:12]}"
        name = name or run.pipeline.replace("_", "-")
        uploaded = connect().upload(package, pipeline=name, version=version, description=description)
    click.echo(f"{uploaded}  {name} {version}")


@click.group("schedule")
def schedule() -> None:
    """Recurring runs, by name: apply, list, pause, resume, delete."""


@schedule.command("apply")
@click.argument("name")
@run_options
@_placement
@click.option("--cron", default="", help="Second minute hour day month weekday, such as '0 0 3 * * *'.")
@click.option("--every", default="", help="Instead of --cron an interval: 90s, 30m, 6h, 1d.")
@click.option("--catch-up", is_flag=True, help="Make up for runs that were missed.")
@click.option("--at-once", default=1, show_default=True, help="Most runs at the same time.")
@click.option("--paused", is_flag=True, help="Start no runs for now.")
@_connected
def apply_(
    name: str,
    pipeline: str | None,
    file: Path | None,
    assignments: tuple[str, ...],
    connect: Callable[[], Any],
    **settings: Any,
) -> None:
    """Make the schedule NAME be as given: create it, replace it, or leave it when nothing differs."""
    from kubealign.cluster.schedule import Schedule

    wanted = Schedule(name=name, **settings)
    run = load_run(pipeline, file, assignments)
    work = run.parameters.get("work", "")
    # Without it every run keeps its work beside its own outputs, and computes everything anew.
    require(bool(work), "work", work, "a prefix that the runs share, such as gs://my-bucket/kubealign/work")
    with _compiled(run) as package:
        done = connect().apply(wanted, package, run.parameters)
    click.echo(f"{name}: {done}{', paused' if wanted.paused else ''}")


@schedule.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_connected
def list_(as_json: bool, connect: Callable[[], Any]) -> None:
    """List the schedules of the namespace."""
    _print_rows([_schedule_row(found) for found in connect().schedules()], as_json)


@schedule.command("pause")
@click.argument("name")
@_connected
def pause(name: str, connect: Callable[[], Any]) -> None:
    """Start no more runs of NAME until it is resumed."""
    connect().pause(name)
    click.echo(f"{name}: paused")


@schedule.command("resume")
@click.argument("name")
@_connected
def resume(name: str, connect: Callable[[], Any]) -> None:
    """Let NAME go on."""
    connect().pause(name, paused=False)
    click.echo(f"{name}: resumed")


@schedule.command("delete")
@click.argument("name")
@_connected
def delete(name: str, connect: Callable[[], Any]) -> None:
    """Delete the schedule NAME; runs that it started stay."""
    connect().delete_schedule(name)
    click.echo(f"{name}: deleted")


@click.command("runs")
@click.option("--experiment", default="", help="Only those of one experiment.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="How many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_connected
def runs(experiment: str, limit: int, as_json: bool, connect: Callable[[], Any]) -> None:
    """List the runs of a cluster, newest first."""
    _print_rows([_run_row(run) for run in connect().runs(experiment=experiment, limit=limit)], as_json)


@click.command("logs")
@click.argument("run")
@click.argument("task", required=False, default="")
@click.option("--follow", is_flag=True, help="Stay until the pods end.")
@_connected
def logs(run: str, task: str, follow: bool, connect: Callable[[], Any]) -> None:
    """Print what the pods of RUN (id or name) wrote; of TASK, else of what failed, else of all."""
    from kubealign.cluster.outputs import log_lines, pods_of

    cluster = connect()
    found = cluster.run(run)
    details = found.run_details.task_details if found.run_details else None
    pods = pods_of(details or (), task)
    failed = [pod for pod in pods if pod.state == "FAILED"]
    require(bool(pods), "RUN", run, "a run whose pods have started")
    for line in log_lines(cluster, found.run_id, pods if task else failed or pods, follow=follow):
        click.echo(line)


@click.command("fetch")
@click.argument("run")
@click.argument("output_name", metavar="[OUTPUT]", required=False, default="model")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to; by default ./OUTPUT.")
@click.option("--pipeline-root", default="", help="Where the run's outputs lie, if the run does not say.")
@_connected
def fetch(
    run: str, output_name: str, output: Path | None, pipeline_root: str, connect: Callable[[], Any]
) -> None:
    """Copy an output of RUN (id or name) here: OUTPUT or TASK.OUTPUT, by default the model."""
    from kubealign.cluster.outputs import choose, fetch_output, outputs_of, root_of

    cluster = connect()
    found = cluster.run(run)
    spec = cluster.pipeline_of(found)
    root = root_of(found, spec, pipeline_root)
    chosen = choose(outputs_of(root, spec["pipelineInfo"]["name"], found.run_id), output_name)
    place = fetch_output(chosen, output or Path(chosen.name))
    click.echo(
        f"{place}: {chosen.title}, {len(chosen.objects)} files, {sum(o.size for o in chosen.objects)} B"
    )


@contextlib.contextmanager
def _compiled(run: Any, *, as_defaults: bool = False) -> Iterator[Path]:
    """The IR of ``run`` in a temporary file, after its parameters have been checked."""
    from kubealign.compiler import compile_pipeline
    from kubealign.parameters import check_parameters

    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        graph = compile_pipeline(run.pipeline, package, run.compile)
        check_parameters(graph, run.parameters, complete=not as_defaults)
        if as_defaults and run.parameters:
            compile_pipeline(run.pipeline, package, run.compile, run.parameters)
        yield package


def _wait(cluster: Any, run_id: str, seconds: float = 5.0) -> None:
    from kubealign.errors import RunFailed

    state = ""
    while state not in OVER:
        run = cluster.run(run_id)
        if run.state != state:
            state = str(run.state)
            click.echo(state.lower())
        if state not in OVER:
            time.sleep(seconds)
    if state not in DONE:
        reason = run.error.message if run.error else f"see `kubealign logs {run_id}`"
        raise RunFailed(f"run {run_id}", reason)


def _run_row(run: Any) -> dict[str, str]:
    seconds = (run.finished_at - run.created_at).total_seconds() if _ended(run) else None
    return {
        "id": str(run.run_id),
        "name": str(run.display_name),
        "state": str(run.state or "").lower(),
        "created": _time(run.created_at),
        "seconds": "" if seconds is None else f"{seconds:.0f}",
    }


def _ended(run: Any) -> bool:
    # The server gives the year 1970 for a run that has not ended.
    return bool(run.created_at and run.finished_at and run.finished_at >= run.created_at)


def _schedule_row(found: Any) -> dict[str, str]:
    trigger = found.trigger
    cron = trigger.cron_schedule.cron if trigger and trigger.cron_schedule else None
    every = trigger.periodic_schedule.interval_second if trigger and trigger.periodic_schedule else None
    return {
        "name": str(found.display_name),
        "when": str(cron or f"every {every} s"),
        "state": "running" if found.mode == "ENABLE" else "paused",
        "at once": str(found.max_concurrency),
        "catch up": "no" if found.no_catchup else "yes",
        "id": str(found.recurring_run_id),
    }


def _time(value: Any) -> str:
    return f"{value:%Y-%m-%d %H:%M}" if value else ""


def _print_rows(rows: list[Mapping[str, str]] | list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in (rows[0] if rows else ())}
    for row in [{name: name.upper() for name in widths}, *rows] if rows else ():
        click.echo("  ".join(row[name].ljust(width) for name, width in widths.items()).rstrip())
