"""Starting the process that runs lm-eval, and waiting for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from kubealign_components.benchmark.records import JOB, REPORT, HarnessJob
from kubealign_components.child_processes import OWN_END, end_text, ends, kill
from kubealign_components.error_reports import error_from
from kubealign_components.errors import EngineError
from kubealign_components.memory import MemoryWatch
from kubealign_components.preemption import Preempted, Stop
from kubealign_components.whole_file import write_whole

_WHAT = "the process that runs lm-eval"


def run_harness(job: HarnessJob, folder: Path, stop: Stop) -> dict[str, Any]:
    """Do ``job`` in a process of its own; what it reports.

    Args:
        job: what it is to do.
        folder: for its files, the same of all jobs of a benchmark.
        stop: whether this one was told to stop: it is told, too.

    Raises:
        KubeAlignError: what it raised.
        EngineError: it died.
        Preempted: it was told to stop, and has.
    """
    memory = MemoryWatch()
    report = folder / REPORT
    report.unlink(missing_ok=True)
    write_whole(folder / JOB, json.dumps(job))
    command = [sys.executable, "-m", f"{__package__}.harness", str(folder), str(os.getpid())]
    # A file in the current folder, which data_files are looked up from, must not shadow a module.
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(command, cwd=job["task_folder"] or folder, env=environment)
    try:
        [code] = ends([process], stop, commit=OWN_END)
    finally:
        kill([process])
    if stop.requested:
        raise Preempted
    left: dict[str, Any] = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    if "error" in left:
        raise error_from(left["error"])
    if code or not left:
        raise EngineError(end_text(_WHAT, code, memory))
    return left
