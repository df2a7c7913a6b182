"""The command ``kubealign gc``."""

from __future__ import annotations

import click


@click.command("gc")
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
    help="How long a TrainJob that ended stays.",
)
@click.option(
    "--grace-minutes",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="How long one stays whose run is over.",
)
@click.option("--dry-run", is_flag=True, help="Tell what would go, and delete nothing.")
def gc(namespace: str, keep_hours: float, grace_minutes: float, dry_run: bool) -> None:
    """Delete the TrainJobs of runs that were stopped or lost, and those that ended long ago."""
    import datetime

    from kubealign.cluster.gc import left_over
    from kubealign_components.trainjob.api import connect

    api = connect(namespace, deadline=60.0)
    found = list(
        left_over(
            api,
            keep=datetime.timedelta(hours=keep_hours),
            grace=datetime.timedelta(minutes=grace_minutes),
            now=datetime.datetime.now(datetime.UTC),
        )
    )
    for one in found:
        if not dry_run:
            api.delete_job(one.name, uid=one.uid)
        run = f" (run {one.run})" if one.run else ""
        click.echo(f"{'would delete' if dry_run else 'deleted'} {one.name}{run}: {one.reason}")
    click.echo(f"{len(found)} TrainJobs in namespace {api.namespace}{' to delete' * dry_run}")
