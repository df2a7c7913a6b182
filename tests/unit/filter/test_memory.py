"""What a pod of the data image needs at least: no stage in it loads torch, and 24 rows take no gigabyte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MEBI = 2**20
STAGES = """
import json, sys
import kfp  # which runs a component
from kubealign_components.data.dataset import Dataset
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig, run as import_prompts
from kubealign_components.filter.stage import FilterConfig, run as filter_prompts
from support.peak_memory import peak_bytes

rows, model, folder = sys.argv[1:]
import_prompts(ImportConfig(sources=(SourceConfig(name="a", uri=rows),)), output=f"{folder}/prompts")
prompts = Dataset.open(f"{folder}/prompts")
stats = filter_prompts(FilterConfig(policy=model), prompts=prompts, output=f"{folder}/tokenised")
heavy = [name for name in ("vllm", "datasets", "scipy", "sklearn") if name in sys.modules]
print(json.dumps({"rows": stats.rows_out, "heavy": heavy, "peak": peak_bytes()}))
"""
IMPORTS = """
import importlib, sys
for stage in sys.argv[1:]:
    importlib.import_module(f"kubealign_components.{stage}.component")
    importlib.import_module(f"kubealign_components.{stage}.stage")
print([name for name in ("torch", "transformers", "vllm", "datasets") if name in sys.modules])
"""
OF_THE_DATA_IMAGE = ("import_prompts", "filter", "split", "merge", "select", "mix", "aggregate")


def said(*command: object, path: Path | None = None) -> str:
    paths = os.pathsep.join([*([str(path)] if path else []), *sys.path])
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_few_rows_are_imported_and_tokenised_in_a_small_pod(tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(24)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "two_stages.py").write_text(STAGES)
    supervisor = ["-m", "kubealign_components.supervisor", "--without-torch", "-m", "two_stages"]
    found = json.loads(said(*supervisor, rows, tiny_model, tmp_path, path=tmp_path))
    assert found["rows"] == 24 and not found["heavy"]
    assert found["peak"] < 320 * MEBI, f"{found['peak'] / MEBI:.0f} MiB"


@pytest.mark.parametrize("stage", OF_THE_DATA_IMAGE)
def test_a_stage_of_rows_loads_no_model_library_to_begin(stage: str) -> None:
    assert said("-c", IMPORTS, stage) == "[]"
