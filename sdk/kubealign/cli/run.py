"""Commands that run a pipeline whole on this machine: run, sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click

from kubealign.cli.arguments import LocalPath
from kubealign.cli.options import Given, run_options
from kubealign_pipelines.variants import VARIANTS

if TYPE_CHECKING:
    from rich.table import Table

    from kubealign_components.data.choice_rows import ChoiceRow

P = ParamSpec("P")


def local_options(command: Callable[P, None]) -> Callable[P, None]:
    """Where and how a run on this machine runs."""
    for option in reversed(
        (
            click.option(
                "-o",
                "--output",
                type=LocalPath("; rows may go to a store all the same: --set work=URI"),
                default=Path("runs"),
                show_default=True,
                help="Folder of the runs; runs into one folder reuse each other's finished rows.",
            ),
            click.option(
                "--name", default="", help="Name of the run, new or to go on with; by default date and time."
            ),
            click.option(
                "--runner",
                type=click.Choice(["process", "docker"]),
                help="Run each task here (process, the default) or in a container of its image (docker).",
            ),
            click.option("-v", "--verbose", is_flag=True, help="Also show what the stages write."),
        )
    ):
        command = option(command)
    return command


@click.command("run")
@run_options
@local_options
def run(given: Given, output: Path, name: str, runner: str | None, verbose: bool) -> None:
    """Run PIPELINE (offline_alignment, salmon) whole on this machine."""
    _run(given, output, name, runner, verbose)


@click.command("sweep")
@run_options
@local_options
def sweep(given: Given, output: Path, name: str, runner: str | None, verbose: bool) -> None:
    """Run variants of offline_alignment on this machine and choose one; sample and reward once for all.

    The variants are those of --grid, or the run file's. --grid and --halving are options of run, check,
    estimate, compile, submit and upload as well: a sweep is one pipeline like any other.
    """
    sourced = given.sourced()
    if sourced.run is not None and not sourced.run.parameters.get(VARIANTS) and not given.grids:
        raise click.UsageError(f"give --grid NAME=VALUE,VALUE, or {VARIANTS} in the run file")
    _run(given, output, name, runner, verbose)


def _run(given: Given, output: Path, name: str, runner: str | None, verbose: bool) -> None:
    from kubealign.cli.console import number_table, reuse_text, stage_table, standard_console
    from kubealign.cli.progress import Progress
    from kubealign.local.runner import run_checked
    from kubealign.local.summary import notes_on
    from kubealign_components.evaluate.audit import decided_numbers

    console = standard_console()
    checked = given.checked(here=True, runner=runner or "", output=output)
    progress = Progress(console=console, verbose=verbose)
    results = run_checked(checked, output=output, name=name, progress=progress)
    console.print()
    console.print(stage_table(results))
    for note in [reuse_text(results), *notes_on(results)]:
        if note:
            console.print(note)
    if results.choice:
        kind = "round" if results.chosen_round else "variant"
        console.print(variant_table(results.choice, kind, results.ended_early))
    if results.evaluation:
        of = "variant" if results.chosen else "round" if results.chosen_round else ""
        title = f"Evaluation of the chosen {of}" if of else "Evaluation"
        console.print(number_table(title, decided_numbers(results.evaluation)))
    if results.model:
        links = {target: results.folder / name for name, target in results.by_usual_name().items()}
        console.print(f"Model:   {links.get(results.model, results.model)}", soft_wrap=True)
    elif results.outputs:
        console.print(f"Made:    {results.outputs[-1].path}", soft_wrap=True)
    console.print(f"Summary: {results.folder / 'summary.html'}", soft_wrap=True)


def variant_table(
    rows: Sequence[ChoiceRow], kind: str = "variant", ended: Sequence[tuple[str, str]] = ()
) -> Table:
    """The variants of a sweep, or the rounds, with what they gained, and which was chosen; and why others
    ended early."""
    from rich.markup import escape
    from rich.table import Table

    title = f"{kind.capitalize()}s; the intervals of the gains hold for all at once"
    table = Table(title=title, title_justify="left")
    table.add_column(kind, overflow="fold")
    for name in ("gain", "from", "to", "KL", "tokens"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in rows:
        words = ["chosen"] if row["chosen"] else []
        words += ["on the front"] if row["on_front"] and row["dropped"] is None else []
        if row["dropped"] is not None:
            words = [f"dropped at rung {row['rung']}, after {row['share']:.1%} of its steps"]
        numbers = [f"{row['gain']:+.4g}", f"{row['gain_low']:+.4g}", f"{row['gain_high']:+.4g}"]
        kl = "" if row["kl"] is None else f"{row['kl']:.3g}"
        table.add_row(escape(row["variant"]), *numbers, kl, f"{row['length']:.1f}", ", ".join(words))
    for name, reason in ended:
        table.add_row(escape(name), *[""] * 5, escape(f"ended early: {reason}"))
    return table
