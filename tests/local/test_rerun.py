"""A run file from a manifest alone, and the same dataset and weights from it."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from click.testing import CliRunner

from kubealign.cli.main import main
from kubealign.local.runner import run_local
from kubealign.runfile import RunFile


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
    results = run_local(RunFile(parameters=parameters), output=tmp_path / "first")
    assert results.model is not None
    told = CliRunner().invoke(main, ["rerun", str(results.model), "-o", str(tmp_path / "run.yaml")])
    assert told.exit_code == 0, told.output
    written = yaml.safe_load((tmp_path / "run.yaml").read_text())["parameters"]
    assert written["sources"][0]["uri"] == str(source)
    assert written["select_options"]["quantile"] == "mid_rank"
    assert (written["seed"], written["train_adapter"], written["sample_n"]) == (3, "lora", 4)
    assert written["reward_functions"][1]["function"] == f"{rewards}:short"
    checked = CliRunner().invoke(main, ["rerun", str(results.model), "--check", str(tmp_path / "again")])
    assert checked.exit_code == 0, checked.output
    assert "The same again" in checked.output
    weights = [next(tmp_path.glob(f"{run}/**/model.safetensors")).read_bytes() for run in ("first", "again")]
    assert weights[0] == weights[1]
