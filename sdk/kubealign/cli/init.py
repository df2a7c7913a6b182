"""``kubealign init``: a first run file."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from kubealign.cli.arguments import LocalPath
from kubealign.cli.options import show_findings
from kubealign.cli.terminal import counted, say
from kubealign.starter import CLUSTER, LAPTOP, REWARDS, TARGETS, TASKS, Starter
from kubealign_components.config import require

_QUESTIONS = {
    "target": "Where will it run",
    "task": "Align on rewards of the model's own answers, or on pairs that people labelled",
    "policy": "Chat model to align: directory, URI or hub id",
    "source": "Data: file, folder, URI or hub dataset",
    "reward": "Reward: brevity, exact_answer, format_match, target_length, rewards.py:name or a model",
    "work": "Prefix of a store for finished rows, such as gs://bucket/work",
    "registry": "Registry of the images (empty: as they are named)",
}
_DEFAULTS = {
    "target": LAPTOP,
    "task": REWARDS,
    "policy": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "source": None,
    "reward": "target_length",
    "work": None,
    "registry": "",
}
_ELSEWHERE = {
    "reward": "nothing with --task pairs, whose rows say what is better; or give --task rewards",
    "work": "nothing for a laptop, which keeps finished rows beside its runs; or give --for cluster",
    "registry": "nothing for a laptop, where no image is pulled; or give --for cluster",
}
"""What is said of an answer to a question that is not asked."""
_CHOICES = {"target": TARGETS, "task": TASKS}


@click.command("init")
@click.option("--for", "target", type=click.Choice(TARGETS), help="Where it runs; laptop by default.")
@click.option("--task", type=click.Choice(TASKS), help="What it aligns on; rewards by default.")
@click.option("--policy", help="Chat model to align: directory, URI or hub id.")
@click.option("--source", help="Data: file, folder, URI or hub dataset.")
@click.option(
    "--reward", help="Function, rewards.py:name, or a reward model; target_length by default, none for pairs."
)
@click.option("--work", help="For a cluster: prefix of a store for finished rows.")
@click.option("--registry", help="For a cluster: registry of the images.")
@click.option(
    "-o",
    "--output",
    type=LocalPath(),
    default=Path("run.yaml"),
    show_default=True,
    help="File to write; one that is there stays.",
)
def init(output: Path, **options: str | None) -> None:
    """Write a commented run file, from a few questions.

    What an option says is not asked; nothing is where standard input is no terminal. Then what
    `kubealign check` finds in it is shown.
    """
    from kubealign.checking import check
    from kubealign.runfile import read_run
    from kubealign_components.whole_file import write_whole

    require(not output.exists(), "-o", str(output), "a new file")
    starter = Starter(**_answers(options))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, starter.text(output))
    here = starter.target != CLUSTER
    report = check(read_run([output]), here=here)
    show_findings(report.findings)
    starts = f"{'kubealign run' if here else 'kubealign submit'} -f {shlex.quote(str(output))}"
    if report.errors:
        must = f"{counted(len(report.errors), 'error')} must be put right before {starts} starts it"
        say(f"{output} is written; {must}")
    else:
        say(f"{output} is written; {starts} starts it")


def _answers(given: dict[str, str | None]) -> dict[str, str]:
    """What was given, and what the user says to what was not.

    Raises:
        ConfigError: something was given that the file would have no place for.
    """
    answers: dict[str, str] = {}
    for name, question in _QUESTIONS.items():
        if not _applies(name, answers):
            require(not given[name], f"--{name}", given[name], _ELSEWHERE[name])
            continue
        value, default = given[name], _DEFAULTS[name]
        if value is None and sys.stdin.isatty():
            choices = click.Choice(_CHOICES[name]) if name in _CHOICES else None
            value = click.prompt(question, default=default, type=choices, err=True)
        value = default if value is None else value
        answers[name] = "" if value is None else value
    return answers


def _applies(name: str, answers: dict[str, str]) -> bool:
    if name == "reward":
        return answers["task"] == REWARDS
    return name not in ("work", "registry") or answers["target"] == CLUSTER
