"""filter, select and mix on 5 GB of rows in a process that may hold 1 GB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.synthetic import rewarded
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.models import find_model
from kubealign_components.data.schemas import TRAINING

ROWS = 600_000
LENGTHS = (80, 315)
VOCABULARY = 64  # compresses well on disk; in memory a token id takes four bytes whatever it is
LIMIT = 2**30

# RLIMIT_DATA holds what a process allocates, private writable memory, and nothing that is only
# mapped: RLIMIT_AS would also count libraries and the address space that allocators reserve.
PROGRAM = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]),) * 2)
folder, policy = sys.argv[1], sys.argv[3]
from kubealign_components.data.dataset import Dataset
from kubealign_components.filter.stage import FilterConfig, run as run_filter
from kubealign_components.mix.stage import MixConfig, run as run_mix
from kubealign_components.select.stage import SelectConfig, run as run_select
from support.peak_memory import peak_bytes
try:
    bytearray(int(sys.argv[2]))
    raise SystemExit("the limit does not hold")
except MemoryError:
    pass
config = FilterConfig(policy=policy, max_seq_len=370, max_prompt_len=60)
filtered = run_filter(config, prompts=Dataset.open(f"{folder}/in"), output=f"{folder}/filtered")
selected = run_select(SelectConfig(pairs_per_prompt=2), rewarded=Dataset.open(f"{folder}/filtered"),
                      output=f"{folder}/selected")
mixed = run_mix(MixConfig(), selections=[Dataset.open(f"{folder}/selected")], output=f"{folder}/mixed")
print(json.dumps([filtered.to_json(), selected.to_json(), mixed.to_json(), peak_bytes()]))
"""


@pytest.mark.slow
def test_five_gigabytes_pass_through_one(tiny_model: Path, tmp_path: Path) -> None:
    identity = {"policy": find_model(str(tiny_model)).identity()["digest"]}
    source = rewarded(str(tmp_path / "in"), ROWS, identity=identity, lengths=LENGTHS, vocabulary=VOCABULARY)
    assert ROWS * 10 * sum(LENGTHS) / 2 * 4 > 4.7e9  # token ids alone, without ids, numbers and texts
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(LIMIT), str(tiny_model)]
    env = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    filtered, selected, mixed, peak = json.loads(done.stdout)
    print(f"peak resident memory {peak / 2**20:.0f} MiB")
    assert peak < LIMIT
    assert filtered["rows_in"] == source.rows
    assert filtered["rows_out"] == selected["rows_in"] > 0.9 * ROWS
    assert filtered["counts"]["completions_too_long"] > 0
    assert mixed["rows_in"] == mixed["rows_out"] == selected["counts"]["pairs"]
    assert filtered["counts"]["completions"] == selected["counts"]["completions_in"]
    assert Dataset.open(str(tmp_path / "mixed"), TRAINING).rows == mixed["rows_out"]
