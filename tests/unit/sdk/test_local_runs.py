"""Runs of this machine: which there are, what they take, what they wrote, and what may go."""

import fcntl
import json
import os
import shutil
import tempfile
import threading
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from kubealign.cli.main import main
from kubealign.local.runner import _claimed
from kubealign.local.runs import LOCK, find_run, read_run
from kubealign.local.scratch import dead_scratch, scratch
from kubealign_components.data.dataset import DatasetWriter
from kubealign_components.data.schemas import MODEL, PROMPTS
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError
from support.datasets import MakeDataset

KEPT_ALWAYS = "work/code/0.json"


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


class Output:
    """An output folder with runs as `kubealign run` leaves them."""

    def __init__(self, path: Path, make: MakeDataset) -> None:
        self.path, self._make = path, make
        (path / KEPT_ALWAYS).parent.mkdir(parents=True)
        (path / KEPT_ALWAYS).write_text("{}")

    def add(
        self, name: str, began: int, *, seed: int, failed: str = "", killed: bool = False, share: float = 1.0
    ) -> Path:
        """A run that sampled and trained a ``share`` of the steps with ``seed``, its rows in the work
        prefix, and its checkpoints as those of the whole training."""
        run = self.path / "runs" / name
        tasks = run / "artifacts" / "1" / "graph"
        (run / "logs" / "1").mkdir(parents=True)
        (run / "pipeline.yaml").write_text("")
        samples = self._make([], stage="sample", params={"seed": seed})
        shutil.copytree(samples.uri, tasks / "merge-sample" / "dataset")
        whole = self._make([], schema=MODEL, stage="train", inputs={"dataset": samples})
        stops = {"params": {"stop_after": share}} if share < 1 else {}
        model = self._make([], schema=MODEL, stage="train", inputs={"dataset": samples}, **stops)
        shutil.copytree(model.uri, tasks / "train" / "model")
        (tasks / "train" / "model" / "model.safetensors").write_bytes(b"w" * 50_000)
        (run / "logs" / "1" / "001-sample.log").write_text("drawn\n")
        (run / "logs" / "1" / "002-train.log").write_text("train: step 1, loss 0.5\n")
        for link, target in {"samples": "merge-sample/dataset", "model": "train/model"}.items():
            (run / link).symlink_to(Path("artifacts", "1", "graph", target))
        outputs = [
            {"task": "merge-sample", "output": "dataset", "type": "system.Dataset"},
            {"task": "train", "output": "model", "type": "system.Model"},
        ]
        for output in outputs:
            output["path"] = f"artifacts/1/graph/{output['task']}/{output['output']}"
        content = {"pipeline": "offline-alignment", "seconds": 61.0, "outputs": outputs}
        content["evaluation"] = {"reward_gain": 0.25}
        if failed:
            content["failed"] = f"{failed} failed: no room\n  log: {run / 'logs' / '1' / '002-train.log'}"
        if not killed:
            (run / "results.json").write_text(json.dumps(content))
            os.utime(run / "results.json", (began + 61, began + 61))
        os.utime(run / "pipeline.yaml", (began, began))
        work = self.path / "work"
        (work / "sample" / f"slices-{seed}" / "data").mkdir(parents=True)
        (work / "sample" / f"slices-{seed}" / "data" / "a").write_bytes(b"r" * 9000)
        part = str(work / "sample" / "parts" / f"part-{seed}")
        with DatasetWriter(part, PROMPTS, samples.manifest.provenance) as writer:
            writer.commit(Stats(), extra={"slices": f"slices-{seed}"})
        (work / "train" / whole.manifest.fingerprint).mkdir(parents=True)
        (work / "train" / whole.manifest.fingerprint / "state").write_text("s")
        return run

    def files(self) -> set[str]:
        return {str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.is_file()}


@pytest.fixture
def output(tmp_path: Path, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch) -> Output:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return Output(tmp_path / "out", make_dataset)


