"""The command that holds datasets and models to their manifests."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from kubealign.cli.terminal import say
from kubealign_components.errors import CorruptDataset, NotFound

if TYPE_CHECKING:
    from kubealign.verify import Verified


@click.command("verify")
@click.argument("target", metavar="PATH_OR_URI_OR_RUN")
@click.argument("stage", required=False, default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(target: str, stage: str, as_json: bool) -> None:
    """Recompute every digest and row count of a dataset or model, and of every ancestor that is still there.

    Of a RUN here (folder or name below runs/): of what STAGE made, by default the last. Exit code 1 where a
    single byte is not what it was; ancestors that are gone are told.
    """
    from kubealign.lineage import last_made
    from kubealign.local.runs import find_run, output_path
    from kubealign.verify import DAMAGED, GONE, verify

    run = find_run(target)
    if run is not None:
        target = str(output_path(run, stage)) if stage else last_made(run).uri
    looked_at = []
    for one in verify(target):
        looked_at.append(one)
        if not as_json:
            said = one.reason or f"{one.stage}, {one.rows} rows, {one.files} files, {_licence(one)}"
            say(f"{one.state:<8}{one.uri}: {said}")
    if as_json:
        click.echo(json.dumps([asdict(one) for one in looked_at], indent=2, ensure_ascii=False))
    damaged = [one for one in looked_at if one.state == DAMAGED]
    if looked_at[0].state == GONE:
        raise NotFound(looked_at[0].reason)
    if damaged:
        raise CorruptDataset(f"{len(damaged)} of {len(looked_at)} are not what their manifests say")


def _licence(one: Verified) -> str:
    return f"licence {one.license}" if one.license else "no licence"
