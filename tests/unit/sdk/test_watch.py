"""Following kfp.local: a small pipeline of real tasks, two at a time, one of them failing."""

import contextlib
from pathlib import Path
from typing import Any, Dict, List  # noqa: UP035

import pytest
from kfp import compiler, components, dsl, local

from kubealign.local.loops import loop_inputs_kept
from kubealign.local.results import missing_outputs
from kubealign.local.watcher import TaskRun, Watcher, reason_of
from kubealign_components.progress import BarState
from kubealign_pipelines.compiler import read_graph


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def plan(count: int) -> List[Dict]:  # noqa: UP006
    return [{"index": i, "of": count} for i in range(count)]


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def work(chunk: dict, bad: int) -> str:
    import sys

    from kubealign_components.errors import DataError

    index = int(chunk["index"])
    for _ in range(20):
        print(f"chunk {index} says hello")
    sys.stderr.write(f"work {index + 1}/3: {index}/9 rows, 1.50 rows/s, 01:02 left, loss=0.5\n")
    sys.stderr.write("Loading weights: 100%|##########| 21/21 [00:00<00:00, 99.00it/s]\n")
    if index == bad:
        raise DataError(f"row {index!r} is bad; mend it")
    return str(index)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def join(parts: List[str]) -> str:  # noqa: UP006
    return "+".join(sorted(parts))


@dsl.pipeline(name="small")
def small(bad: int = -1):
    planned = plan(count=3).set_display_name("the plan")
    with dsl.ParallelFor(planned.output, parallelism=2, name="work") as chunk:
        part = work(chunk=chunk, bad=bad)
    join(parts=dsl.Collected(part.output))


def follow(
    tmp_path: Path, pipeline: Any = small, **arguments: int
) -> tuple[Watcher, list[tuple[TaskRun, str]]]:
    path = tmp_path / "small.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    lines: list[tuple[TaskRun, str]] = []
    watcher = Watcher(
        tmp_path, on_event=lambda run: None, on_line=lambda run, line: lines.append((run, line))
    )
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    with watcher.following(), contextlib.suppress(RuntimeError):
        components.load_component_from_file(str(path))(**arguments)
    return watcher, lines


def test_every_execution_is_seen_and_its_lines_are_its_own(tmp_path: Path) -> None:
    watcher, lines = follow(tmp_path)
    assert sorted(run.task for run in watcher.runs) == ["join", "plan", "work", "work", "work"]
    assert all(run.ok for run in watcher.runs)
    assert watcher.failed is None
    for run in watcher.runs:
        own = [line for other, line in lines if other is run]
        if run.task == "work":
            assert len(own) == 20, own
            assert len(set(own)) == 1, own
            assert run.state is not None
            index = run.state.done
            assert run.state == BarState(
                name=f"work {index + 1}/3",
                done=index,
                total=9,
                unit="rows",
                rate=1.5,
                left=62.0,
                notes="loss=0.5",
            )
            assert "Loading weights" not in run.log.read_text()
            assert run.chunk == {"index": index, "of": 3}
            assert "Got executor_input" in run.log.read_text()


def test_a_failure_is_told_in_the_stage_s_own_words(tmp_path: Path) -> None:
    watcher, _ = follow(tmp_path, bad=1)
    assert watcher.failed is not None
    assert watcher.failed.task == "work"
    assert reason_of(watcher.failed) == "row 1 is bad; mend it"
    assert "Traceback" in watcher.failed.log.read_text()


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (["Traceback", "  File x", "ValueError: no", "sys:1: later noise"], "ValueError: no"),
        (["kubealign_components.errors.ConfigError: n=0: expected 1", "y.ZError: z"], "n=0: expected 1"),
        (["torch.OutOfMemoryError: CUDA out of memory"], "torch.OutOfMemoryError: CUDA out of memory"),
        (["Killed"], "Killed"),
        ([], "it ended without a word: killed, perhaps for lack of memory"),
    ],
)
def test_reasons(tail: list[str], reason: str) -> None:
    run = TaskRun(task="t", number=1, started=0.0, log=Path("log"), ended=1.0, ok=False, tail=tail)
    assert reason_of(run) == reason


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def forgetful(page: dsl.Output[dsl.HTML], other: dsl.Output[dsl.HTML], metrics: dsl.Output[dsl.Metrics]):
    from pathlib import Path

    Path(page.path).write_text("here")


@dsl.pipeline(name="short")
def short():
    forgetful()


def test_outputs_that_a_task_left_out_are_found(tmp_path: Path) -> None:
    watcher, _ = follow(tmp_path, short)
    assert watcher.failed is None
    missing = missing_outputs(read_graph(tmp_path / "small.yaml"), tmp_path / "root", watcher)
    assert sorted(output.output for output in missing) == ["metrics", "other"]


def test_the_graph_knows_titles_and_what_a_task_works_for(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    compiler.Compiler().compile(small, str(path))
    graph = read_graph(path)
    assert {t.name: t.group for t in graph.tasks.values()} == {"plan": "plan", "work": "work", "join": "work"}
    assert graph.tasks["plan"].title == "the plan"
    assert graph.tasks["work"].arguments["bad"].parameter == "bad"
    assert graph.tasks["plan"].arguments["count"].constant == 3
    assert graph.parameters["bad"].default == -1


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def name_model() -> str:
    return "model"


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def use(chunk: dict, model: str) -> str:
    return f"{model} {int(chunk['index'])}"


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def tell(parts: List[str]) -> str:  # noqa: UP006
    print("told " + ", ".join(sorted(parts)))
    return ""


@dsl.pipeline(name="with-a-model")
def with_a_model():
    model = name_model()
    planned = plan(count=2)
    with dsl.ParallelFor(planned.output, name="use") as chunk:
        part = use(chunk=chunk, model=model.output)
    tell(parts=dsl.Collected(part.output))


def test_a_loop_gets_what_it_takes_from_other_tasks(tmp_path: Path) -> None:
    with loop_inputs_kept():
        watcher, lines = follow(tmp_path, with_a_model)
    assert watcher.failed is None
    assert "told model 0, model 1" in [line for _, line in lines]