def test_runs_are_listed_newest_first_with_their_state(output: Output) -> None:
    output.add("first", 1000, seed=1)
    output.add("second", 3000, seed=2, failed="train")
    output.add("third", 2000, seed=3, killed=True)
    running = output.add("fourth", 4000, seed=4, killed=True)
    with (running / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = json.loads(call("ls", output.path, "--json"))
    assert [(row["name"], row["state"]) for row in rows] == [
        ("fourth", "running"),
        ("second", "failed"),
        ("third", "stopped"),
        ("first", "done"),
    ]
    assert rows[3] == rows[3] | {"seconds": "61", "gain": "+0.25", "pipeline": "offline-alignment"}
    assert "no runs are below it" in call("ls", output.path / "work", code=1)


def test_a_run_goes_by_path_by_output_folder_and_by_name(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = output.add("old", 1000, seed=1), output.add("new", 2000, seed=2)
    assert find_run(str(old)) == read_run(old)
    assert find_run(str(output.path)) == read_run(new)
    assert find_run("old", output.path) == read_run(old)
    assert find_run("neither", output.path) is None
    monkeypatch.chdir(output.path.parent)
    shutil.move(output.path, "runs")
    assert "kubealign.model" in call("show", "old", "--rows", 0)
    for stage in ("samples", "sample", "merge-sample"):
        assert "made by" in call("show", "old", stage, "--rows", 0)
        assert "merge-sample/dataset" in call("show", "old", stage, "--rows", 0).replace("\n", "")
    assert "it has merge-sample, model, samples, train" in call("show", "old", "nothing", code=1)
    assert "train" in call("lineage", "runs")


def test_logs_are_those_of_the_stage_of_what_failed_or_all(output: Output) -> None:
    good, bad = output.add("good", 1000, seed=1), output.add("bad", 2000, seed=2, failed="train")
    assert "loss 0.5" in call("logs", good)
    assert "drawn" in call("logs", good)
    assert "drawn" not in call("logs", good, "train")
    assert "loss 0.5" in call("logs", bad)
    assert "drawn" not in call("logs", bad)
    assert "it has those of sample, train" in call("logs", good, "mix", code=1)


def test_open_shows_the_run_s_page(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    run = output.add("x", 1000, seed=1)
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    assert "has no page: it is done" in call("open", run, code=1)
    (run / "summary.html").write_text("page")
    call("open", run)
    assert opened == [(run / "summary.html").as_uri()]


def test_du_counts_a_file_of_two_names_once(output: Output) -> None:
    run = output.add("x", 1000, seed=1)
    before = json.loads(call("du", output.path, "--json"))
    data = next((output.path / "work" / "sample").glob("*/data/a"))
    (run / "artifacts" / "again").hardlink_to(data)
    after = json.loads(call("du", output.path, "--json"))
    assert after["work/sample"] == before["work/sample"] >= 9000
    assert after["models of x"] >= 50_000
    assert after["all"] == before["all"]


def test_gc_names_first_and_removes_only_what_nobody_needs(output: Output) -> None:
    output.add("old", 1000, seed=1)
    output.add("new", 2000, seed=2)
    kept = output.files()
    output.add("bad", 3000, seed=3, failed="train")
    output.add("killed", 4000, seed=4, killed=True)
    all_files = output.files()
    named = call("gc", output.path, "--models", 2)
    assert output.files() == all_files
    assert "--yes removes them" in named
    call("gc", output.path, "--models", 2, "--yes")
    assert output.files() == kept
    call("gc", output.path, "--models", 1, "--yes")
    gone = sorted(kept - output.files())
    assert gone[:2] == [
        f"runs/old/artifacts/1/graph/train/model/{name}" for name in ("manifest.json", "model.safetensors")
    ]
    assert len(gone) == 3
    assert gone[2].startswith("work/train/")  # its checkpoints are as large as the model
    assert "0 to remove" in call("gc", output.path, "--models", 1)


def test_gc_leaves_what_a_training_that_stopped_goes_on_from_while_its_model_stays(output: Output) -> None:
    output.add("stopped", 1000, seed=1, share=0.5)
    output.add("new", 2000, seed=2)
    kept = output.files()
    call("gc", output.path, "--models", 2, "--yes")
    assert output.files() == kept
    call("gc", output.path, "--models", 1, "--yes")
    assert [name for name in kept - output.files() if name.startswith("work/train/")]


def test_gc_leaves_what_benchmarks_have_measured(output: Output) -> None:
    """A policy's numbers are taken by every later run that is compared with it."""
    output.add("only", 1000, seed=1)
    record = output.path / "work/benchmark/0123.json.gz"
    record.parent.mkdir(parents=True)
    record.write_bytes(b"measured")
    call("gc", output.path, "--yes")
    assert record.exists()


def test_gc_leaves_what_a_run_under_way_may_look_up(output: Output) -> None:
    output.add("done", 1000, seed=1)
    running = output.add("running", 2000, seed=2, killed=True)
    shutil.rmtree(running / "artifacts")  # it has made nothing yet that would name its rows
    (output.path / "work" / "sample" / ".kubealign-half").write_text("half")
    (running / LOCK).write_text("")
    before = output.files()
    with (running / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        call("gc", output.path, "--yes")
        assert output.files() == before
    call("gc", output.path, "--keep-failed", "--yes")
    assert output.files() == before
    call("gc", output.path, "--yes")
    assert KEPT_ALWAYS in output.files()
    assert not [name for name in output.files() if "running" in name or "part-2" in name or "half" in name]


def test_temporary_files_go_with_the_run_and_those_of_the_dead_with_the_next(output: Output) -> None:
    with scratch() as dead:
        copied = Path(shutil.copytree(dead, f"{dead}-killed"))
    assert not dead.exists()
    assert dead_scratch() == [copied]
    with scratch() as folder:
        assert not copied.exists()
        assert Path(tempfile.mkdtemp()).parent == folder == Path(os.environ["TMPDIR"])
        assert dead_scratch() == []  # one that lives is let be
    assert not folder.exists()


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    count = 8
    together = threading.Barrier(count)

    def begin(_: int) -> Path:
        together.wait()
        with _claimed(tmp_path / "runs", "") as folder:
            (folder.path / "pipeline.yaml").write_text("")
            together.wait()  # all are under way at once
            return folder.path

    with ThreadPoolExecutor(count) as threads:
        made = list(threads.map(begin, range(count)))
    assert len(set(made)) == count
    assert all((path / "pipeline.yaml").is_file() for path in made)


def test_a_name_that_another_run_has_is_refused_while_it_runs(tmp_path: Path) -> None:
    with (
        _claimed(tmp_path / "runs", "x"),
        pytest.raises(ConfigError, match="not under way in another process"),
        _claimed(tmp_path / "runs", "x"),
    ):
        pass
    with _claimed(tmp_path / "runs", "x") as again:
        assert again.path.name == "x"


def test_records_of_finished_outputs_go_with_them(output: Output) -> None:
    records = {}
    for began, name in enumerate(("kept", "failed"), start=1):
        run = output.add(name, 1000 * began, seed=began, failed="train" if name == "failed" else "")
        record = output.path / "work" / "finished" / "train" / name / "0.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"output": str(run / "artifacts" / "1" / "graph" / "train" / "model")}))
        records[name] = record
    damaged = records["kept"].with_name("1.json")
    damaged.write_text("{")
    assert "what it points at is gone" in call("gc", output.path)
    call("gc", output.path, "--yes")
    assert records["kept"].exists()
    assert not records["failed"].exists()
    assert not damaged.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"outputs": None},
        {"outputs": ["model"]},
        {"outputs": [{"task": "train"}]},
        {"outputs": {}, "stages": {"x": 1}},
        {"stages": [{"x": 1}]},
        {"evaluation": "good", "seconds": 1},
        {"evaluation": {"reward_gain": "much"}},
        {"seconds": None, "pipeline": None},
        {"outputs": [{"task": "train", "output": "model", "type": "system.Model", "path": "../../../kept"}]},
        {"model": "/kept"},
    ],
    ids=str,
)
def test_results_that_this_version_did_not_write_are_not_read(content: object, tmp_path: Path) -> None:
    """Of another version, or by another hand: what they name outside of the run is not removed."""
    run, kept = tmp_path / "output" / "runs" / "one", tmp_path / "kept"
    (run / "logs").mkdir(parents=True)
    (run / "pipeline.yaml").write_text("")
    (run / "results.json").write_text(json.dumps(content))
    kept.mkdir()
    assert read_run(run).results == {}
    assert "stopped" in call("ls", run.parents[1])
    call("gc", run.parents[1], "--models", 0, "--yes")
    assert kept.is_dir()
