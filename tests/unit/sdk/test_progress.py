"""Progress of a local run: the stages' lines, what a terminal and a pipe show of them, and the time left."""

import io
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from kubealign.cli.progress import Progress, state_text
from kubealign.local.forecast import START_SECONDS, Expected, Forecast, forecast
from kubealign.local.live import read_state, state_written
from kubealign.local.watcher import TaskRun, Watcher
from kubealign_components.progress import (
    SECONDS,
    BarState,
    ProcessBars,
    note,
    process_name,
    progress_bar,
    read_line,
)
from kubealign_pipelines.compiler import compile_pipeline
from kubealign_pipelines.graph import Graph


def a_run(task: str = "sample", seconds: float = 10.0, **settings: object) -> TaskRun:
    """An execution under way that began ``seconds`` ago."""
    run = TaskRun(task=task, number=1, started=time.monotonic() - seconds, log=Path("log"))
    for name, value in settings.items():
        setattr(run, name, value)
    return run


def ended(task: str, seconds: float, **settings: object) -> TaskRun:
    return a_run(task, seconds, ended=time.monotonic(), ok=True, **settings)


def a_state(done: int, left: float | None) -> BarState:
    return BarState(name="x", done=done, total=100, unit="rows", rate=2.0, left=left, notes="loss=0.7")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose rate of products is the same each time that it is measured."""
    monkeypatch.setattr("kubealign.local.forecast._matrix_rate", lambda: 1e11)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    parameters = {"policy": "p", "sources": [{"name": "a", "uri": "b"}], "reward_functions": ["brevity"]}
    path = tmp_path_factory.mktemp("graph") / "pipeline.yaml"
    return compile_pipeline("offline_alignment", path, None, parameters)


def test_a_bar_in_a_pipe_writes_lines_that_are_read_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECONDS, "0")
    with progress_bar(5, "prompts", "evaluate: reference") as bar:
        for number in range(5):
            time.sleep(0.01)
            bar.set_postfix(loss=f"{number}", refresh=False)
            bar.update(1)
            note(bar, f"said {number}")
    written = capsys.readouterr().err
    assert "\r" not in written
    lines = written.splitlines()
    assert all(line.strip() for line in lines)
    states = [state for state in map(read_line, lines) if state is not None]
    assert [state.done for state in states] == [0, 1, 2, 3, 4, 5]
    assert {(s.name, s.total, s.unit) for s in states} == {("evaluate: reference", 5, "prompts")}
    assert states[0].rate is None
    assert states[-1].rate is not None
    assert 10 < states[-1].rate < 110
    assert states[-1].notes == "loss=4"
    assert [line for line in lines if read_line(line) is None] == [f"said {i}" for i in range(5)]


@pytest.mark.parametrize(
    "line",
    [
        "Loading weights: 100%|####| 21/21 [00:00<00:00, 99.00it/s]",
        "sample: 3 of 4 rows were finished before",
        "ratio: 1/2 rows",
        "",
    ],
)
def test_other_lines_are_no_progress(line: str) -> None:
    assert read_line(line) is None
    assert ProcessBars().line(line) == line


def test_bars_of_a_pod_s_processes_become_one_that_is_read_again() -> None:
    def says(process: int, done: int, rate: float | None, left: float | None) -> str:
        name = process_name("sample 1/4", process, 2)
        return str(BarState(name=name, done=done, total=10, unit="prompts", rate=rate, left=left, notes=""))

    bars = ProcessBars()
    told = [bars.line(one) for one in (says(2, 0, None, None), says(1, 4, 2.0, 3.0), says(2, 2, 1.0, 8.0))]
    assert told[1:] == ["sample 1/4: 4/20 prompts, 2.00 prompts/s, 00:03 left, 2 of 2 processes", None]
    whole = bars.line(says(1, 5, 2.0, 2.5))
    assert whole is not None and read_line(whole) == BarState(
        name="sample 1/4",
        done=7,
        total=20,
        unit="prompts",
        rate=3.0,
        left=8.0,
        notes="2 of 2 processes",
    )
    # One that has finished leaves it to another to tell, and counts with what it did.
    assert bars.line(says(1, 10, 2.0, 0.0)) is None
    assert bars.line(says(2, 3, 1.0, 7.0)) == (
        "sample 1/4: 13/20 prompts, 1.00 prompts/s, 00:07 left, 2 of 2 processes"
    )
    last = bars.line(says(2, 10, 1.0, 0.0))
    assert last is not None and last.startswith("sample 1/4: 20/20 prompts")


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (a_state(10, 45.0), "10/100 rows, 2 rows/s, 45 s left, loss=0.7"),
        (a_state(100, 0.0), "100/100 rows, 2 rows/s, loss=0.7"),
        (a_state(10, 3680.0), "10/100 rows, 2 rows/s, 1 h 01 min left, loss=0.7"),
    ],
)
def test_a_state_has_unit_rate_and_time_left(state: BarState, text: str) -> None:
    assert state_text(a_run(state=state)) == text


def test_a_pipe_gets_lines_of_what_runs(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECONDS, "0.05")
    written = io.StringIO()
    progress = Progress(console=Console(file=written, width=200))
    watcher = Watcher(tmp_path, on_event=progress.event, on_line=progress.line)

    def log(message: str) -> None:
        watcher.filter(logging.LogRecord("kfp", logging.INFO, "", 0, message, (), None))

    with progress.showing(graph, watcher, Forecast({"sample": Expected(executions=4, work=36.0)})):
        log("Executing task 'sample'")
        watcher.runs[0].chunk |= {"index": 1, "of": 4}
        watcher.stream.write("  sample 2/4: 10/100 prompts, 2.00 prompts/s, 00:45 left\n")
        time.sleep(0.2)
        log("Task 'sample' finished with status SUCCESS")
    lines = written.getvalue().splitlines()
    runs = [line for line in lines if "runs" in line]
    assert runs
    assert "sample, chunk 2 of 4" in runs[0]
    assert "10/100 prompts, 2 prompts/s, 45 s left; run: about " in runs[0]
    assert all("\x1b" not in line and "\r" not in line for line in lines)


def test_the_forecast_follows_what_this_machine_shows() -> None:
    expected = {
        "filter": Expected(executions=1, work=0.0),
        "sample": Expected(executions=4, work=40.0),
        "train": Expected(executions=1, work=100.0),
    }
    plan = Forecast(expected)
    whole = 6 * START_SECONDS + 140.0
    assert plan.total() == whole
    assert plan.left([]) == pytest.approx(whole)
    # A chunk that took twice what was expected doubles all that is still to come.
    slow = [ended("filter", 2 * START_SECONDS), ended("sample", 2 * (START_SECONDS + 10), chunk={"of": 4})]
    assert plan.left(slow) == pytest.approx(2 * (3 * (START_SECONDS + 10) + START_SECONDS + 100), rel=0.01)
    # Rows that were there already say nothing of this machine.
    reused = [ended("sample", 0.5, reused=True)]
    assert plan.left(reused) == pytest.approx(whole - START_SECONDS - 10, rel=0.01)
    # A task under way is believed once its own rate is known.
    running = a_run("train", 10, state=a_state(20, 33.0))
    rest = START_SECONDS + 4 * (START_SECONDS + 10)
    assert plan.left([running]) == pytest.approx(rest + 33.0)
    # More chunks than planned, as the worker says.
    more = [ended("sample", START_SECONDS + 5, chunk={"of": 8})]
    assert plan.left(more) > plan.left([ended("sample", START_SECONDS + 10, chunk={"of": 4})])


def test_the_forecast_takes_rows_that_filters_dropped_off_what_chunks_have_to_do() -> None:
    plan = Forecast(
        {
            "filter": Expected(executions=1, work=0.0),
            "sample": Expected(executions=1, work=100.0, rows=500),
            "train": Expected(executions=1, work=30.0),
        }
    )
    # How fast a filter is says nothing of how fast models are.
    assert plan.left([ended("filter", 9 * START_SECONDS)]) == pytest.approx(2 * START_SECONDS + 130)
    a_fifth = BarState(name="sample", done=0, total=100, unit="prompts", rate=None, left=None, notes="")
    begun = a_run("sample", 0.0, state=a_fifth, chunk={"index": 0, "of": 1})
    assert plan.left([begun]) == pytest.approx(3 * START_SECONDS + 20 + 30, rel=0.01)
    # What it took, measured by what it had to do.
    sampled = ended("sample", 2 * (START_SECONDS + 20), state=a_fifth, chunk={"index": 0, "of": 1})
    filtered = ended("filter", START_SECONDS)
    assert plan.left([filtered, sampled]) == pytest.approx(2 * (START_SECONDS + 30), rel=0.01)


def test_the_forecast_of_a_pipeline_counts_chunks_and_work(graph: Graph, tmp_path: Path) -> None:
    data = tmp_path / "p.jsonl"
    data.write_text('{"prompt": "a"}\n' * 40)
    parameters = {name: p.default for name, p in graph.parameters.items()}
    parameters |= {
        "policy": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "sources": [{"name": "a", "uri": str(data)}],
        "reward_functions": ["brevity"],
        "work_rows_per_chunk": 10,
    }

    def total(**changed: object) -> float:
        given: Mapping[str, object] = parameters | changed
        return forecast(graph, given).total()

    assert total() > 4 * START_SECONDS
    short, long = ({"sampling": {"max_new_tokens": n}} for n in (20, 200))
    assert total(sample_options=short) < total(sample_options=long)
    assert total(work_rows_per_chunk=5) > total()
    assert total(policy="org/Model-8B") > 5 * total()


def test_the_forecast_goes_by_the_settings_that_stages_are_given(graph: Graph) -> None:
    """A run file's flat names are folded into the options of stages by then."""
    parameters = {name: p.default for name, p in graph.parameters.items()}
    parameters |= {"policy": "org/Model-8B", "sources": [], "reward_functions": ["brevity"]}

    def total(**options: object) -> float:
        given: Mapping[str, object] = parameters | options
        return forecast(graph, given).total()

    assert total(filter_options={"max_prompt_len": 20}) < total(filter_options={"max_prompt_len": 200})
    slow, fast = ({"sampling": {"engine": engine}} for engine in ("transformers", "vllm"))
    assert total(sample_options=slow) > 2 * total(sample_options=fast)


