"""Mistakes on the command line as data: what each command says of one, in words and without a traceback."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from kubealign.cli.main import main
from support.source_files import write_pairs

COMMANDS = yaml.safe_load((Path(__file__).parent / "mistakes" / "commands.yaml").read_text())
RUN = """pipeline: offline_alignment
parameters:
  policy: {model}
  sources: [{{uri: rows.jsonl, name: mine}}]
  reward_functions: [brevity]
  sample_engine: transformers
  validation_fraction: 0.3
  train_options: {{batch_size: 2}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A sound run file, data, and a run that was killed."""
    folder = tmp_path_factory.mktemp("commands")
    write_pairs(folder / "rows.jsonl", 24)
    (folder / "run.yaml").write_text(RUN.format(model=tiny_model))
    (folder / "latin.yaml").write_bytes("parameters:\n  policy: é\n".encode("latin-1"))
    (folder / "folder").mkdir()
    logs = folder / "runs" / "runs" / "one" / "logs" / "1"
    logs.mkdir(parents=True)
    (logs / "001-train.log").write_text("step 1\n")
    (folder / "runs" / "runs" / "one" / "pipeline.yaml").write_text("root: {}\n")
    return folder


@pytest.mark.parametrize("case", COMMANDS, ids=lambda case: case["line"])
def test_a_command_line_that_cannot_be_used_is_told_in_words(
    case: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://127.0.0.1:9")  # nobody's port
    before = sorted(folder.rglob("*"))
    told = CliRunner().invoke(main, shlex.split(case["line"]))
    assert case["says"] in told.output
    assert told.exit_code == int(case.get("code", 2))
    assert "Traceback" not in told.output and "stopped on" not in told.output
    assert sorted(folder.rglob("*")) == before
