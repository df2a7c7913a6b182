"""Every command of the documents, and of the examples in every help: each is of a class that says how it is
tried here."""

import copy
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from kubealign.cli.examples import EXAMPLES
from kubealign.cli.main import main
from kubealign_components.data.dataset import DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import MODEL
from kubealign_components.data.stats import Stats
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig, run
from support.documents import DOCUMENTS, ROOT, fenced, leave_own_pipeline
from support.fake_kfp import Kfp, Kube
from support.fake_registry import Registry
from support.store_servers import fake_gcs_server

_SHELL = ("", "sh", "bash", "shell", "console")
RUNS_HERE = ("params", "compile", "components", "check", "schema", "estimate")
RUNS_HERE += ("init", "completion", "export", "withdraw")
RUNS_HERE += ("show", "logs", "ls", "open", "du", "lineage", "compare", "verify", "why", "card", "gc")
"""Commands of ours that are run as they stand, in a folder with a run file and a finished run."""
SERVED = ("submit", "upload", "schedule", "runs", "cancel", "retry", "fetch", "doctor", "register")
"""Commands of ours that speak to a cluster: they are run as they stand, servers on this machine answer."""
LOADS = ("run", "sweep", "rerun", "ui")
"""Commands of ours that run models, which tests/local/test_readme_runs.py runs as they stand, or that serve;
here their words are held against their options, and the run file is compiled."""
OF_CLUSTER = {"RUN", "--dry-run", "gs://bucket/work"}
"""Where such a word stands, a command for runs of this machine as well speaks of a cluster or a store."""
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
    for language, block in fenced(document):
        first = (block.split() or [""])[0]
        if language not in _SHELL or first not in PROGRAMS:
            continue
        here = re.sub(r"<<EOF\n.*?\n *EOF\n", "\n", block, flags=re.DOTALL)
        for line in here.replace("\\\n", " ").splitlines():
            if line.strip():
                yield Command(document, line.strip())


def examples() -> Iterator[Command]:
    """The commands below the help of ours."""
    for words, lines in EXAMPLES.items():
        for line in lines:
            if not line.startswith("#"):
                yield Command(f"kubealign {words} --help", line)


ALL = [command for document in DOCUMENTS for command in commands(document)] + list(examples())


def kind(command: Command) -> str:
    """How ``command`` is tried."""
    program, *rest = command.words
    if program == "make":
        return "make"
    if program in SYNTAX:
        return "syntax"
    if program != "kubealign" or not rest:
        return ""
    if rest[0] in SERVED or (rest[0] in RUNS_HERE and OF_CLUSTER & set(rest)):
        return "served"
    return "here" if rest[0] in RUNS_HERE else "loads" if rest[0] in LOADS else ""


def of_kind(name: str) -> list[Command]:
    """The commands of that kind, of which one that several documents have is tried once."""
    by_words: dict[tuple[str, ...], Command] = {}
    for command in ALL:
        if kind(command) == name:
            by_words.setdefault(tuple(command.words), command)
    return list(by_words.values())


def test_every_command_has_a_class() -> None:
    assert [str(command) for command in ALL if not kind(command)] == []
    assert {kind(command) for command in ALL} == {"make", "syntax", "here", "served", "loads"}
    assert len(ALL) > 60


@pytest.fixture(scope="module")
def first_folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Where a reader of the documents stands: with a run file, and a run NAME that has ended."""
    path = tmp_path_factory.mktemp("documents")
    rows = [json.dumps({"prompt": f"What is {number}, please?"}) for number in range(2000)]
    (path / "prompts.jsonl").write_text("\n".join(rows))
    parameters = {
        "policy": str(tiny_model),
        "sources": [{"name": "questions", "uri": "prompts.jsonl"}],
        "reward_functions": ["brevity"],
        "sample_engine": "transformers",
        "work": "work",
    }
    written = {"pipeline": "offline_alignment", "parameters": parameters}
    (path / "run.yaml").write_text(yaml.safe_dump(written))
    (path / "pipelines").symlink_to(ROOT / "pipelines")
    leave_own_pipeline(path, tiny_model)
    for name in ("runs/runs/OTHER", "runs/runs/NAME", "runs/first/runs/NAME"):
        finished_run(path / name)
    return path


@pytest.fixture
def folder(first_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of such a folder, in which the command is entered."""
    shutil.copytree(first_folder, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda address: True)
    return tmp_path


def finished_run(path: Path) -> None:
    (path / "logs" / "1").mkdir(parents=True)
    (path / "pipeline.yaml").write_text("")
    (path / "summary.html").write_text("page")
    (path / "logs" / "1" / "001-train.log").write_text("train: step 1, loss 0.5\n")
    with DatasetWriter(str(path / "artifacts" / "1" / "model"), MODEL, derive("train", 1, {})) as writer:
        writer.commit(Stats())
    for name in ("model", "samples"):
        (path / name).symlink_to("artifacts/1/model")
    (path / "pairs.jsonl").write_text('{"prompt": "Name a fruit.", "chosen": "Plum.", "rejected": "Rock."}')
    run(ImportConfig(sources=(SourceConfig(uri=str(path / "pairs.jsonl")),)), output=str(path / "selected"))
    outputs = [{"task": "train", "output": "model", "type": "system.Model", "path": "artifacts/1/model"}]
    (path / "results.json").write_text(json.dumps({"outputs": outputs, "evaluation": {}}))