def test_other_processes_read_how_far_a_run_has_come(graph: Graph, tmp_path: Path) -> None:
    watcher = Watcher(tmp_path, on_event=lambda run: None, on_line=lambda run, line: None)
    path = tmp_path / "progress.json"
    with state_written(path, graph, watcher, Forecast({"train": Expected(executions=1, work=100.0)})):
        assert read_state(path)["tasks"] == [] and read_state(path)["left"] > 100
        watcher.runs += [
            ended("filter", 4.0),
            a_run("sample", state=a_state(50, 3.0), chunk={"index": 1, "of": 3}),
        ]
    filtered, sampled = read_state(path)["tasks"]
    assert (filtered["title"], filtered["state"], filtered["detail"]) == ("filter", "done", "")
    assert (sampled["title"], sampled["state"]) == ("sample, chunk 2 of 3", "running")
    assert sampled["detail"].startswith("50/100 rows") and sampled["seconds"] >= 10


def test_a_state_that_cannot_be_written_stops_no_run(graph: Graph, tmp_path: Path) -> None:
    watcher = Watcher(tmp_path, on_event=lambda run: None, on_line=lambda run, line: None)
    with state_written(tmp_path / "gone" / "progress.json", graph, watcher, Forecast({})):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_bar_whose_making_was_interrupted_is_closed_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(1, "rows", "filter") as bar:
        kind = type(bar)
    capsys.readouterr()
    kind.__new__(kind).close()
    assert capsys.readouterr() == ("", "")
