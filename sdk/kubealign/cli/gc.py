"""The command ``kubealign gc``."""

from __future__ import annotations

from pathlib import Path

import click

from kubealign.cli.local_runs import collect
from kubealign.cli.terminal import say


@click.command("gc")
@click.argument("output", metavar="[OUTPUT_OR_URI]", required=False)
@click.option(
    "--models",
    default=3,
    show_default=True,
    type=click.IntRange(min=0),
    help="Of runs here: how many of the newest keep their models.",
)
@click.option("--keep-failed", is_flag=True, help="Of runs here: keep what failed, to go on with it.")
@click.option("--yes", is_flag=True, help="With OUTPUT or URI: remove; without it they are only named.")
@click.option(
    "-n",
    "--namespace",
    default="",
    envvar="KUBEALIGN_NAMESPACE",
    help="By default the pod's own, or the kubeconfig context's.",
)
@click.option(
    "--keep-hours",
    default=168.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="How long a TrainJob that ended stays; with a URI, what was written since then.",
)
@click.option(
    "--grace-minutes",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="How long one stays whose run is over.",
)
@click.option("--dry-run", is_flag=True, help="Tell what would go, and delete nothing.")
def gc(
    output: str | None,
    models: int,
    keep_failed: bool,
    yes: bool,
    namespace: str,
    keep_hours: float,
    grace_minutes: float,
    dry_run: bool,
) -> None:
    """Delete the TrainJobs of runs that were stopped or lost, and those that ended long ago.

    With OUTPUT, a folder of runs here, name instead what may go of it: failed runs, models but the newest,
    rows that no kept run refers to, and what killed processes left; --yes removes it.

    With the URI of a work prefix (gs://, s3://, minio://): unfinished uploads, halves of objects, and what
    was damaged and set aside, if nobody has written to it for --keep-hours.
    """
    remove = yes and not dry_run
    if output is not None and "://" in output:
        from kubealign_components.data.leftovers import stale

        collect(stale(output, older=keep_hours * 3600), remove=remove)
        return
    if output is not None:
        from kubealign.local.gc import garbage

        collect(garbage(Path(output), models=models, keep_failed=keep_failed), remove=remove)
        return
    import datetime

    from kubealign.cluster.gc import left_over
    from kubealign_components.trainjob.api import connect

    api = connect(namespace, deadline=60.0)
    jobs = list(
        left_over(
            api,
            keep=datetime.timedelta(hours=keep_hours),
            grace=datetime.timedelta(minutes=grace_minutes),
            now=datetime.datetime.now(datetime.UTC),
        )
    )
    for one in jobs:
        if not dry_run:
            api.delete_job(one.name, uid=one.uid)
        run = f" (run {one.run})" if one.run else ""
        say(f"{'would delete' if dry_run else 'deleted'} {one.name}{run}: {one.reason}")
    say(f"{len(jobs)} TrainJobs in namespace {api.namespace}{' to delete' * dry_run}")
