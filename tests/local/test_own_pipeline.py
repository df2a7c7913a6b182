"""The pipeline of one's own that the page shows, run whole; and what is there of a run in Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubealign import Dataset, load_run, load_run_file, run_local
from kubealign_components.errors import NotFound
from support.documents import leave_own_pipeline


@pytest.mark.timeout(600)
def test_it_runs_and_its_run_can_be_read(tmp_path: Path, tiny_model: Path) -> None:
    leave_own_pipeline(tmp_path, tiny_model)
    made = run_local(load_run_file(tmp_path / "mine.yaml"), output=tmp_path / "runs", name="first")
    run = load_run(tmp_path / "runs")
    assert run.folder == made.folder
    assert list(run.datasets) == ["import_prompts", "short_prompts", "filter", "sample", "rewards"]
    assert all(isinstance(dataset, Dataset) for dataset in run.datasets.values())
    assert len(run.datasets["short_prompts"]) == 12
    assert run.datasets["short_prompts"].manifest.stats["dropped"] == {"too_many_words": 1}
    assert all(row["completions"][0]["reward"] > 0 for row in run.datasets["rewards"])
    assert run.metrics["rewards"]["rows_out"] == 12
    assert run.metrics == made.metrics
    assert run.models == {}
    assert run.model is None
    assert run.parameters["most_words"] == 6
    pages = (run.folder / "reports").iterdir()
    assert any("short" in page.name for page in pages)
    assert "short prompts" in (run.folder / "summary.html").read_text()
    assert (run.folder / "short_prompts" / "manifest.json").is_file()


def test_what_is_no_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match="nothing: no run is there"):
        load_run("nothing")
    begun = tmp_path / "runs" / "runs" / "begun"
    (begun / "logs").mkdir(parents=True)
    (begun / "pipeline.yaml").touch()
    with pytest.raises(NotFound, match="has left no results yet; it is stopped"):
        load_run("begun")
