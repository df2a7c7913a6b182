"""The command that writes the card of a model or dataset."""

from __future__ import annotations

from pathlib import Path

import click

from kubealign.cli.arguments import LocalPath
from kubealign.cli.terminal import say
from kubealign_components.whole_file import write_whole


@click.command("card")
@click.argument("target", metavar="PATH_OR_URI_OR_RUN")
@click.argument("stage", required=False, default="")
@click.option("-o", "--output", type=LocalPath(), help="File to write, such as README.md.")
def card(target: str, stage: str, output: Path | None) -> None:
    """Write the card of a model or dataset, in the form of the Hugging Face hub.

    What it was made of, by which settings, and of a RUN's model (folder or name below runs/, the default) how
    it compares with its reference. Of a RUN also what STAGE made.
    """
    from kubealign.card import card
    from kubealign.lineage import open_output
    from kubealign.local.runs import find_run, output_path

    run = find_run(target)
    evaluation = None
    if run is not None and stage:
        target = str(output_path(run, stage))
    elif run is not None and (model := run.model):
        target, evaluation = str(model), dict(run.results.get("evaluation", {}))
    text = card(open_output(target), evaluation)
    if output:
        write_whole(output, text)
        say(output)
    else:
        click.echo(text, nl=False)
