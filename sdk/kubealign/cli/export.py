"""``kubealign export``: a dataset for other tools."""

from __future__ import annotations

from pathlib import Path

import click

from kubealign.cli.arguments import LocalPath
from kubealign.cli.terminal import say

FORMATS = ("trl", "sharegpt", "parquet")


@click.command("export")
@click.argument("dataset")
@click.option(
    "--format", "form", default="trl", show_default=True, type=click.Choice(FORMATS), help="Of rows."
)
@click.option("-o", "--output", required=True, type=LocalPath(), help="New folder for rows and card.")
@click.option("--push", "repository", default="", help="Push them to this dataset of the Hugging Face hub.")
def export(dataset: str, form: str, output: Path, repository: str) -> None:
    """Write DATASET (path or URI) in the form of another tool, with a card.

    trl: prompt, chosen and rejected, or completion and label, as JSON lines. sharegpt: conversations.
    parquet: the rows as they are.
    """
    from kubealign.lineage import open_output
    from kubealign_components.data import export as exporting

    file = exporting.export(open_output(dataset), form, output)
    say(str(file))
    if repository:
        say(exporting.push(output, repository))
