"""The command that takes prompts and sources back."""

from __future__ import annotations

from pathlib import Path

import click

from kubealign.cli.arguments import LocalPath
from kubealign.cli.terminal import counted, say
from kubealign.cli.why import runs_at, say_what_was_not_searched, show_holders


@click.command("withdraw")
@click.argument("target", metavar="[OUTPUT_OR_RUN]", required=False, default="runs")
@click.option(
    "--ids", multiple=True, metavar="ID_OR_FILE", help="The id of a prompt, or a file of ids; repeat it."
)
@click.option("--source", "sources", multiple=True, metavar="NAME", help="A source; repeat it.")
@click.option(
    "-o",
    "--output",
    type=LocalPath(),
    default=Path("withdrawal.json"),
    show_default=True,
    help="File of the withdrawal; what stands in it already stays taken back.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def withdraw(
    target: str, ids: tuple[str, ...], sources: tuple[str, ...], output: Path, as_json: bool
) -> None:
    """Take prompts or whole sources back: write a withdrawal, and say what still holds them.

    Runs with import_withdrawn (and mix_withdrawn, for training datasets of earlier runs; of SALMON
    withdrawn in clean_prompts_options, pmp_options and rl_prompts_options) set to the file take none of it.
    Looked for in all runs below the folder OUTPUT (runs), or in one RUN, those under way and those that
    were killed included, and not in the work prefix: what holds a row of it was made before, and is to be
    removed; a model holds what it was trained on. A prompt of several sources has the name of the first and
    the completions of all: rows with completions of sources that were imported before one that is taken
    back, and together with it, are counted, too, since they may hold some of it. A dataset that was made
    with a withdrawal may share the files of one that was made before: its rows are deleted there, which
    nothing reads, and their bytes go when the last dataset of these files is removed.
    """
    from kubealign.why import RowsOf, holders
    from kubealign.withdraw import withdrawal_of, write_withdrawal

    asked = withdrawal_of(ids, sources)
    runs = runs_at(target) if target != "runs" or Path(target).is_dir() else []
    withdrawal = write_withdrawal(asked, output)
    looked_at = list(holders(RowsOf(withdrawal), runs))
    held = [one for one in looked_at if one.rows != 0]
    if not as_json:
        prompts, named = len(withdrawal.prompt_ids), len(withdrawal.sources)
        say(f"{output}: {counted(prompts, 'prompt')} and {counted(named, 'source')} are taken back.")
        looked = f"dataset or model of {counted(len(runs), 'run')} here"
        say(f"{counted(len(held), 'output')} here hold rows of them:" if held else f"No {looked} holds them.")
        if held and withdrawal.sources:
            say(
                "Counted are also rows with completions of sources that were imported before "
                f"{', '.join(sorted(withdrawal.sources))}, and together: they may hold some of it."
            )
    show_holders(held, as_json=as_json)
    if not as_json:
        if sharing := sum(one.deleted > 0 for one in looked_at):
            say(
                f"{counted(sharing, 'dataset')} here share the files of earlier ones, where rows stand that "
                "are deleted: their bytes go with the last dataset of these files. To be rid of them now, "
                "remove these runs and those before, then `kubealign gc runs --yes`, and run again."
            )
        say_what_was_not_searched(runs)
