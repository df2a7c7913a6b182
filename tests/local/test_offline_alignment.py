"""The whole pipeline on this machine: the compiled YAML, a tiny random model, a verifiable reward."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kubealign import Results, RunFile, run_local
from kubealign.cli.console import reuse_text
from kubealign.cli.main import main
from kubealign.local.results import StageRow
from support.browser import faults_of, needs_browser, opened_browser
from support.drawn import compiled_edges, drawn_edges
from support.pages import Page
from support.small_run import small_run

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
    """Two dozen prompts with an offline pair each, in two chunks; three completions of at most ten tokens."""
    rows = [
        {"prompt": f"Tell me about {topic}, please ({i}).", "chosen": f"{topic} are fine.", "rejected": "No."}
        for i in range(2)
        for topic in TOPICS
    ]
    reward = {"function": "kubealign_components.rewards.functions:brevity", "settings": {"scale": 8}}
    source = tmp_path_factory.mktemp("data") / "preferences.jsonl"
    return RunFile(parameters=small_run(tiny_model, source, rows, reward_functions=[reward]))


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
    shown = Page(page)
    assert not shown.loaded, "the page loads something from elsewhere"
    assert drawn_edges(dpo, shown) == compiled_edges(dpo)
    links = re.findall(r'<li><a href="(reports/[\w-]+\.html)">', page)
    stages = {link.partition("-")[2].removesuffix(".html").replace("-", "_") for link in links}
    assert {*STAGES[:7], "lineage"} <= stages
    for link in links:
        assert not Page((dpo.folder / link).read_text()).loaded
    assert "Rewards before and after" in shown.charts
    assert len(list((dpo.folder / "logs").rglob("*.log"))) >= len(STAGES)


@needs_browser
def test_every_page_of_the_run_stands_in_a_browser(dpo: Results) -> None:
    pages = [dpo.folder / "summary.html", *(dpo.folder / "reports").iterdir()]
    assert len(pages) > len(STAGES)
    with opened_browser() as browser:
        assert [fault for page in pages for fault in faults_of(browser, page.as_uri())] == []


def test_lineage_leads_from_the_evaluation_to_the_data(dpo: Results) -> None:
    done = CliRunner().invoke(main, ["lineage", str(dpo.folder), "--json"])
    assert done.exit_code == 0, done.output
    story = json.loads(done.output)
    assert {step["stage"] for step in story["steps"]} == set(STAGES)
    assert {ancestor["state"] for ancestor in story["ancestors"]} == {"found"}
    source = next(step for step in story["steps"] if step["stage"] == "import_prompts")
    assert "sha256" in json.dumps(source)


def test_another_selection_reuses_every_sampled_and_rewarded_row(
    run: RunFile, output: Path, dpo: Results
) -> None:
    """All completions for QRPO, scored before selection, and the work cut into one chunk, not two."""
    changes = {"select_strategy": "all", "logprobs_order": "before", "train_objective": "qrpo"}
    qrpo = run_local(
        RunFile(parameters={**run.parameters, **changes, "work_rows_per_chunk": 24}),
        output=output,
        name="qrpo",
    )
    stages = [row.stage for row in qrpo.stages]
    assert stages.index("logprobs") < stages.index("select")
    assert sorted(stages) == sorted(STAGES)
    for first, again in zip(_chunked(dpo), _chunked(qrpo), strict=True):
        assert again.reused == again.rows_out == first.rows_out
    assert _fingerprint(dpo, "rewards") == _fingerprint(qrpo, "rewards")
    assert _fingerprint(dpo, "select") != _fingerprint(qrpo, "select")
    assert "sample 1 of 1 chunks (24 of 24 rows)" in reuse_text(qrpo)


def _chunked(results: Results) -> list[StageRow]:
    return [row for row in results.stages if row.stage in ("sample", "rewards")]


def _fingerprint(results: Results, stage: str) -> str:
    assert results.last is not None
    [found] = [name for name, step in results.last.recipe.items() if step["stage"] == stage]
    return found


def kubealign(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(path), "COLUMNS": "120"}
    command = [sys.executable, "-m", "kubealign.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_failing_stage_is_told_in_one_line_and_nothing_is_lost(
    run: RunFile, output: Path, dpo: Results, tmp_path: Path
) -> None:
    # Right on what is known before the run, wrong on what is sampled in it.
    (tmp_path / "mine.py").write_text(
        "def reward(item):\n    return 1.0 / (len(item.text) if item.text.endswith(' are fine.') else 0)\n"
    )
    (tmp_path / "run.yaml").write_text(
        json.dumps({"parameters": {**run.parameters, "reward_functions": ["mine:reward"]}})
    )
    done = kubealign(
        "run", "-f", str(tmp_path / "run.yaml"), "-o", str(output), "--name", "failing", path=tmp_path
    )
    assert done.returncode == 1, done.stdout
    assert "\nError: rewards failed: " in f"\n{done.stderr}"
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
