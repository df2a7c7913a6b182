"""The command that shows a folder of runs in the browser."""

from __future__ import annotations

import contextlib
import webbrowser
from pathlib import Path

import click

from kubealign.cli.options import output_argument
from kubealign.cli.terminal import say
from kubealign_components.errors import NotFound


@click.command("ui")
@output_argument
@click.option(
    "--port",
    default=8765,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port on loopback; 0 for any that is free.",
)
@click.option("--open/--no-open", "browser", default=True, help="Open the browser.")
def ui(output: Path, port: int, browser: bool) -> None:
    """Show the runs below the folder OUTPUT (runs) in the browser, until Ctrl-C.

    List, comparison, lineage, every page, and runs under way as they stand. Reads only, and answers this
    machine alone.
    """
    from kubealign.ui.server import Server

    if not output.is_dir():
        raise NotFound(f"{output}: no such folder; name the one that `kubealign run` had as --output")
    with Server(output, port) as server:
        say(f"{output} at {server.address} (Ctrl-C ends it)")
        if browser:
            webbrowser.open(server.address)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
