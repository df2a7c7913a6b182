"""The command that says where a prompt, a source or a text went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kubealign.cli.connection import print_rows
from kubealign.cli.terminal import counted, say
from kubealign_components.config import require
from kubealign_components.errors import NotFound

if TYPE_CHECKING:
    from kubealign.local.runs import RunInfo
    from kubealign.why import Holder


@click.command("why")
@click.argument("what", metavar="ID_SOURCE_OR_TEXT")
@click.argument("folder", metavar="[OUTPUT_OR_RUN]", required=False, default="runs")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def why(what: str, folder: str, as_json: bool) -> None:
    """Say which datasets and models of the runs here hold a prompt, a source or a text, and in how many rows.

    WHAT is the id of a prompt or completion (eight digits are enough), the name of a source, or a text within
    a message or what its source says of it, such as the name of an annotator. A model holds what it was
    trained on. Looked for in all runs below the folder OUTPUT (runs), or in one RUN, those under way and
    those that were killed included; not in the work prefix.
    """
    from kubealign.why import RowsWith, holders

    require(bool(what.strip()), "ID_SOURCE_OR_TEXT", what, "an id, the name of a source, or a text")
    runs = runs_at(folder)
    held = [one for one in holders(RowsWith(what), runs) if one.rows != 0]
    if not held and not as_json:
        say(f"No dataset or model of {counted(len(runs), 'run')} here holds {what!r}.")
    show_holders(held, as_json=as_json)
    if not as_json:
        say_what_was_not_searched(runs)


def runs_at(folder: str) -> list[RunInfo]:
    """The runs below an output folder, oldest first, or the one run of that path or name.

    Raises:
        NotFound: there is no such run or folder.
    """
    from kubealign.local.runs import find_run, is_run, no_such_run, runs_below

    if Path(folder).is_dir() and not is_run(Path(folder)):
        return runs_below(Path(folder))[::-1]
    run = find_run(folder)
    if run is None:
        raise NotFound(no_such_run(folder))
    return [run]


def say_what_was_not_searched(runs: Sequence[RunInfo]) -> None:
    """Name the places beside the datasets and models of ``runs`` where rows may be."""
    from kubealign.local.runs import RUNNING

    if under_way := [run.name for run in runs if run.state == RUNNING]:
        say(f"Under way, and not yet all there: {', '.join(under_way)}; ask again when they have ended.")
    say(
        "Not searched: finished rows and checkpoints in the work prefix; "
        "`kubealign gc` finds those that no run refers to any more."
    )


def show_holders(held: Sequence[Holder], *, as_json: bool) -> None:
    """Print ``held`` as a table, or as JSON."""
    if as_json:
        click.echo(json.dumps([asdict(one) for one in held], indent=2, ensure_ascii=False))
        return
    unknown = "unknown: what it was trained on is gone"
    print_rows(
        [
            {
                "run": one.run,
                "made by": one.stage,
                "kind": "model" if one.model else "dataset",
                "rows": unknown if one.rows is None else f"{one.rows} of {one.of}",
                "where": one.uri,
            }
            for one in held
        ],
        as_json=False,
    )