@pytest.mark.parametrize("command", of_kind("here"), ids=str)
def test_a_command_does_what_the_document_says(command: Command, folder: Path) -> None:
    words = command.words[1:]
    target = Path(words.pop()) if ">" in words else None
    words = [word for word in words if word != ">"]
    if words[0] == "init" and "-o" not in words:
        Path("run.yaml").unlink()  # it makes a first one
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert result.output
    if target and target.suffix == ".json":
        assert json.loads(result.stdout)
    if "-o" in words:
        assert Path(words[words.index("-o") + 1]).exists()


def alternatives(command: Command) -> list[list[str]]:
    """The commands that ``list | pause NAME`` stands for, each without what is optional."""
    words = [word for word in command.words[1:] if not re.fullmatch(r"\[.*\]", word)]
    found: list[list[str]] = [[]]
    for word in words:
        if word == "|":
            found.append(words[:1])
        else:
            found[-1].append(word)
    return found


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """Address of Google Cloud Storage, with a bucket of that name."""
    with fake_gcs_server(bucket="bucket") as address:
        yield address


PODS = "/api/v1/namespaces/kubeflow/pods"


def new_cluster(folder: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Kfp, Kube]:
    """Kubeflow, which the environment names; the run file of ``folder`` is for it from then on."""
    api, kube = Kfp(), Kube()
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig(folder / "kubeconfig")))
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", api.host)
    written = yaml.safe_load((folder / "run.yaml").read_text())
    written["parameters"] |= {"policy": "org/model", "sources": [{"name": "a", "uri": "org/data"}]}
    written["parameters"]["work"] = "gs://bucket/work"
    (folder / "run.yaml").write_text(yaml.safe_dump(written))
    kube.collections = {PODS: [], "/apis/trainer.kubeflow.org/v1alpha1/namespaces/default/trainjobs": []}
    kube.objects = {f"/api/v1/namespaces/{name}": {"metadata": {}} for name in ("kubeflow", "kubealign")}
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", store)
    return api, kube


@pytest.fixture(scope="module")
def submitted(first_folder: Path, store: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kfp, Kube]:
    """Kubeflow with a run RUN, a schedule NAME, and the run's model in the store."""
    folder = shutil.copytree(first_folder, tmp_path_factory.mktemp("cluster") / "here", symlinks=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        api, kube = new_cluster(folder, store, monkeypatch)
        with api.serving(), kube.serving():
            leave_run(api, kube)
        assert not api.problems
    return api, kube


@pytest.fixture
def cluster(
    submitted: tuple[Kfp, Kube], folder: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Kfp]:
    """Such a Kubeflow of the test's own, with a model registry, and a run file for it."""
    api, kube = new_cluster(folder, store, monkeypatch)
    registry = Registry()
    monkeypatch.setenv("KUBEALIGN_REGISTRY", registry.host)
    api.held, api.versions = copy.deepcopy((submitted[0].held, submitted[0].versions))
    kube.collections, kube.logs = copy.deepcopy((submitted[1].collections, submitted[1].logs))
    with api.serving(), kube.serving(), registry.serving():
        yield api
    assert not api.problems


def leave_run(api: Kfp, kube: Kube) -> None:
    """A schedule NAME, and a run RUN that trained: its pod, its log, and its model in the store."""
    root = ["--pipeline-root", "gs://bucket/root"]
    for words in (
        ["submit", "-f", "run.yaml", "--name", "RUN", *root],
        ["schedule", "apply", "NAME", "-f", "run.yaml", "--every", "6h"],
    ):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output
    (held,) = api.held["runs"]
    metadata = {"name": "t", "creationTimestamp": "2026-11-26T19:50:00Z"}
    metadata["labels"] = {"pipeline/runid": held["run_id"]}
    metadata["annotations"] = {"workflows.argoproj.io/node-name": "w(0).root(0).train(0).executor(0)"}
    kube.collections[PODS] = [{"metadata": metadata, "status": {"phase": "Failed"}}]
    kube.logs = {"t": "loss 0.5\n"}
    model = f"gs://bucket/root/offline-alignment/{held['run_id']}/train/1/model"
    with DatasetWriter(model, MODEL, derive("train", 1, {})) as writer:
        writer.commit(Stats())


@pytest.mark.parametrize("command", of_kind("served"), ids=str)
def test_a_command_for_a_cluster_does_what_the_document_says(
    command: Command, cluster: Kfp, monkeypatch: pytest.MonkeyPatch
) -> None:
    (held,) = cluster.held["runs"]
    held["state"] = {"retry": "FAILED", "cancel": "RUNNING"}.get(command.words[1], "SUCCEEDED")

    def finish(_: float) -> None:
        for each in cluster.held["runs"]:
            each["state"] = "SUCCEEDED"

    monkeypatch.setattr("kubealign.cli.cluster.time.sleep", finish)
    for words in alternatives(command):
        if "--host" in words:  # of a port that the page has opened before
            words[words.index("--host") + 1] = cluster.host
        if "--server" in words:
            words[words.index("--server") + 1] = os.environ["KUBEALIGN_REGISTRY"]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0 or (words[0] == "doctor" and done.exit_code == 1), done.output
        assert done.output
        assert "Traceback" not in done.output


@pytest.mark.parametrize("command", of_kind("loads"), ids=str)
def test_a_command_that_runs_models_is_well_said(command: Command, folder: Path) -> None:
    name, used, rest = main.resolve_command(click.Context(main), command.words[1:])
    assert used is not None
    used.make_context(str(name), rest)
    if "-f" in rest:
        given = rest[rest.index("-f") + 1]
        assert Path(given).is_file()
        swept = [word for before, word in itertools.pairwise(rest) if "--grid" in (before, word)]
        result = CliRunner().invoke(main, ["compile", "-f", given, *swept, "-o", "checked.yaml"])
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
