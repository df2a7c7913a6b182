"""The whole pipeline on this machine: the compiled YAML, a tiny random model, a verifiable reward."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kubealign import Results, RunFile, run_local
from kubealign.cli import main
from kubealign_components.errors import ConfigError

STAGES = ["import_prompts", "filter", "sample", "rewards", "select", "logprobs", "mix", "train", "evaluate"]
TOPICS = [
    "tides",
    "bread",
    "chess",
    "rivers",
    "clouds",
    "bees",
    "maps",
    "ice",
    "wool",
    "kites",
    "salt",
    "moss",
]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages run in processes of their own: small models are faster on one thread each."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFile:
    """Forty prompts with an offline pair each, two chunks, four completions of at most twelve tokens."""
    path = tmp_path_factory.mktemp("data") / "preferences.jsonl"
    rows = [
        {"prompt": f"Tell me about {topic}, please ({i}).", "chosen": f"{topic} are fine.", "rejected": "No."}
        for i in range(4)
        for topic in TOPICS
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return RunFile(
        parameters={
            "sources": [{"name": "topics", "uri": str(path)}],
            "policy": str(tiny_model),
            "reward_functions": [
                {"function": "kubealign_components.rewards.functions:brevity", "settings": {"scale": 8}}
            ],
            "validation_fraction": 0.25,
            "work_rows_per_chunk": 24,
            "filter_max_seq_len": 256,
            "filter_max_prompt_len": 128,
            "sample_engine": "transformers",
            "sample_n": 4,
            "sample_max_new_tokens": 12,
            "train_learning_rate": 1e-3,
            "train_options": {"batch_size": 8, "max_steps": 3},
            "evaluate_max_prompts": 8,
        }
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder for all runs of this file: they share their finished rows."""
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def dpo(run: RunFile, output: Path) -> Results:
    """The first run: DPO on the best and worst completion, scored after selection."""
    return run_local(run, output=output, name="dpo")


def loads_and_generates(model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert loaded.generate(**ids, max_new_tokens=2).shape[0] == 1


def test_dpo_runs_whole(dpo: Results) -> None:
    assert [row.stage for row in dpo.stages] == STAGES
    for row in dpo.stages:
        assert row.rows_in == row.rows_out + sum(row.dropped.values()), row.stage
    assert {row.stage: row.counts["chunks"] for row in dpo.stages if "chunks" in row.counts}["sample"] == 2
    assert all(row.reused == 0 for row in dpo.stages if row.reused is not None)
    assert dpo.evaluation
    assert dpo.model is not None
    loads_and_generates(dpo.folder / "model")


def test_the_run_folder_tells_the_run(dpo: Results) -> None:
    written = json.loads((dpo.folder / "results.json").read_text())
    assert [row["stage"] for row in written["stages"]] == STAGES
    page = (dpo.folder / "summary.html").read_text()
    for text in ("train_learning_rate", "Lineage", "Evaluation", "brevity"):
        assert text in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert len(list((dpo.folder / "logs").glob("*.log"))) >= len(STAGES)


def test_lineage_leads_from_the_evaluation_to_the_data(dpo: Results) -> None:
    done = CliRunner().invoke(main, ["lineage", str(dpo.folder), "--json"])
    assert done.exit_code == 0, done.output
    story = json.loads(done.output)
    assert {step["stage"] for step in story["steps"]} == set(STAGES)
    assert {ancestor["state"] for ancestor in story["ancestors"]} == {"found"}
    source = next(step for step in story["steps"] if step["stage"] == "import_prompts")
    assert "sha256" in json.dumps(source)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("random", {"select_strategy": "best_random"}, id="another selection"),
        pytest.param(
            "qrpo",
            {"select_strategy": "all", "logprobs_order": "before", "train_objective": "qrpo"},
            id="qrpo on all completions, scored before selection",
        ),
    ],
)
def test_a_second_run_reuses_every_sampled_and_rewarded_row(
    run: RunFile, output: Path, dpo: Results, name: str, changes: dict[str, Any]
) -> None:
    again = run_local(
        RunFile(parameters={**run.parameters, **changes, "work_rows_per_chunk": 15}), output=output, name=name
    )
    before = {row.stage: row for row in dpo.stages}
    for row in again.stages:
        if row.stage in ("sample", "rewards"):
            assert row.reused == row.rows_out == before[row.stage].rows_out
    assert [row.stage for row in again.stages if row.stage not in ("select", "logprobs")] == [
        stage for stage in STAGES if stage not in ("select", "logprobs")
    ]
    fingerprints = [
        {r.metadata["fingerprint"] for r in results.outputs_of("system.Dataset") if r.task == "merge-2"}
        for results in (dpo, again)
    ]
    assert fingerprints[0] == fingerprints[1] != set()


def test_a_name_is_taken_once(run: RunFile, output: Path, dpo: Results) -> None:
    with pytest.raises(ConfigError, match="a new name"):
        run_local(run, output=output, name="dpo")


def kubealign(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path), "COLUMNS": "120"}
    command = [sys.executable, "-m", "kubealign.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_failing_stage_is_told_in_one_line_and_nothing_is_lost(
    run: RunFile, output: Path, dpo: Results, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "def reward(item):\n    return 1.0 / (len(item.text) - len(item.text))\n"
    )
    (tmp_path / "run.yaml").write_text(
        json.dumps({"parameters": {**run.parameters, "reward_functions": ["mine:reward"]}})
    )
    done = kubealign(
        "run", "-f", str(tmp_path / "run.yaml"), "-o", str(output), "--name", "failing", path=tmp_path
    )
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("Error: rewards failed: ")
    assert "mine:reward" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    log = Path(done.stderr.rpartition("log: ")[2].strip())
    assert "ZeroDivisionError" in log.read_text()
    assert "FAILED  rewards" in done.stdout
    (tmp_path / "mine.py").write_text("def reward(item):\n    return float(len(item.text))\n")
    done = kubealign(
        "run", "-f", str(tmp_path / "run.yaml"), "-o", str(output), "--name", "mended", path=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "Reused from earlier runs: sample 2 of 2 chunks" in done.stdout
    assert "Model:" in done.stdout
