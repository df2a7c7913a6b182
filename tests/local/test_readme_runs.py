"""Commands of the documents that run models, as they stand, where a reader would enter them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.documents import blocks, leave_own_pipeline
from support.small_run import small_run
from unit.test_readme_commands import Command, of_kind

ELSEWHERE = ("HuggingFaceTB", "salmon", "runs/first")
"""In commands that fetch a model, or that test_salmon.py and test_rerun.py run."""
RUNS = [
    command
    for command in of_kind("loads")
    if command.words[1] != "ui" and not any(word in command.text for word in ELSEWHERE)
]


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands: with a run file as ``run.yaml``."""
    made = tmp_path_factory.mktemp("here")
    rows = [{"prompt": f"Question {number}, please?"} for number in range(24)]
    small = small_run(tiny_model, made / "prompts.jsonl", rows, work_rows_per_chunk=24)
    small["train_options"]["max_steps"] = 3  # of a sweep's two rungs the first has a third of them
    written = {"pipeline": "offline_alignment", "parameters": small}
    (made / "run.yaml").write_text(yaml.safe_dump(written))
    leave_own_pipeline(made, tiny_model)
    return made


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("command", RUNS, ids=str)
def test_a_command_that_runs_models_does_what_the_document_says(command: Command, folder: Path) -> None:
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
    if "-o" in command.words:
        assert (folder / command.words[command.words.index("-o") + 1]).is_file()


@pytest.mark.timeout(900)
def test_the_run_from_python_does_what_the_document_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a reader has entered the commands before, so that it samples nothing again."""
    monkeypatch.chdir(folder)
    (block,) = [text for text in blocks("sdk/README.md", "python") if "load_run_file" in text]
    exec(block, {})
    shown = capsys.readouterr().out
    assert "reward_gain" in shown
    assert "Question" in shown
    assert "/train/model" in shown
