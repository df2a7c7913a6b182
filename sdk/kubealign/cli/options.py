"""What commands have in common on the command line: what is to be run, and the folder of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click

import kubealign_pipelines
from kubealign.cli.arguments import LocalPath, PipelineName
from kubealign.cli.terminal import say
from kubealign_pipelines import PIPELINES

if TYPE_CHECKING:
    from kubealign.runfile import RunFile, Sourced
    from kubealign_pipelines.checking.findings import Finding
    from kubealign_pipelines.checking.run import Report

P = ParamSpec("P")

SHIPPED = {
    path.stem: path
    for path in sorted((Path(kubealign_pipelines.__file__).parent / "params").glob("*.yaml"))
    if path.stem not in PIPELINES
}
"""Run files that come along, by the names under which the command line takes them for a pipeline."""
output_argument = click.argument("output", required=False, default=Path("runs"), type=LocalPath())
"""OUTPUT, the folder that ``kubealign run`` has as --output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """A run as the command line names it."""

    pipeline: str | None
    files: tuple[Path, ...]
    assignments: tuple[str, ...]
    grids: tuple[str, ...] = ()
    halving: int | None = None

    def of(self, pipeline: str) -> Given:
        """The same, of ``pipeline`` where neither a pipeline nor a file is named."""
        return self if self.pipeline or self.files else replace(self, pipeline=pipeline)

    def sourced(self) -> Sourced:
        """The run file, with the place of everything in it.

        Raises:
            click.UsageError: neither a pipeline nor a file.
        """
        from kubealign.runfile import read_run

        if not self.pipeline and not self.files:
            raise click.UsageError("name a PIPELINE or give a run file with -f")
        if self.pipeline in SHIPPED:
            files = (SHIPPED[self.pipeline], *self.files)
            return read_run(files, "", self.assignments, self.grids, self.halving)
        return read_run(self.files, self.pipeline or "", self.assignments, self.grids, self.halving)

    def run(self) -> RunFile:
        """The run file, whatever its parameters are.

        Raises:
            BadSettings: it cannot be used.
        """
        return self.sourced().usable()

    def checked(
        self, *, complete: bool = True, here: bool = False, runner: str = "", output: Path | None = None
    ) -> RunFile:
        """The run file, after everything that can be known of the run was checked; warnings are shown.

        Args:
            complete: whether required parameters must be there.
            here: whether the run is on this machine.
            runner: what tasks run in instead of what the run file says.
            output: the folder that the run will write to.

        Raises:
            BadSettings: says all that is wrong with it.
        """
        from kubealign.checking import check
        from kubealign_pipelines.checking.findings import require_usable

        sourced = self.sourced().with_runner(runner)
        if sourced.run is None:
            sourced.usable()
        report = check(sourced, complete=complete, here=here, output=output)
        require_usable(report.findings)
        show_findings(report.findings)
        return replace(sourced.usable(), parameters=fitted(report))


def fitted(report: Report) -> dict[str, object]:
    """The parameters that were given, by the pipeline's own names, as numbers where a number is asked for."""
    from kubealign_pipelines.flat import fold

    given, values = fold(report.graph, report.given).values, report.checked.values
    return {name: values.get(name, value) for name, value in given.items()}


def show_findings(findings: Sequence[Finding]) -> None:
    """Print ``findings`` on standard error, one a line."""
    for finding in findings:
        say(str(finding), err=True)


def run_options(command: Callable[P, None]) -> Callable[..., None]:
    """PIPELINE, --file, --set, --grid and --halving, which the command gets as ``given``."""

    @click.argument(
        "pipeline", metavar="[PIPELINE]", required=False, type=PipelineName((*PIPELINES, *SHIPPED))
    )
    @click.option(
        "-f",
        "--file",
        "files",
        multiple=True,
        type=LocalPath(),
        help="Run file: pipeline, parameters, compile and local sections. Of several, later ones win.",
    )
    @click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="NAME=VALUE",
        help="Set a parameter (a YAML value), NAME.KEY a key of a mapping, NAME.0 an item of a list, "
        "compile.NAME a setting of that section.",
    )
    @click.option(
        "--grid",
        "grids",
        multiple=True,
        metavar="NAME=VALUE,VALUE",
        help="Sweep: a variant for each value of a setting of select, mix, train or evaluate; of several "
        "settings for all combinations.",
    )
    @click.option(
        "--halving",
        type=int,
        metavar="K",
        help="Of a sweep: successive halving by the reduction factor K. All variants train a first share of "
        "their steps; one in K, by the lower bound of the gain, goes on to K times as many, until few are "
        "left and trained to their end.",
    )
    @wraps(command)
    def wrapped(
        *args: object,
        pipeline: str | None,
        files: tuple[Path, ...],
        assignments: tuple[str, ...],
        grids: tuple[str, ...],
        halving: int | None,
        **kwargs: object,
    ) -> None:
        given = Given(pipeline=pipeline, files=files, assignments=assignments, grids=grids, halving=halving)
        command(*args, given=given, **kwargs)  # type: ignore[arg-type]

    return wrapped
