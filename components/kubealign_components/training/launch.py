"""Run a training program to its end: in this process, under torchrun here, or wherever a starter runs it.

What the processes need to know is their *job*, a JSON object that lies in a store and names everything by
URI. Nothing else passes between the launching process and them: they publish what they make, and where one
fails it leaves its error beside the job.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from kubealign_components import errors
from kubealign_components.config import require
from kubealign_components.data.fingerprint import canonical_json, digest
from kubealign_components.errors import ConfigError, EngineError, KubeAlignError, NotFound, StoreError
from kubealign_components.store import join, store_for

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")

JOB_FILE = "job.json"
ERROR_FILE = "error.json"

log = logging.getLogger(__name__)


class Starter(Protocol):
    """Runs training processes somewhere."""

    def __call__(self, job: str) -> None:
        """Run ``kubealign_components.training`` on the job at the URI ``job`` in every process, to its end.

        Raises:
            EngineError: they did not all end well.
        """
        ...


def run_program(
    program: str,
    job: Mapping[str, Any],
    place: str,
    *,
    nodes: int,
    processes: int,
    sharded: bool,
    start: Starter | None,
) -> None:
    """Run ``program`` on ``job``, here unless ``start`` is given.

    Args:
        program: ``module:function``; the function takes the members of ``job`` by keyword.
        job: what every process needs to know, as plain JSON values.
        place: URI of a folder for the job where ``start`` is given. The job gets a folder of its own in it,
            by its content: who starts the same job again finds the same one.
        nodes: that the settings ask for.
        processes: of a node; 0 for one a GPU.
        sharded: whether the state is spread over the processes. They need a process group then, and so
            torchrun, even one by itself.
        start: runs the processes; None for this machine.

    Raises:
        KubeAlignError: what the training processes raised.
        EngineError: they died without saying why.
    """
    if start is not None:
        launch(program, job, join(place, f"job-{digest([program, dict(job)])[:16]}"), start)
        return
    require(nodes == 1, "nodes", nodes, "1 on this machine; several take a Kubernetes cluster")
    count = processes_of(processes)
    if count == 1 and not sharded:
        _function(program)(**job)
        return
    with tempfile.TemporaryDirectory(prefix="kubealign-job-") as folder:
        launch(program, job, folder, torchrun(count, folder))


def launch(program: str, job: Mapping[str, Any], folder: str, start: Starter) -> None:
    """Run ``program`` on ``job`` in the processes that ``start`` starts.

    Args:
        program: ``module:function``; the function takes the members of ``job`` by keyword.
        job: what every process needs to know, as plain JSON values.
        folder: URI of this job's own folder.
        start: runs them.

    Raises:
        KubeAlignError: what the first process that failed raised.
        EngineError: they died without saying why.
    """
    store = store_for(folder)
    uri, error = join(folder, JOB_FILE), join(folder, ERROR_FILE)
    request = canonical_json({"program": program, "job": dict(job)}).encode()
    store.delete(error)  # of an attempt before this one
    if not store.publish(uri, request) and store.read(uri) != request:
        store.delete(uri)
        store.publish(uri, request)
    try:
        start(uri)
    except EngineError as failure:
        raise _left_error(error) or failure from None


def torchrun(processes: int, scratch: str) -> Starter:
    """Starts ``processes`` processes on this machine, whose temporary files go to the folder ``scratch``:
    those that are killed leave theirs."""

    def start(job: str) -> None:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes)),
            *("-m", "kubealign_components.training", job),
        ]
        # A file in the current folder must not shadow a module.
        environment = os.environ | {"PYTHONSAFEPATH": "1", "TMPDIR": scratch}
        code = subprocess.run(command, check=False, env=environment).returncode
        if code:
            raise EngineError(f"the training processes ended with exit code {code}; their log above says why")

    return start


def processes_of(wanted: int) -> int:
    """Training processes of this machine: as many as ``wanted``; for 0 one a GPU, at least one.

    Raises:
        ConfigError: more processes than this machine has GPUs.
    """
    gpus = int(torch.cuda.device_count())
    if gpus and wanted > gpus:
        raise ConfigError("processes", wanted, f"at most {gpus}, the GPUs of this machine")
    return wanted or max(gpus, 1)


def pinned(config: C, model: Path) -> C:
    """``config`` with the commit of the policy that was found at ``model``, so that all nodes get it."""
    return replace(config, revision=model.name) if model.parent.name == "snapshots" else config


def run_process(job: str) -> int:
    """What each of the processes does with the job at the URI ``job``; gives its exit code."""
    folder = job.rsplit("/", 1)[0]
    request = json.loads(store_for(job).read(job))
    with _reported_to(folder) as outcome:
        _function(request["program"])(**request["job"])
    return outcome["code"]


def _function(program: str) -> Any:
    module, _, name = program.partition(":")
    return getattr(importlib.import_module(module), name)


@contextmanager
def _reported_to(folder: str) -> Iterator[dict[str, int]]:
    """Leave the first error that a user can act on where the launching process finds it."""
    outcome = {"code": 0}
    try:
        yield outcome
    except KubeAlignError as error:
        log.error("process %s: %s: %s", os.environ.get("RANK", "0"), type(error).__name__, error)
        report = {"kind": type(error).__name__, "arguments": _arguments(error)}
        outcome["code"] = 1
        try:
            store_for(folder).publish(join(folder, ERROR_FILE), json.dumps(report).encode())
        except StoreError as unreachable:
            log.error("nor could that be written down: %s", unreachable)


def _arguments(error: KubeAlignError) -> list[Any]:
    """What makes ``error`` anew, as JSON values."""
    if not isinstance(error, ConfigError):
        return [str(error)]
    value = error.value
    plain = value is None or isinstance(value, str | int | float)
    return [error.field, value if plain else repr(value), error.expected]


def _left_error(uri: str) -> KubeAlignError | None:
    """The error that a training process left at ``uri``, if one did."""
    try:
        report = json.loads(store_for(uri).read(uri))
    except NotFound:
        return None
    except StoreError as unreachable:
        log.warning("cannot read whether a process left an error: %s", unreachable)
        return None
    kind: type[KubeAlignError] = getattr(errors, report["kind"])
    return kind(*report["arguments"])
