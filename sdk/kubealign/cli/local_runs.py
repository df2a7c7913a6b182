"""Commands on the runs of this machine: ls, open, du; and what logs and gc do with them."""

from __future__ import annotations

import json
import time
import webbrowser
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kubealign.cli.connection import print_rows
from kubealign.cli.options import output_argument
from kubealign.cli.terminal import say
from kubealign_components.errors import NotFound

if TYPE_CHECKING:
    from kubealign.local.gc import Garbage
    from kubealign.local.runs import RunInfo
    from kubealign_components.data.leftovers import Stale


@click.command("ls")
@output_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def ls(output: Path, as_json: bool) -> None:
    """List the runs below the folder OUTPUT (runs), newest first."""
    from kubealign.local.runs import runs_below

    print_rows([_row(run) for run in runs_below(output)], as_json)


@click.command("open")
@click.argument("run")
def open_(run: str) -> None:
    """Open the page of RUN (folder, or name below runs/) in the browser."""
    from kubealign.local.runs import find_run, no_such_run

    listed = find_run(run)
    if listed is None:
        raise NotFound(no_such_run(run))
    if not listed.folder.summary.is_file():
        raise NotFound(f"{run} has no page: it is {listed.state}; `kubealign logs {run}` shows its logs")
    say(listed.folder.summary)
    webbrowser.open(listed.folder.summary.resolve().as_uri())


@click.command("du")
@output_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def du(output: Path, as_json: bool) -> None:
    """Tell what the runs below OUTPUT (runs) take on the disk, and the rows that they share by stage.

    A file of several names counts once, where it is told first.
    """
    from kubealign.local.runs import WORK, runs_below, size_of

    seen: set[tuple[int, int]] = set()
    stages = sorted(path for path in (output / WORK).glob("*") if path.is_dir())
    sizes = {f"{WORK}/{stage.name}": size_of([stage], seen) for stage in stages}
    for run in runs_below(output):
        sizes[f"models of {run.name}"] = size_of(run.models, seen)
        sizes[f"rest of {run.name}"] = size_of([run.folder.path], seen)
    sizes["all"] = sum(sizes.values())
    if as_json:
        click.echo(json.dumps(sizes, indent=2, ensure_ascii=False))
    else:
        print_rows([{"size": size_text(size), "what": what} for what, size in sizes.items()], as_json)


def print_logs(run: RunInfo, stage: str, *, follow: bool) -> None:
    """Print the logs of a run here; with ``follow`` also what is written until it ends."""
    from kubealign.local.runs import RUNNING, log_files, read_run, task_of
    from kubealign.local.watcher import own_lines

    printed: dict[Path, int] = {}
    while True:
        over = read_run(run.folder.path).state != RUNNING
        for file in log_files(run, stage):
            lines = list(own_lines(file.read_text(errors="replace")))
            if file not in printed:
                say(f"==> {task_of(file)} <== {file}")
            for line in lines[printed.get(file, 0) :]:
                say(line)
            printed[file] = len(lines)
        if over or not follow:
            return
        time.sleep(1.0)


def collect(garbage: Iterable[Garbage | Stale], *, remove: bool) -> None:
    """Name what may go, and remove it if that is wanted."""
    count = total = 0
    for one in garbage:
        if remove:
            one.remove()
        say(f"{'removed' if remove else 'would remove'} {one.uri} ({size_text(one.size)}): {one.reason}")
        count, total = count + 1, total + one.size
    freed = size_text(total)
    say(f"{count} to remove, {freed}; --yes removes them" if not remove else f"{freed} freed")


def size_text(size: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _row(run: RunInfo) -> dict[str, str]:
    gain = run.results.get("evaluation", {}).get("reward_gain")
    return {
        "name": run.name,
        "pipeline": str(run.results.get("pipeline", "")),
        "state": run.state,
        "began": f"{run.began:%Y-%m-%d %H:%M}",
        "seconds": f"{run.results['seconds']:.0f}" if "seconds" in run.results else "",
        "gain": "" if gain is None else f"{gain:+.4g}",
    }
