"""A pipeline run whole on this machine: the compiled YAML, through KFP's own local runner.

A run has a folder of its own below the output folder; the work prefix, where finished rows are kept,
is shared by all runs into the same output folder.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from kfp import components, local

from kubealign.cli.console import Progress
from kubealign.errors import RunFailed
from kubealign.lineage import RESULTS
from kubealign.local.docker import docker_runner, exit_codes_kept
from kubealign.local.loops import loop_inputs_kept
from kubealign.local.results import Results, collect, missing_outputs
from kubealign.local.summary import write_summary
from kubealign.local.watcher import Watcher, reason_of
from kubealign.parameters import check_parameters
from kubealign.runfile import RunFile
from kubealign_components.errors import ConfigError
from kubealign_pipelines.compiler import compile_pipeline
from kubealign_pipelines.graph import Graph

WORK = "work"
"""Pipeline parameter for the work prefix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """Where things of one run lie."""

    path: Path

    @property
    def pipeline(self) -> Path:
        """The IR that ran."""
        return self.path / "pipeline.yaml"

    @property
    def parameters(self) -> Path:
        """The parameters, defaults included."""
        return self.path / "parameters.yaml"

    @property
    def artifacts(self) -> Path:
        """Outputs of the tasks."""
        return self.path / "artifacts"

    @property
    def logs(self) -> Path:
        """One file for each execution of a task."""
        return self.path / "logs"

    @property
    def results(self) -> Path:
        """Counts, numbers and places of the outputs."""
        return self.path / RESULTS

    @property
    def model(self) -> Path:
        """Link to the aligned model."""
        return self.path / "model"

    @property
    def summary(self) -> Path:
        """The run on one page."""
        return self.path / "summary.html"


def run_local(run: RunFile, *, output: Path, name: str = "", progress: Progress | None = None) -> Results:
    """Run ``run`` here and give its results.

    Args:
        run: pipeline, parameters and settings.
        output: folder of all runs that share their finished rows.
        name: of the run's folder, ``output/runs/<name>``; empty: date and time.
        progress: shows what happens; silent by default.

    Raises:
        ConfigError: parameters that cannot be used, or a name that is taken; nothing has run then.
        RunFailed: a task failed or left an output out.
    """
    output = output.resolve()
    folder = RunFolder(path=output / "runs" / (name or datetime.now().strftime("%Y%m%d-%H%M%S")))
    if folder.path.exists():
        raise ConfigError("--name", folder.path.name, f"a new name: {folder.path} exists")
    run = run.for_local_run()
    parameters = {WORK: str(output / "work"), **run.parameters}
    with _discarded_on_error(folder):
        graph = compile_pipeline(run.pipeline, folder.pipeline, run.compile, parameters)
        complete = check_parameters(graph, parameters)
        runner = _runner(run, complete, folder)
    folder.parameters.write_text(yaml.safe_dump(complete, sort_keys=True, allow_unicode=True))
    folder.logs.mkdir()
    progress = progress or Progress.silent()
    started = time.monotonic()
    watcher = Watcher(folder.logs, on_event=progress.event, on_line=progress.line)
    with progress.showing(graph, watcher):
        given = {name: complete[name] for name in graph.given(parameters)}
        _execute(folder, given, watcher, graph, runner)
    seconds = time.monotonic() - started
    results = collect(graph, folder.path, folder.artifacts, watcher, complete, seconds)
    folder.results.write_text(json.dumps(results.to_json(), indent=1, ensure_ascii=False) + "\n")
    write_summary(results, folder.summary)
    if results.model:
        folder.model.symlink_to(results.model.relative_to(folder.path))
    return results


def _runner(run: RunFile, parameters: Mapping[str, Any], folder: RunFolder) -> Any:
    if run.local.runner == "process":
        return local.SubprocessRunner(use_venv=False)
    work = [] if "://" in parameters[WORK] else [Path(parameters[WORK])]
    return docker_runner(parameters, artifacts=folder.artifacts, writable=work, settings=run.local.container)


def _execute(
    folder: RunFolder, parameters: Mapping[str, Any], watcher: Watcher, graph: Graph, runner: Any
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
        folder.pipeline.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.path.rmdir()
        raise
