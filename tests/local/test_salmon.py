"""SALMON whole on this machine: the compiled YAML, a tiny random model, both ways of alignment."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from kubealign import Results, load_run, run_local
from kubealign.cli.main import main
from kubealign.rerun import run_file_of
from kubealign_components.data.dataset import Dataset
from kubealign_components.errors import NotFound
from support.browser import faults_of, needs_browser, opened_browser
from support.drawn import compiled_edges, drawn_edges
from support.pages import Page
from support.small_run import small_salmon
from unit.test_readme_commands import of_kind

[COMMAND] = [command for command in of_kind("loads") if "salmon" in command.words]
"""Of the README: it runs all of SALMON."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages run in processes of their own: small models are faster on one thread each."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def ppo(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """All of it, with PPO, by the command of the README where a reader would enter it."""
    folder = tmp_path_factory.mktemp("here")
    salmon = asdict(small_salmon(tiny_model, folder, "ppo"))
    written = {name: salmon[name] for name in ("pipeline", "parameters")}
    (folder / "run.yaml").write_text(yaml.safe_dump(written))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        done = subprocess.run(
            [sys.executable, "-m", "kubealign.cli.main", *COMMAND.words[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert "Model:" in done.stdout
    assert "Traceback" not in done.stderr
    return load_run(folder / "runs")


def test_every_stage_of_salmon_leaves_what_the_next_one_needs(ppo: Results) -> None:
    by_stage = {row.stage: row for row in ppo.stages}
    assert {"clean_prompts", "judge", "aggregate", "clean_pmp", "train_reward_model", "train_ppo"} <= set(
        by_stage
    )
    dropped = by_stage["clean_prompts"].dropped
    assert sum(dropped.values()) + by_stage["clean_prompts"].rows_out == by_stage["clean_prompts"].rows_in
    assert by_stage["judge"].rows_out == by_stage["sample"].rows_out
    assert by_stage["train_ppo"].counts["steps"] == 2
    assert ppo.evaluation["reward_gain_low"] <= ppo.evaluation["reward_gain"]


def test_the_aligned_policy_knows_the_whole_story(ppo: Results) -> None:
    assert ppo.model is not None
    assert ppo.last is not None
    stages = [step["stage"] for step in ppo.last.recipe.values()]
    assert stages.count("train_reward_model") == 2
    assert {"clean_prompts", "clean_pmp", "judge", "aggregate", "rl_prompts", "train_ppo"} <= set(stages)
    page = Page((ppo.folder / "summary.html").read_text())
    assert drawn_edges(ppo, page) == compiled_edges(ppo)


@needs_browser
def test_every_page_of_the_run_stands_in_a_browser(ppo: Results) -> None:
    pages = [ppo.folder / "summary.html", *(ppo.folder / "reports").iterdir()]
    with opened_browser() as browser:
        assert [fault for page in pages for fault in faults_of(browser, page.as_uri())] == []


def test_offline_alignment_reuses_what_was_sampled_and_judged(
    ppo: Results, tiny_model: Path, tmp_path: Path
) -> None:
    output = ppo.folder.parents[1]  # which all runs of this file share, and with it their finished rows
    offline = run_local(small_salmon(tiny_model, tmp_path, "offline"), output=output, name="offline")
    by_stage = {row.stage: row for row in offline.stages}
    assert by_stage["judge"].reused == by_stage["judge"].rows_in
    assert by_stage["train"].counts["steps"] == 1
    assert offline.evaluation["reward_gain_low"] <= offline.evaluation["reward_gain"]
    assert ppo.model != offline.model
    page = Page((offline.folder / "summary.html").read_text())
    # Rewards name their model by its identity alone, so what that model was made of is not drawn here.
    drawn, compiled = drawn_edges(offline, page), compiled_edges(offline)
    assert drawn < compiled
    assert {("merge-rewards", "select"), ("mix", "train"), ("train", "evaluate")} <= drawn


def test_every_output_tells_the_settings_of_its_run(ppo: Results, tiny_model: Path, tmp_path: Path) -> None:
    given = small_salmon(tiny_model, tmp_path, "ppo").parameters
    told: dict[str, object] = {}
    for output in ppo.outputs:
        try:
            manifest = Dataset.open(str(output.path), allow_empty=True).manifest
        except NotFound:
            continue
        content = run_file_of(manifest)
        assert content["pipeline"] == "salmon"
        told |= content["parameters"]
    for name in ("policy", "clean_prompts_max_rows", "filter_max_seq_len", "sample_max_new_tokens"):
        assert told[name] == given[name], name
    for name in ("reward_model_batch_size", "pmp_max_steps", "reward_model_max_steps", "ppo_rollout_batch"):
        assert told[name] == given[name], name
    assert (told["principles"], told["rl_principles"]) == ("judging", "rl")


def test_the_aligned_policy_is_made_again_from_its_manifest(ppo: Results, tmp_path: Path) -> None:
    checked = CliRunner().invoke(main, ["rerun", str(ppo.model), "--check", str(tmp_path / "again")])
    assert checked.exit_code == 0, checked.output
    assert "The same again" in checked.output
