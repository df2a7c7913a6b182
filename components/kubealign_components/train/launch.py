"""Start training on this machine: in this process where one is enough, else under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from kubealign_components import errors
from kubealign_components.errors import ConfigError, EngineError, KubeAlignError
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.worker import Job, work

JOB_FILE = "job.json"
_ERROR_FILE = "error.json"


def processes_of(config: TrainConfig) -> int:
    """Training processes: as many as set, else one a GPU, at least one.

    Raises:
        ConfigError: more processes than this machine has GPUs.
    """
    gpus = int(torch.cuda.device_count())
    if gpus and config.processes > gpus:
        raise ConfigError("processes", config.processes, f"at most {gpus}, the GPUs of this machine")
    return config.processes or max(gpus, 1)


def launch(job: Job, config: TrainConfig) -> None:
    """Run ``job`` to its end; its folder then holds the model and the log.

    Sharding strategies need a process group and so torchrun, even for one process.

    Raises:
        KubeAlignError: what the training processes raised.
        EngineError: they died without saying why.
    """
    if job.processes == 1 and config.strategy == "none":
        work(job)
        return
    folder = Path(job.folder)
    (folder / JOB_FILE).write_text(job.to_json())
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(job.processes)),
        *("-m", "kubealign_components.train", str(folder / JOB_FILE)),
    ]
    # A file in the current folder must not shadow a module.
    code = subprocess.run(command, check=False, env=os.environ | {"PYTHONSAFEPATH": "1"}).returncode
    if code:
        raise _child_error(folder, code)


def run_process(job_file: Path) -> int:
    """What a process under torchrun does; the exit code."""
    job = Job(**json.loads(job_file.read_text()))
    with _reported_to(Path(job.folder)) as outcome:
        work(job)
    return outcome["code"]


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
