"""``kubealign components``: the stages as files that other people's pipelines load."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from kubealign.cli.arguments import LocalPath
from kubealign.cli.terminal import say


@click.command("components")
@click.option("-o", "--output", required=True, type=LocalPath(), help="Folder to write to.")
@click.option("--registry", default="", help="Registry of the images, with a path if need be.")
@click.option("--owner", "owners", multiple=True, help="An account that approves changes; repeatable.")
@click.option(
    "--verified",
    type=click.DateTime(["%Y-%m-%d"]),
    help="When they were last tried, by default today.",
)
def components(output: Path, registry: str, owners: tuple[str, ...], verified: datetime | None) -> None:
    """Write every component as a catalogue has it: YAML to load, metadata, README and owners.

    A pipeline loads one by kfp.components.load_component_from_file, or from an address.
    """
    from kubealign_pipelines.catalogue import write_catalogue
    from kubealign_pipelines.resources import CompileSettings

    day = (verified or datetime.now()).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=UTC)
    written = write_catalogue(output, CompileSettings(registry=registry), verified=day, owners=owners)
    say(f"{output}: {len(written)} components")
