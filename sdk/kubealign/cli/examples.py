"""Examples below the help of every command. A test runs each of them as it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import click

EXAMPLES: Mapping[str, Sequence[str]] = {
    "": (
        "kubealign init --source prompts.jsonl    # a run file; on a terminal it asks for the rest",
        "kubealign check -f run.yaml              # everything that is wrong with it",
        "kubealign run -f run.yaml                # on this machine; submit: on a cluster",
        "kubealign ui runs                        # the runs in the browser",
    ),
    "cancel": ("kubealign cancel RUN",),
    "card": ("kubealign card NAME -o README.md",),
    "check": (
        "kubealign check -f run.yaml",
        "kubealign check -f run.yaml --set train_epochs=3 --rows 2",
    ),
    "compare": ("kubealign compare NAME OTHER --rows 5",),
    "compile": (
        "kubealign compile -f run.yaml -o pipeline.yaml",
        "kubealign compile salmon --set rl=offline",
    ),
    "completion": (
        "kubealign completion bash > kubealign.bash    # then: source kubealign.bash, also in ~/.bashrc",
        "kubealign completion fish > kubealign.fish    # belongs into ~/.config/fish/completions",
    ),
    "components": ("kubealign components -o catalogue --registry ghcr.io/me",),
    "doctor": ("kubealign doctor -f run.yaml",),
    "du": ("kubealign du runs",),
    "estimate": (
        "kubealign estimate -f run.yaml --rows 60000",
        "kubealign estimate offline_alignment_8b --model-shape llama-8b --reward-model-shape qwen3-0.6b",
    ),
    "export": ("kubealign export runs/runs/NAME/selected -o pairs --format trl",),
    "fetch": ("kubealign fetch RUN -o model",),
    "gc": (
        "kubealign gc --dry-run",
        "kubealign gc runs --models 3",
    ),
    "init": (
        "kubealign init --policy org/model --source prompts.jsonl",
        "kubealign init --task pairs --policy org/model --source pairs.jsonl -o a.yaml",
        "kubealign init --for cluster --policy org/model --source org/data --work gs://bucket/work -o b.yaml",
    ),
    "lineage": (
        "kubealign lineage NAME",
        "kubealign lineage NAME samples --html lineage.html",
    ),
    "logs": ("kubealign logs NAME train",),
    "ls": ("kubealign ls runs",),
    "open": ("kubealign open NAME",),
    "params": (
        "kubealign params offline_alignment",
        "kubealign params salmon --all",
    ),
    "register": (
        "kubealign register RUN --server http://model-registry-service.kubeflow:8080 --name assistant",
        "kubealign register NAME    # of a run here; the server is that of KUBEALIGN_REGISTRY",
    ),
    "rerun": ("kubealign rerun runs/runs/NAME/model -o again.yaml",),
    "retry": ("kubealign retry RUN",),
    "run": (
        "kubealign run -f run.yaml --name first",
        "kubealign run -f run.yaml --set select_strategy=best_random    # sampled rows are reused",
    ),
    "runs": ("kubealign runs --limit 5",),
    "schedule": ("kubealign schedule list",),
    "schedule apply": ("kubealign schedule apply nightly -f run.yaml --cron '0 0 3 * * *'",),
    "schedule delete": ("kubealign schedule delete NAME",),
    "schedule list": ("kubealign schedule list",),
    "schedule pause": ("kubealign schedule pause NAME",),
    "schedule resume": ("kubealign schedule resume NAME",),
    "schema": (
        "kubealign schema offline_alignment > run.schema.json",
        "# First line of the run file: # yaml-language-server: $schema=run.schema.json",
    ),
    "show": ("kubealign show NAME samples --rows 1",),
    "submit": ("kubealign submit -f run.yaml --experiment nightly --wait",),
    "sweep": (
        "kubealign sweep -f run.yaml --grid train_beta=0.05,0.1",
        "kubealign sweep -f run.yaml --set work=work --grid train_beta=0.03,0.1,0.3 --halving 3",
    ),
    "ui": ("kubealign ui runs",),
    "upload": ("kubealign upload -f run.yaml",),
    "verify": ("kubealign verify NAME",),
    "why": ("kubealign why questions",),
    "withdraw": ("kubealign withdraw --source questions -o withdrawal.json",),
}
"""By the words of the command; what stands behind a # is for the reader."""


def show_examples(group: click.Group) -> None:
    """Give ``group`` and every command below it its examples, in its help."""
    for words, command in walk(group):
        lines = EXAMPLES[words]
        command.epilog = "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def walk(group: click.Group, words: str = "") -> Iterator[tuple[str, click.Command]]:
    """``group`` and all commands below it, each with the words by which it is called."""
    yield words, group
    for name, command in group.commands.items():
        below = f"{words} {name}".lstrip()
        if isinstance(command, click.Group):
            yield from walk(command, below)
        else:
            yield below, command
