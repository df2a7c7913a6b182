"""The command that sets runs of this machine beside each other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kubealign.cli.arguments import LocalPath
from kubealign_components.errors import NotFound
from kubealign_components.whole_file import write_whole

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kubealign.compare.runs import RunComparison


@click.command("compare")
@click.argument("runs", nargs=-1, required=True)
@click.option("--rows", default=3, show_default=True, type=click.IntRange(min=0), help="How many prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: settings and numbers.")
@click.option("--html", type=LocalPath(), help="Also write a self-contained page.")
def compare(runs: tuple[str, ...], rows: int, as_json: bool, html: Path | None) -> None:
    """Set two to eight RUNS here (folders, or names below runs/) beside each other.

    Settings that differ, numbers, the rewards' distributions, and what the models answered to the same
    prompts. Rewards are compared with those of the first run.
    """
    from kubealign.compare.page import compare_page
    from kubealign.compare.runs import compared
    from kubealign.local.runs import find_run, no_such_run

    named = [(name, find_run(name)) for name in runs]
    missing = [name for name, run in named if run is None]
    if missing:
        raise NotFound("\n".join(map(no_such_run, missing)))
    comparison = compared([run for _, run in named if run is not None])
    if html:
        write_whole(html, compare_page(comparison))
    if as_json:
        click.echo(json.dumps(_plain(comparison), indent=2, ensure_ascii=False))
    else:
        _show(comparison, rows)


def _plain(comparison: RunComparison) -> dict[str, object]:
    return {
        "runs": {run.name: str(run.info.folder.path) for run in comparison.runs},
        "notes": comparison.notes(),
        "differences": {
            one.name: {"prompts": one.prompts, "mean": one.mean, "low": low, "high": high}
            for one in comparison.differences()
            for low, high in [one.interval or (None, None)]
        },
        "settings": comparison.settings(),
        "evaluation": comparison.evaluation(),
        "stages": comparison.stages(),
    }


def _show(comparison: RunComparison, rows: int) -> None:
    from kubealign.cli.console import standard_console
    from kubealign.compare import page

    console, names = standard_console(), comparison.names
    change = ["difference"] if len(names) == 2 else []
    console.print(
        _table("Runs", ["run", "pipeline", "state", "began", "time"], map(page.run_row, comparison.runs))
    )
    for note in comparison.notes():
        console.print(f"Note: {note}", markup=False, soft_wrap=True)
    against = f"Rewards of the aligned models against {names[0]}, paired by prompt"
    for title, head, cells in (
        ("Settings that differ", ["setting", *names], page.setting_rows(comparison)),
        (against, ["run", "difference", "95 % interval", "prompts"], page.difference_rows(comparison)),
        ("Evaluation", ["number", *names, *change], page.number_rows(comparison.evaluation())),
        (
            "Rewards",
            ["of", "5 %", "25 %", "median", "75 %", "95 %", "mean"],
            page.quantile_rows(comparison.runs),
        ),
        ("Stages", ["number", *names, *change], page.number_rows(comparison.stages())),
    ):
        if cells:
            console.print(_table(title, head, cells))
    _show_texts(comparison, rows, console)


def _show_texts(comparison: RunComparison, rows: int, console: Console) -> None:
    from rich.markup import escape

    from kubealign.compare.page import shared_texts, spread_evenly

    for prompt_id in spread_evenly(comparison.shared(), rows):
        shown = shared_texts(comparison.runs, prompt_id)
        console.rule(f"prompt {prompt_id[:12]}", align="left")
        console.print(shown["prompt"], markup=False, soft_wrap=True)
        for name, facts, text in shown["sides"]:
            console.print(f"[bold]{escape(name)}[/] [dim]{escape(facts)}[/]")
            console.print(text, markup=False, soft_wrap=True)


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for name in head:
        table.add_column(escape(name), overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table
