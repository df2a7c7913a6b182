"""Start training on this machine: in this process where one is enough, else under torchrun."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kubealign_components import errors
from kubealign_components.errors import ConfigError, EngineError, KubeAlignError

JOB_FILE = "job.json"
_ERROR_FILE = "error.json"


def processes_of(wanted: int) -> int:
    """Training processes: as many as ``wanted``; for 0 one a GPU, at least one.

    Raises:
        ConfigError: more processes than this machine has GPUs.
    """
    gpus = int(torch.cuda.device_count())
    if gpus and wanted > gpus:
        raise ConfigError("processes", wanted, f"at most {gpus}, the GPUs of this machine")
    return wanted or max(gpus, 1)


def launch(program: str, job: Mapping[str, Any], folder: Path, *, processes: int, sharded: bool) -> None:
    """Run ``program`` on ``job`` to its end.

    Sharding strategies need a process group and so torchrun, even for one process.

    Args:
        program: ``module:function``; the function takes the members of ``job`` by keyword.
        job: what every process needs to know, as plain JSON values.
        folder: local folder of the run, for passing files.
        processes: how many to start.
        sharded: whether the state is spread over them.

    Raises:
        KubeAlignError: what the training processes raised.
        EngineError: they died without saying why.
    """
    if processes == 1 and not sharded:
        _function(program)(**job)
        return
    (folder / JOB_FILE).write_text(json.dumps({"program": program, "job": dict(job), "folder": str(folder)}))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(processes)),
        *("-m", "kubealign_components.train", str(folder / JOB_FILE)),
    ]
    # A file in the current folder must not shadow a module.
    code = subprocess.run(command, check=False, env=os.environ | {"PYTHONSAFEPATH": "1"}).returncode
    if code:
        raise _child_error(folder, code)


def run_process(job_file: Path) -> int:
    """What a process under torchrun does; the exit code."""
    request = json.loads(job_file.read_text())
    with _reported_to(Path(request["folder"])) as outcome:
        _function(request["program"])(**request["job"])
    return outcome["code"]


def _function(program: str) -> Any:
    module, _, name = program.partition(":")
    return getattr(importlib.import_module(module), name)


@contextmanager
def _reported_to(folder: Path) -> Iterator[dict[str, int]]:
    """Leave an error that a user can act on where the launching process finds it."""
    outcome = {"code": 0}
    try:
        yield outcome
    except KubeAlignError as error:
        arguments: list[Any] = (
            [error.field, repr(error.value), error.expected]
            if isinstance(error, ConfigError)
            else [str(error)]
        )
        (folder / _ERROR_FILE).write_text(json.dumps({"kind": type(error).__name__, "arguments": arguments}))
        outcome["code"] = 1


def _child_error(folder: Path, code: int) -> KubeAlignError:
    path = folder / _ERROR_FILE
    if not path.exists():
        return EngineError(f"the training processes ended with exit code {code}; their log above says why")
    report = json.loads(path.read_text())
    kind: type[KubeAlignError] = getattr(errors, report["kind"])
    return kind(*report["arguments"])
