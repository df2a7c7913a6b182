"""The edges of the command line: terminals without a text's letters, identities that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kubealign.cli.main import main
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
