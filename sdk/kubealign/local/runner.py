"""A pipeline run whole on this machine: the compiled YAML, through KFP's own local runner.

A run has a folder of its own below the output folder; the work prefix, where finished rows are kept,
is shared by all runs into the same output folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from kfp import components, local

from kubealign.cli.console import duration
from kubealign.cli.progress import Progress
from kubealign.errors import RunFailed, RunStopped
from kubealign.local.docker import docker_runner, exit_codes_kept, signal_containers
from kubealign.local.forecast import Forecast, forecast
from kubealign.local.live import state_written
from kubealign.local.loops import loop_inputs_kept
from kubealign.local.registering import register_here
from kubealign.local.results import Results, collect, missing_outputs
from kubealign.local.runs import LOCK, RUNS, RunFolder, numbered
from kubealign.local.runs import WORK as WORK_FOLDER
from kubealign.local.scratch import scratch
from kubealign.local.stopping import Stopping
from kubealign.local.summary import write_summary
from kubealign.local.watcher import Watcher, reason_of
from kubealign.parameters import check_parameters, whole_parameters
from kubealign.run_paths import send_code
from kubealign.runfile import RunFile
from kubealign_components.config import require
from kubealign_components.data.finished import FINISHED
from kubealign_components.errors import ConfigError
from kubealign_components.json_types import JsonObject
from kubealign_components.whole_file import write_whole
from kubealign_pipelines.compiler import compile_pipeline
from kubealign_pipelines.flat import fold
from kubealign_pipelines.graph import Graph

if TYPE_CHECKING:
    from kfp.local import DockerRunner, SubprocessRunner

WORK = "work"
"""Pipeline parameter for the work prefix."""
MAX_NAME = 200
"""Most bytes of a run's name: file systems take 255."""
_NAME = re.compile(r"\w([\w .+=@,-]*[\w+=@-])?")
_A_NAME = "a name for a folder: letters and digits, with spaces and any of . _ - + = @ , between"


def run_local(run: RunFile, *, output: Path, name: str = "", progress: Progress | None = None) -> Results:
    """Check ``run`` as ``kubealign check`` does, run it here and give its results.

    A run that failed or was stopped leaves its results, summary and whatever model it made as well. Run
    again under its name it goes on: finished rows and checkpoints are found, and what it left before is
    replaced when it has ended well.

    Args:
        run: pipeline, parameters and settings.
        output: folder of all runs that share their finished rows.
        name: of the run's folder, ``output/runs/<name>``, new or to go on with; empty: date and time.
        progress: shows what happens; silent by default.

    Raises:
        ConfigError: parameters or a folder that cannot be used; nothing has run then.
        RunFailed: a task failed or left an output out.
        RunStopped: SIGINT or SIGTERM came.
    """
    from kubealign.checking import require_runnable

    require_runnable(run, output)
    return run_checked(run, output=output, name=name, progress=progress)


def run_checked(run: RunFile, *, output: Path, name: str = "", progress: Progress | None = None) -> Results:
    """As :func:`run_local`, of a ``run`` that was checked before."""
    progress = progress or Progress.silent()
    with _claimed(output.resolve() / RUNS, name) as folder, scratch():
        results = _run(run.for_local_run(), folder, output.resolve() / WORK_FOLDER, progress)
    registry = run.compile.model_registry
    if registry.server and results.model is not None:
        progress.say(register_here(results, registry))
    return results


def _run(run: RunFile, folder: RunFolder, work: Path, progress: Progress) -> Results:
    with _discarded_on_error(folder):
        graph = compile_pipeline(run.pipeline, folder.pipeline, run.compile, run.parameters)
        own = {WORK: str(work)} if WORK in graph.parameters else {}
        parameters = {**own, **run.parameters}
        complete = check_parameters(graph, parameters)
        given = {name: complete[name] for name in graph.given(fold(graph, parameters).values)}
        if run.local.runner == "docker":  # a container sees the work prefix, but not the files of functions
            given = send_code(given)
        runner = _runner(run, complete, folder)
        whole = whole_parameters(graph, run.parameters, complete)
    write_whole(folder.parameters, yaml.safe_dump(whole, sort_keys=True, allow_unicode=True))
    folder.logs.mkdir(parents=True, exist_ok=True)
    watcher = Watcher(
        folder.logs, on_event=progress.event, on_line=progress.line, fail_fast=not run.local.retries
    )
    elsewhere = partial(signal_containers, folder.path) if run.local.runner == "docker" else None
    stopping = Stopping(watcher, progress.say, elsewhere)
    expected = forecast(graph, complete)
    for line in _header(folder, graph, complete, expected):
        progress.say(line)
    started = time.monotonic()
    failure: RunFailed | None = None
    with stopping.handled():
        try:
            with (
                progress.showing(graph, watcher, expected),
                state_written(folder.progress, graph, watcher, expected),
            ):
                _execute(folder, given, watcher, graph, runner)
        except RunFailed as error:
            failure = error
        seconds = time.monotonic() - started
        results = collect(graph, folder.path, folder.artifacts, watcher, whole, seconds, run.local.price)
        try:
            _leave(folder, results, failure)
        except OSError as error:  # what failed comes first; both may be for lack of room
            if failure is None:
                raise
            progress.say(f"What the run leaves is not whole: {error.filename}: {error.strerror}")
    if failure is None:
        folder.discard_earlier()
        return results
    if stopping.signal:
        raise RunStopped(stopping.signal, folder.path.name)
    raise failure


