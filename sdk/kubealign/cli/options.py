"""What commands have in common on the command line: PIPELINE, --file and --set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import click

from kubealign_pipelines import PIPELINES

P = ParamSpec("P")


def run_options(command: Callable[P, None]) -> Callable[P, None]:
    """PIPELINE, --file and --set; :func:`load_run` reads them."""

    @click.argument("pipeline", required=False, type=click.Choice(PIPELINES))
    @click.option(
        "-f",
        "--file",
        "file",
        type=click.Path(path_type=Path),
        help="Run file: pipeline, parameters, compile and local sections.",
    )
    @click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="NAME=VALUE",
        help="Set a parameter (a YAML value), NAME.KEY a key of a mapping, NAME.0 an item of a list.",
    )
    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        command(*args, **kwargs)

    return wrapped


def load_run(pipeline: str | None, file: Path | None, assignments: tuple[str, ...]) -> Any:
    """The run file that the options name, with what they set.

    Raises:
        ConfigError: a run file or an assignment that cannot be used.
        click.UsageError: neither a pipeline nor a file.
    """
    from kubealign.runfile import RunFile, load_run_file

    run = load_run_file(file) if file else RunFile()
    if pipeline:
        run = replace(run, pipeline=pipeline)
    elif not file:
        raise click.UsageError("name a PIPELINE or give a run file with -f")
    return run.with_parameters(assignments)
