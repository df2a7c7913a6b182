"""Commands of the documents that run models, as they stand, where a reader would enter them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from support.documents import blocks, leave_own_pipeline
from support.small_run import small_run, small_salmon
from unit.test_readme_commands import Command, of_kind

RUNS = [
    command
    for command in of_kind("loads")
    if command.words[1] != "ui" and "HuggingFaceTB" not in command.text
]
"""Without those that fetch a model from the hub, which tests/local/test_alignment.py aligns."""
SALMON = "salmon"


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each pipeline where a reader stands: with its run file as ``run.yaml``."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("offline_alignment", SALMON)}
    rows = [{"prompt": f"Question {number}, please?"} for number in range(24)]
    small = small_run(tiny_model, made["offline_alignment"] / "prompts.jsonl", rows)
    small["train_options"]["max_steps"] = 3  # of a sweep's two rungs the first has a third of them
    written = {"pipeline": "offline_alignment", "parameters": small}
    (made["offline_alignment"] / "run.yaml").write_text(yaml.safe_dump(written))
    leave_own_pipeline(made["offline_alignment"], tiny_model)
    salmon = asdict(small_salmon(tiny_model, made[SALMON], "ppo"))
    written = {name: salmon[name] for name in ("pipeline", "parameters")}
    (made[SALMON] / "run.yaml").write_text(yaml.safe_dump(written))
    return made


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("command", RUNS, ids=str)
def test_a_command_that_runs_models_does_what_the_document_says(
    command: Command, folders: dict[str, Path]
) -> None:
    folder = folders[SALMON if SALMON in command.words else "offline_alignment"]
    named = folder / "runs" / "runs" / "NAME"
    makes_it = command.words[1] == "run"
    if "NAME" in command.text and not makes_it and not named.exists():  # the run that the line before it made
        newest = max((folder / "runs" / "runs").iterdir(), key=lambda run: run.stat().st_mtime)
        named.symlink_to(newest.name)
    done = subprocess.run(
        [sys.executable, "-m", "kubealign.cli.main", *command.words[1:]],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr
    if command.words[1] == "run":
        assert ("Made:" if "my_pipeline.py" in command.words else "Model:") in done.stdout
    if "--check" in command.words:
        assert "The same again" in done.stdout
    if "-o" in command.words:
        assert (folder / command.words[command.words.index("-o") + 1]).is_file()


@pytest.mark.timeout(900)
def test_the_run_from_python_does_what_the_document_says(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(folders["offline_alignment"], tmp_path / "here", ignore=shutil.ignore_patterns("runs"))
    monkeypatch.chdir(tmp_path / "here")
    (block,) = [text for text in blocks("sdk/README.md", "python") if "load_run_file" in text]
    exec(block, {})
    shown = capsys.readouterr().out
    assert "reward_gain" in shown
    assert "Question" in shown
    assert "/train/model" in shown