def _header(
    folder: RunFolder, graph: Graph, parameters: Mapping[str, object], expected: Forecast
) -> Iterator[str]:
    """What will run and for how long, what is already there, and where it goes."""
    titles = list(dict.fromkeys(task.title for task in graph.tasks.values()))
    yield f"Runs:  {graph.name}, {len(graph.tasks)} tasks: {', '.join(titles)}"
    yield f"Time:  about {duration(expected.total())} by the estimate, corrected as it goes"
    again = f", attempt {folder.attempt}" if folder.attempt > 1 else ""
    yield f"Into:  {folder.path}{again}"
    yield f"There: {_finished(str(parameters.get(WORK, '')))}"


def _finished(work: str) -> str:
    if not work:
        return "nothing that is kept between runs: the pipeline has no parameter work"
    if "://" in work:
        return f"rows and checkpoints that earlier runs left in {work} are taken"
    stages = {p.name for p in Path(work).glob("*") if p.is_dir() and p.name != FINISHED}
    stages |= {p.name for p in Path(work, FINISHED).glob("*")}
    names = ", ".join(sorted(stages))
    return f"outputs, rows or checkpoints of {names} in {work}" if stages else f"nothing yet in {work}"


@contextlib.contextmanager
def _claimed(runs: Path, name: str) -> Iterator[RunFolder]:
    """The folder of a run that nobody else has in this block: a new one, or the run ``name`` to go on with.

    Raises:
        ConfigError: it cannot be made, or another process runs in it.
    """
    run_name = name or datetime.now().strftime("%Y%m%d-%H%M%S")
    require(
        _NAME.fullmatch(run_name) is not None and len(run_name.encode()) <= MAX_NAME,
        "--name",
        run_name,
        _A_NAME,
    )
    with contextlib.ExitStack() as stack:
        try:
            path = _made(runs, run_name, new=not name)
            lock = stack.enter_context((path / LOCK).open("a", encoding="utf-8"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError("--name", run_name, "a run that is not under way in another process") from None
        except OSError as error:
            expected = f"a folder that can be written to ({error.strerror or error})"
            raise ConfigError("--output", str(runs.parent), expected) from error
        yield RunFolder.of_next_attempt(path)


def _made(runs: Path, name: str, *, new: bool) -> Path:
    """``runs/name``; a number is added where it has to be new and is not."""
    runs.mkdir(parents=True, exist_ok=True)
    for path in (runs / own for own in numbered(name)):
        try:
            path.mkdir(exist_ok=not new)
        except FileExistsError:
            if not new:  # a file of that name
                raise
        else:
            break
    return path


def _leave(folder: RunFolder, results: Results, failure: RunFailed | None) -> None:
    """Write what a reader looks for: numbers, one page, and the outputs under their usual names."""
    written = results.to_json() | ({"failed": str(failure)} if failure else {})
    write_whole(folder.results, json.dumps(written, indent=1, ensure_ascii=False) + "\n")
    write_summary(results, folder.summary, failure=str(failure) if failure else "")
    for link in folder.path.iterdir():
        if link.is_symlink():
            link.unlink()
    for name, target in results.by_usual_name().items():
        (folder.path / name).symlink_to(target.relative_to(folder.path))


def _runner(run: RunFile, parameters: JsonObject, folder: RunFolder) -> SubprocessRunner | DockerRunner:
    if run.local.runner == "process":
        return local.SubprocessRunner(use_venv=False)
    given = str(parameters.get(WORK) or "")
    work = [Path(given)] if given and "://" not in given else []
    return docker_runner(
        parameters,
        run=folder.path,
        artifacts=folder.artifacts,
        writable=work,
        settings=run.local.container,
    )


def _execute(
    folder: RunFolder, parameters: Mapping[str, object], watcher: Watcher, graph: Graph, runner: object
) -> None:
    pipeline = components.load_component_from_file(str(folder.pipeline))
    kept = exit_codes_kept() if isinstance(runner, local.DockerRunner) else contextlib.nullcontext()
    with watcher.following(), kept, loop_inputs_kept():
        local.init(runner=runner, pipeline_root=str(folder.artifacts), raise_on_error=True)
        try:
            pipeline(**parameters)
        except Exception as error:  # whatever stops KFP's runner is a failed run, told in our words
            raise _failure(watcher, graph, error) from error
    missing = missing_outputs(graph, folder.artifacts, watcher)
    if missing:
        raise RunFailed(missing[0].title, f"it left out its output {missing[0].output!r}")


def _failure(watcher: Watcher, graph: Graph, error: Exception) -> RunFailed:
    failed = watcher.failed
    if failed is None:
        return RunFailed(graph.name, str(error))
    reason = reason_of(failed) if failed.ok is False else str(error)
    return RunFailed(graph.tasks[failed.task].title, reason, failed.log)


@contextlib.contextmanager
def _discarded_on_error(folder: RunFolder) -> Iterator[None]:
    """No folder is left behind by a run that could not start."""
    try:
        yield
    except BaseException:
        if folder.attempt == 1:
            for file in (folder.pipeline, folder.path / LOCK):
                file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.path.rmdir()
        raise
