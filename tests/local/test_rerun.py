"""A run file from a manifest alone, and the same dataset and weights from it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml
from click.testing import CliRunner

from kubealign import load_run
from kubealign.cli.main import main
from unit.test_readme_commands import Command, of_kind

RUN, AGAIN = (command for command in of_kind("loads") if "runs/first" in command.text)
"""Of the README: the one makes a run, the other makes it again."""


def entered(command: Command, folder: Path) -> str:
    """What ``command`` says, as a reader enters it in ``folder``."""
    words = [sys.executable, "-m", "kubealign.cli.main", *command.words[1:]]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr
    return done.stdout


def test_a_whole_run_is_made_again_from_the_models_manifest(tiny_model: Path, tmp_path: Path) -> None:
    """Rows, fingerprint and weights; the settings that the run file names are those that ran."""
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(24)))
    rewards = tmp_path / "mine.py"
    rewards.write_text("def short(item, scale): return scale / (1 + len(item.text))\n")
    parameters = {
        "sources": [{"name": "own", "uri": str(source)}],
        "policy": str(tiny_model),
        "reward_functions": ["brevity", {"function": f"{rewards}:short", "settings": {"scale": 2}}],
        "seed": 3,
        "validation_fraction": 0.3,
        "sample_engine": "transformers",
        "sample_n": 4,
        "sample_max_new_tokens": 8,
        "select_options": {"quantile": "mid_rank"},
        "train_learning_rate": 0.001,
        "train_adapter": "lora",
        "train_options": {"max_steps": 2, "batch_size": 4},
    }
    written = {"pipeline": "offline_alignment", "parameters": parameters}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(written))
    assert "Model:" in entered(RUN, tmp_path)
    model = load_run(tmp_path / "runs" / "first").model
    told = CliRunner().invoke(main, ["rerun", str(model), "-o", str(tmp_path / "again.yaml")])
    assert told.exit_code == 0, told.output
    settings = yaml.safe_load((tmp_path / "again.yaml").read_text())["parameters"]
    assert settings["sources"][0]["uri"] == str(source)
    assert settings["select_options"]["quantile"] == "mid_rank"
    assert (settings["seed"], settings["train_adapter"], settings["sample_n"]) == (3, "lora", 4)
    assert settings["reward_functions"][1]["function"] == f"{rewards}:short"
    assert "The same again" in entered(AGAIN, tmp_path)
    found = [next(tmp_path.glob(f"{run}/**/model.safetensors")) for run in ("runs/first", "again")]
    assert found[0].read_bytes() == found[1].read_bytes()
