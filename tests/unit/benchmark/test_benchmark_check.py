"""Task folders and names are looked at before a run begins."""

from __future__ import annotations

from pathlib import Path

from kubealign_pipelines.checking.run import check_run
from kubealign_pipelines.resources import CompileSettings
from support.benchmarks import CAPITALS, GROUP, write_tasks


def said(folder: str, *tasks: str, here: bool = True) -> list[str]:
    values = {
        "policy": "org/model-1B",
        "sources": [{"uri": "org/prompts"}],
        "reward_functions": ["brevity"],
        "benchmark_tasks": list(tasks),
        "benchmark_task_folder": folder,
    }
    report = check_run("offline_alignment", values, CompileSettings(), here=here)
    return [str(finding) for finding in report.errors if "benchmark" in str(finding.path)]


def test_names_are_looked_up_in_a_folder_of_this_machine(tmp_path: Path) -> None:
    write_tasks(tmp_path, {**CAPITALS, "tag": ["quick"]}, GROUP)
    (tmp_path / "odd.yaml").write_text("task: odd\nprocess_docs: !function own.docs\n")
    (tmp_path / "broken.yaml").write_text("a: [")
    assert said(str(tmp_path), "capitals", "geography", "quick", "odd", "arc_easy") == []
    [finding] = said(str(tmp_path), "capitals", "capital")
    assert "'capital'" in finding
    assert "did you mean capitals" in finding


def test_a_folder_that_pods_do_not_see_is_refused(tmp_path: Path) -> None:
    write_tasks(tmp_path, CAPITALS)
    [finding] = said(str(tmp_path), "capitals", here=False)
    assert "do not see this machine's files" in finding
    [finding] = said(str(tmp_path / "none"), "capitals")
    assert "a folder with tasks" in finding
    assert said("gs://bucket/tasks", "capitals", here=False) == []
