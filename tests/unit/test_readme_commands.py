"""Every command of the documents: each is of a class that says how it is tried here."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from kubealign.cli.main import main

ROOT = Path(__file__).parents[2]
FOLDERS = ("components", "images", "manifests", "pipelines", "sdk", "tests", "tests/benchmarks")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *(f"{folder}/README.md" for folder in FOLDERS))
_FENCE = re.compile(r"^ *```(\w*)$(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SHELL = ("", "sh", "bash", "shell", "console")
RUNS_HERE = ("params", "compile", "components", "check", "schema", "estimate")
RUNS_HERE += ("show", "logs", "ls", "open", "du", "lineage", "compare", "gc")
"""Commands of ours that are run as they stand, in a folder with a run file and a finished run."""
LOADS = ("run", "rerun", "submit", "upload", "schedule", "runs", "cancel", "retry", "fetch", "doctor", "ui")
"""Commands of ours that run models, serve or speak to a cluster: other tests run them; here
their words are held against their options, and the run file is compiled."""
SYNTAX = ("kubectl", "kind", "docker", "export", "for")
"""What needs a cluster or a Docker Engine: bash reads it, and folders of ours that it names are there."""
PROGRAMS = ("kubealign", "make", *SYNTAX, "pip", "python", "uv", "git", "curl", "cd", "source")
"""What a block of commands begins with; one that begins otherwise shows something else."""


@dataclass(frozen=True)
class Command:
    """One command of a document."""

    document: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    def __str__(self) -> str:
        return f"{self.document}: {self.text[:60]}"


def commands(document: str) -> Iterator[Command]:
    """The commands in the shell blocks of ``document``; a block of them begins with the name of a program."""
    for language, block in _FENCE.findall((ROOT / document).read_text()):
        first = (block.split() or [""])[0]
        if language not in _SHELL or first not in PROGRAMS:
            continue
        here = re.sub(r"<<EOF\n.*?\n *EOF\n", "\n", block, flags=re.DOTALL)
        for line in here.replace("\\\n", " ").splitlines():
            if line.strip():
                yield Command(document, line.strip())


ALL = [command for document in DOCUMENTS for command in commands(document)]


def kind(command: Command) -> str:
    """How ``command`` is tried."""
    program, *rest = command.words
    if program == "make":
        return "make"
    if program in SYNTAX:
        return "syntax"
    if program == "kubealign" and rest and rest[0] in (*RUNS_HERE, *LOADS):
        # Of a cluster: a run by id, TrainJobs, a prefix of a store.
        cluster = {"RUN", "--dry-run", "gs://bucket/work"} & set(rest)
        return "here" if rest[0] in RUNS_HERE and not cluster else "loads"
    return ""


def of_kind(name: str) -> list[Command]:
    return [command for command in ALL if kind(command) == name]


def test_every_command_has_a_class() -> None:
    assert [str(command) for command in ALL if not kind(command)] == []
    assert {kind(command) for command in ALL} == {"make", "syntax", "here", "loads"}
    assert len(ALL) > 60


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader of the documents stands: with a run file, and a run NAME that has ended."""
    rows = [json.dumps({"prompt": f"What is {number}, please?"}) for number in range(2000)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    parameters = {
        "policy": str(tiny_model),
        "sources": [{"name": "questions", "uri": "prompts.jsonl"}],
        "reward_functions": ["brevity"],
        "sample_engine": "transformers",
        "work": "work",
    }
    written = {"pipeline": "offline_alignment", "parameters": parameters}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(written))
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    for run in ("runs/runs/OTHER", "runs/runs/NAME", "runs/first/runs/NAME"):
        finished_run(tmp_path / run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda address: True)
    return tmp_path


def finished_run(path: Path) -> None:
    from kubealign_components.data.dataset import DatasetWriter
    from kubealign_components.data.fingerprint import derive
    from kubealign_components.data.schemas import MODEL
    from kubealign_components.data.stats import Stats

    (path / "logs" / "1").mkdir(parents=True)
    (path / "pipeline.yaml").write_text("")
    (path / "summary.html").write_text("page")
    (path / "logs" / "1" / "001-train.log").write_text("train: step 1, loss 0.5\n")
    with DatasetWriter(str(path / "artifacts" / "1" / "model"), MODEL, derive("train", 1, {})) as writer:
        writer.commit(Stats())
    for name in ("model", "samples"):
        (path / name).symlink_to(path / "artifacts" / "1" / "model")
    outputs = [{"task": "train", "output": "model", "type": "system.Model", "path": "artifacts/1/model"}]
    (path / "results.json").write_text(json.dumps({"outputs": outputs, "evaluation": {}}))


@pytest.mark.parametrize("command", of_kind("here"), ids=str)
def test_a_command_does_what_the_document_says(command: Command, folder: Path) -> None:
    words = command.words[1:]
    target = Path(words.pop()) if ">" in words else None
    words = [word for word in words if word != ">"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert result.output
    if target:
        assert json.loads(result.stdout)
    if "-o" in words:
        assert Path(words[words.index("-o") + 1]).exists()


def alternatives(command: Command) -> Iterator[list[str]]:
    """The ways to read ``list | pause NAME`` and ``[TASK]``."""
    words = [word.strip("[]") for word in command.words[1:]]
    text = " ".join(shlex.quote(word) if word != "|" else word for word in words)
    first, *rest = text.split(" | ")
    yield shlex.split(first)
    for other in rest:
        yield [*shlex.split(first)[:1], *shlex.split(other)]


@pytest.mark.parametrize("command", of_kind("loads"), ids=str)
def test_a_command_that_loads_a_model_or_a_cluster_is_well_said(command: Command, folder: Path) -> None:
    for words in alternatives(command):
        context = click.Context(main)
        name, found, rest = main.resolve_command(context, words)
        assert found is not None
        if isinstance(found, click.Group):
            name, found, rest = found.resolve_command(context, rest)
            assert found is not None
        found.make_context(str(name), rest)
        if "-f" in rest:
            given = rest[rest.index("-f") + 1]
            assert Path(given).is_file()
            result = CliRunner().invoke(main, ["compile", "-f", given, "-o", "checked.yaml"])
            assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", of_kind("make"), ids=str)
def test_a_target_of_make_is_there(command: Command) -> None:
    tried = subprocess.run(["make", "-n", *command.words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert tried.returncode == 0, tried.stderr
    assert tried.stdout


@pytest.mark.parametrize("command", of_kind("syntax"), ids=str)
def test_a_command_of_other_programs_can_be_read(command: Command) -> None:
    read = subprocess.run(["bash", "-n"], input=command.text, capture_output=True, text=True)
    assert read.returncode == 0, read.stderr
    for word in command.words:
        if word.startswith(("manifests/", "pipelines/")):
            assert (ROOT / word).exists()
