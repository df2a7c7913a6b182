"""The command that says where a prompt, a source or a text went."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from kubealign.cli.connection import print_rows
from kubealign.cli.terminal import say
from kubealign_components.config import require
from kubealign_components.errors import NotFound


@click.command("why")
@click.argument("what", metavar="ID_SOURCE_OR_TEXT")
@click.argument("folder", metavar="[OUTPUT_OR_RUN]", required=False, default="runs")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def why(what: str, folder: str, as_json: bool) -> None:
    """Say which datasets and models of the runs here hold a prompt, a source or a text, and in how many rows.

    WHAT is the id of a prompt or completion (eight digits are enough), the name of a source, or a text within
    a message or what its source says of it, such as the name of an annotator. A model holds what it was
    trained on. Looked for in all runs below the folder OUTPUT (runs), or in one RUN.
    """
    from kubealign.local.runs import find_run, is_run, no_such_run, runs_below
    from kubealign.why import holders

    require(bool(what.strip()), "ID_SOURCE_OR_TEXT", what, "an id, the name of a source, or a text")
    one = find_run(folder) if is_run(Path(folder)) or not Path(folder).is_dir() else None
    if one is None and not Path(folder).is_dir():
        raise NotFound(no_such_run(folder))
    held = [one for one in holders(what, [one] if one else runs_below(Path(folder))[::-1]) if one.rows != 0]
    if as_json:
        click.echo(json.dumps([asdict(one) for one in held], indent=2, ensure_ascii=False))
        return
    if not held:
        say(f"Nothing here holds {what!r}.")
    print_rows(
        [
            {
                "run": one.run,
                "made by": one.stage,
                "kind": "model" if one.model else "dataset",
                "rows": "unknown: what it was trained on is gone"
                if one.rows is None
                else f"{one.rows} of {one.of}",
                "where": one.uri,
            }
            for one in held
        ],
        as_json=False,
    )
