"""The edges of the command line: terminals without a text's letters, identities that are not there."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from kubealign.cli.main import main
from kubealign.cli.progress import Progress
from kubealign.errors import RunFailed
from kubealign.local.runner import run_checked, run_local
from kubealign.runfile import RunFile
from kubealign_pipelines.checking.findings import BadSettings
from support.datasets import MakeDataset
from support.tiny import prompt_row


def test_a_text_that_the_terminal_has_no_letters_for_is_written_out(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([prompt_row("Grüße, 日本")])
    shown = subprocess.run(
        [sys.executable, "-m", "kubealign.cli.main", "show", dataset.uri],
        env=os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    assert r"Gr\xfc\xdfe, \u65e5\u672c" in shown.stdout


def test_an_identity_of_google_s_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    asked = CliRunner().invoke(main, ["runs", "--host", "http://127.0.0.1:9", "--iap-client-id", "x"])
    assert asked.exit_code == 1
    assert "asks for an identity of Google's" in asked.output
    assert "gcloud auth application-default login" in asked.output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_told_to_stop_says_so_before_a_run_begins(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """While it waits for its run file, which comes out of a pipe."""
    os.mkfifo(tmp_path / "run.yaml")
    words = [sys.executable, "-m", "kubealign.cli.main", "check", "-f", str(tmp_path / "run.yaml")]
    command = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with (tmp_path / "run.yaml").open("w"):  # it has come to reading
        time.sleep(0.2)
        command.send_signal(number)
        said, _ = command.communicate(timeout=60)
    assert command.returncode == code
    assert said.startswith("Interrupted; finished rows are kept")
    assert "Traceback" not in said


def test_what_failed_is_told_where_the_results_cannot_be_written_either(tmp_path: Path) -> None:
    (tmp_path / "runs" / "one" / "results.json").mkdir(parents=True)
    parameters = {
        "policy": "nowhere",
        "sources": [{"uri": str(tmp_path / "gone.jsonl"), "name": "mine"}],
        "reward_functions": ["brevity"],
    }
    shown = io.StringIO()
    progress = Progress(console=Console(file=shown, width=200))
    with pytest.raises(RunFailed, match=r"import prompts failed: .*nothing at this place"):
        run_checked(RunFile(parameters=parameters), output=tmp_path, name="one", progress=progress)
    assert "What the run leaves is not whole" in shown.getvalue()


def test_a_run_of_the_api_is_checked_as_one_of_the_command_line_is(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi?"}\n')
    parameters = {
        "policy": str(tmp_path / "nowhere"),
        "sources": [str(tmp_path / "rows.jsonl")],
        "reward_functions": ["brevity"],
    }
    with pytest.raises(BadSettings, match=r"policy=.*expected a model directory"):
        run_local(RunFile(parameters=parameters), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
