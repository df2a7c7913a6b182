"""The command ``kubealign schedule``: recurring runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from kubealign.cli.connection import compiled, connected, placement, print_rows
from kubealign.cli.options import Given, run_options
from kubealign.cli.terminal import say
from kubealign_components.config import require

if TYPE_CHECKING:
    from kfp_server_api import V2beta1RecurringRun

    from kubealign.cluster.client import Cluster


@click.group("schedule")
def schedule() -> None:
    """Recurring runs, by name: apply, list, pause, resume, delete."""


@schedule.command("apply")
@click.argument("name")
@run_options
@placement
@click.option("--cron", default="", help="Second minute hour day month weekday, such as '0 0 3 * * *'.")
@click.option("--every", default="", help="Instead of --cron an interval: 90s, 30m, 6h, 1d.")
@click.option("--catch-up", is_flag=True, help="Make up for runs that were missed.")
@click.option("--at-once", default=1, show_default=True, help="Most runs at the same time.")
@click.option("--paused", is_flag=True, help="Start no runs for now.")
@connected
def apply_(
    name: str,
    given: Given,
    connect: Callable[[], Cluster],
    **settings: Any,
) -> None:
    """Make the schedule NAME be as given: create it, replace it, or leave it when nothing differs."""
    from kubealign.cluster.schedule import Schedule

    schedule = Schedule(name=name, **settings)
    run = given.checked()
    work = run.parameters.get("work", "")
    # Without it every run keeps its work beside its own outputs, and computes everything anew.
    require(bool(work), "work", work, "a prefix that the runs share, such as gs://my-bucket/kubealign/work")
    with compiled(run) as (package, parameters):
        done = connect().apply(schedule, package, parameters)
    say(f"{name}: {done}{', paused' if schedule.paused else ''}")


@schedule.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@connected
def list_(as_json: bool, connect: Callable[[], Cluster]) -> None:
    """List the schedules of the namespace."""
    print_rows([_schedule_row(schedule) for schedule in connect().schedules()], as_json)


@schedule.command("pause")
@click.argument("name")
@connected
def pause(name: str, connect: Callable[[], Cluster]) -> None:
    """Start no more runs of NAME until it is resumed."""
    connect().pause(name)
    say(f"{name}: paused")


@schedule.command("resume")
@click.argument("name")
@connected
def resume(name: str, connect: Callable[[], Cluster]) -> None:
    """Let NAME go on."""
    connect().pause(name, paused=False)
    say(f"{name}: resumed")


@schedule.command("delete")
@click.argument("name")
@connected
def delete(name: str, connect: Callable[[], Cluster]) -> None:
    """Delete the schedule NAME; runs that it started stay."""
    connect().delete_schedule(name)
    say(f"{name}: deleted")


def _schedule_row(schedule: V2beta1RecurringRun) -> dict[str, str]:
    trigger = schedule.trigger
    cron = trigger.cron_schedule.cron if trigger and trigger.cron_schedule else None
    every = trigger.periodic_schedule.interval_second if trigger and trigger.periodic_schedule else None
    return {
        "name": str(schedule.display_name),
        "when": str(cron or f"every {every} s"),
        "state": "running" if schedule.mode == "ENABLE" else "paused",
        "at once": str(schedule.max_concurrency),
        "catch up": "no" if schedule.no_catchup else "yes",
        "id": str(schedule.recurring_run_id),
    }
