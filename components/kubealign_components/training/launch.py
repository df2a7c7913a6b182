"""Run a training job to its end: in this process, in several here, or wherever a launcher runs it.

What the processes need to know is their *job*, a JSON object that lies in a store and names everything by
URI. Nothing else passes between the launching process and them: they publish what they make, and where one
fails it leaves its error beside the job.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from kubealign_components.boundary import named, reported
from kubealign_components.config import require
from kubealign_components.data.fingerprint import canonical_json, digest
from kubealign_components.engines.dtypes import device_count
from kubealign_components.error_reports import error_from, report_of
from kubealign_components.errors import (
    FINAL,
    ConfigError,
    EngineError,
    KubeAlignError,
    NotFound,
    StoreError,
    Unexpected,
)
from kubealign_components.store import join, put, store_for
from kubealign_components.training.local_processes import LocalProcesses

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")

JOB_FILE = "job.json"
ERROR_FILE = "error.json"

log = logging.getLogger(__name__)


class Launcher(Protocol):
    """Runs training processes somewhere, to their end."""

    def __call__(self, job: str) -> None:
        """Run ``kubealign_components.training`` on the job at the URI ``job`` in every process, to its end.

        Raises:
            EngineError: they did not all end well.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """How many processes a run has."""

    nodes: int
    processes: int
    """Of a node; 0 for one a GPU."""
    sharded: bool
    """Whether the state is spread over them. They need a process group then, even one by itself."""


def run_somewhere(
    here: Callable[[], None],
    job: Mapping[str, object],
    folder: str,
    *,
    where: Where,
    launcher: Launcher | None,
) -> None:
    """Run a job in as many processes as it asks for, on this machine unless a ``launcher`` is given.

    Args:
        here: runs it in this process, where one is enough.
        job: what every process needs to know, as plain JSON values.
        folder: URI of a folder for the job where a ``launcher`` is given. The job gets a folder of its own in
            it, by its content: who starts the same job again finds the same one.
        where: how many processes there are.
        launcher: runs the processes; None for this machine.

    Raises:
        KubeAlignError: what the training processes raised.
        EngineError: they died without saying why.
    """
    if launcher is not None:
        launch(job, join(folder, f"job-{digest(dict(job))[:16]}"), launcher)
        return
    require(where.nodes == 1, "nodes", where.nodes, "1 on this machine; several take a Kubernetes cluster")
    count = processes_of(where.processes)
    if count == 1 and not where.sharded:
        here()
        return
    with tempfile.TemporaryDirectory(prefix="kubealign-job-") as scratch:
        launch(job, scratch, LocalProcesses(count, scratch))


def launch(job: Mapping[str, object], folder: str, launcher: Launcher) -> None:
    """Run ``job`` in the processes that ``launcher`` runs.

    Args:
        job: what every process needs to know, as plain JSON values.
        folder: URI of this job's own folder.
        launcher: runs them.

    Raises:
        KubeAlignError: what the first process that failed raised.
        EngineError: they died without saying why.
    """
    uri, error = join(folder, JOB_FILE), join(folder, ERROR_FILE)
    request = canonical_json(dict(job)).encode()
    store_for(error).delete(error)  # of an attempt before this one
    put(uri, request)
    try:
        launcher(uri)
    except EngineError as failure:
        left = error_of(uri)
        if isinstance(left, Unexpected):  # how the processes ended may say more, such as that one was killed
            raise EngineError(f"{failure}: {left}") from None
        raise left or failure from None


def processes_of(asked: int) -> int:
    """Training processes of this machine: as many as ``asked``; for 0 one a GPU, at least one.

    Raises:
        ConfigError: more processes than this machine has GPUs.
    """
    gpus = device_count()
    if gpus and asked > gpus:
        raise ConfigError("processes", asked, f"at most {gpus}, the GPUs of this machine")
    return asked or max(gpus, 1)


def trained_on(launcher: Launcher | None) -> str:
    """The device of training processes: the pod that starts others has none; TrainJobs have GPUs."""
    return "auto" if launcher is None else "cuda"


def pinned(config: C, model: Path) -> C:
    """``config`` with the commit of the policy that was found at ``model``, so that all nodes get it."""
    return replace(config, revision=model.name) if model.parent.name == "snapshots" else config


@contextmanager
def reported_to(job: str) -> Iterator[dict[str, int]]:
    """The boundary of a training process: leave what ended it beside the job at the URI ``job``, where the
    launching process finds it; the exit code that says so goes to ``code`` of what is given."""
    folder = job.rsplit("/", 1)[0]
    outcome = {"code": 0}
    try:
        yield outcome
    except Exception as error:  # whoever raised it
        process = f"training process {os.environ.get('RANK', '0')}"
        outcome["code"] = reported(error, process)
        try:
            _leave(named(error, process), folder)
        except StoreError as unreachable:
            log.error("nor could that be written down: %s", unreachable)


def _leave(error: KubeAlignError, folder: str) -> None:
    """Write ``error`` down: the first one stays, unless it says less: another attempt would have mended that
    one alone, or nobody foresaw it, as what a process raises whose neighbour has gone."""
    uri = join(folder, ERROR_FILE)
    report = json.dumps(report_of(error)).encode()
    if store_for(uri).publish(uri, report):
        return
    first = error_of(uri)
    unforeseen = isinstance(first, Unexpected) and not isinstance(error, Unexpected)
    if unforeseen or (isinstance(error, FINAL) and not isinstance(first, FINAL)):
        store_for(uri).delete(uri)
        store_for(uri).publish(uri, report)


def error_of(job: str) -> KubeAlignError | None:
    """The error that a training process left of the job at the URI ``job``, if one did."""
    uri = join(job.rsplit("/", 1)[0], ERROR_FILE)
    try:
        return error_from(json.loads(store_for(uri).read(uri)))
    except NotFound:
        return None
    except StoreError as unreachable:
        log.warning("cannot read whether a process left an error: %s", unreachable)
        return None
    except (ValueError, TypeError, KeyError) as malformed:
        return EngineError(
            f"a training process failed, and what it wrote of that at {uri} cannot be read "
            f"({type(malformed).__name__}: {malformed}); its own log says why"
        )
