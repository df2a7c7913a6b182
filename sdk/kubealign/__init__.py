"""KubeAlign from Python: compile a pipeline, run it on this machine, read what it made.

from pathlib import Path
from kubealign import load_run_file, run_local

results = run_local(load_run_file(Path("run.yaml")), output=Path("runs"))
print(results.model, results.evaluation)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubealign.errors import RunFailed
    from kubealign.lineage import lineage_json, open_output
    from kubealign.local.results import Results
    from kubealign.local.runner import run_local
    from kubealign.runfile import LocalSettings, RunFile, load_run_file
    from kubealign_pipelines.compiler import compile_pipeline
    from kubealign_pipelines.resources import CompileSettings
    from kubealign_pipelines.stage_resources import StageResources

_HOME = {
    "CompileSettings": "kubealign_pipelines.resources",
    "LocalSettings": "kubealign.runfile",
    "Results": "kubealign.local.results",
    "RunFailed": "kubealign.errors",
    "RunFile": "kubealign.runfile",
    "StageResources": "kubealign_pipelines.stage_resources",
    "compile_pipeline": "kubealign_pipelines.compiler",
    "lineage_json": "kubealign.lineage",
    "load_run_file": "kubealign.runfile",
    "open_output": "kubealign.lineage",
    "run_local": "kubealign.local.runner",
}
__all__ = [
    "CompileSettings",
    "LocalSettings",
    "Results",
    "RunFailed",
    "RunFile",
    "StageResources",
    "compile_pipeline",
    "lineage_json",
    "load_run_file",
    "open_output",
    "run_local",
]


def __getattr__(name: str) -> object:
    """Import on first use: the command line shows its help without loading Kubeflow Pipelines."""
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'kubealign' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
