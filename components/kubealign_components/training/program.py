"""One training program for all training stages: from settings to a published model.

A stage settles what its run is, and calls :func:`train_model`. That runs the stage's :class:`Program` in this
process, in several, or wherever a launcher runs it; each process comes to :func:`run_program`, where the
program trains and the first process publishes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kubealign_components.config import from_mapping
from kubealign_components.data.fingerprint import Provenance
from kubealign_components.data.finished import output_request, record_finished, take_finished
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError
from kubealign_components.preemption import Stop, grace_seconds, preemptible
from kubealign_components.store import store_for
from kubealign_components.training.config import OptimiserConfig
from kubealign_components.training.launch import Launcher, Where, reported_to, run_somewhere
from kubealign_components.training.local_processes import STEP_SECONDS
from kubealign_components.training.publishing import finished_run, publish_model, published_run, run_folder

if TYPE_CHECKING:
    from kubealign_components.training.processes import Processes

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a training process needs to know, in plain JSON values."""

    stage: str
    """Name of the stage, and so of its program."""
    config: dict[str, Any]
    """Its settings."""
    inputs: dict[str, str]
    """URIs of its inputs by name; one that the run does without is left out."""
    output: str
    """URI of the model to make."""
    provenance: dict[str, object]
    """Of that model."""
    checkpoints: str = ""
    """URI of this run's checkpoints; empty for none."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the stage found out before, for its program."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run(Generic[C]):
    """What a program works with in one process."""

    job: Job
    config: C
    processes: Processes
    stop: Stop
    """Whether this process was told to stop."""

    @property
    def folder(self) -> Path:
        """Where the first process leaves the model's files."""
        return self.processes.folder / "model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What came of a training, on its first process; the model's files lie in :attr:`Run.folder`."""

    steps: list[tuple[int, dict[str, Any]]]
    """``(step, metrics)``."""
    stats: Stats
    extra: Mapping[str, Any]
    """What else to say of the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program(Generic[C]):
    """How a stage trains."""

    stage: str
    config: type[C]
    train: Callable[[Run[C]], Trained | None]
    """Called in every process of the run; gives something on the first one. It brings
    in what trains, which a process that only launches others, or finds the model made, does not load."""


def train_model(
    program: Program[C],
    config: OptimiserConfig,
    job: Job,
    provenance: Provenance,
    *,
    where: Where,
    launcher: Launcher | None,
) -> Stats:
    """Train, unless this very model stands at the job's output already or was finished elsewhere; the counts.

    Args:
        program: of the stage.
        config: its settings.
        job: what its processes need to know.
        provenance: of the model.
        where: how many processes there are.
        launcher: runs the processes; None for this machine.

    Raises:
        KubeAlignError: what the training processes raised.
        EngineError: they died without saying why.
        Preempted: they were told to stop.
    """
    request = output_request(config, provenance, job.output)
    stats = take_finished(request)
    if stats is not None:
        return stats
    stats = finished_run(job.output, provenance)
    if stats is None:
        run_somewhere(
            lambda: run_program(program, job),
            asdict(job),
            run_folder(config.work, program.stage, provenance),
            where=where,
            launcher=launcher,
        )
        stats = published_run(job.output, provenance)
    record_finished(request)
    return stats


def run_program(program: Program[C], job: Job) -> None:
    """What each process of a run does; the first one publishes the model.

    Raises:
        KubeAlignError: settings, data or a model that cannot be used, numbers that are none.
        Preempted: SIGTERM came; a checkpoint was published where the job has a place for it.
    """
    from kubealign_components.training.processes import joined

    config = from_mapping(program.config, job.config, program.stage)
    with ExitStack() as stack:
        stop = stack.enter_context(preemptible(program.stage, grace=grace_seconds(STEP_SECONDS)))
        processes = stack.enter_context(joined())
        run = Run(job=job, config=config, processes=processes, stop=stop)
        trained = program.train(run)
        if trained is not None:
            publish_model(run.folder, job.output, job.provenance, trained.steps, trained.stats, trained.extra)


def run_process(uri: str, programs: Mapping[str, Callable[[], Program[object]]]) -> int:
    """Run the job at ``uri`` in this process, one of its run; gives its exit code.

    Args:
        uri: of the job.
        programs: those there are, by name of their stage. A job can name no other code.
    """
    with reported_to(uri) as outcome:
        job = _read(uri)
        if job.stage not in programs:
            raise ConfigError("stage", job.stage, f"one of {', '.join(sorted(programs))}, in the job {uri}")
        run_program(programs[job.stage](), job)
    return outcome["code"]


def _read(uri: str) -> Job:
    try:
        return Job(**json.loads(store_for(uri).read(uri)))
    except (ValueError, TypeError) as error:
        raise ConfigError("job", uri, f"a training job as this release writes them ({error})") from error
