"""KubeAlign from Python: compile a pipeline, run it or one stage on this machine, read what it made.

from pathlib import Path
from kubealign import load_run, load_run_file, run_local, stage

results = run_local(load_run_file(Path("run.yaml")), output=Path("runs"))
print(results.model, results.evaluation)
print(load_run("runs").datasets["select"].to_pandas())
print(stage("import_prompts", sources="prompts.jsonl"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubealign.errors import RunFailed
    from kubealign.lineage import lineage_json, open_output
    from kubealign.local.results import Results, load_run
    from kubealign.local.runner import run_local
    from kubealign.runfile import LocalSettings, RunFile, load_run_file
    from kubealign.single_stage import stage
    from kubealign_components.data.dataset import Dataset
    from kubealign_pipelines.compiler import compile_pipeline
    from kubealign_pipelines.fan_out import fan_out
    from kubealign_pipelines.own_stages import own_stage
    from kubealign_pipelines.resources import CompileSettings, Placement
    from kubealign_pipelines.stage_resources import StageResources

_HOME = {
    "CompileSettings": "kubealign_pipelines.resources",
    "Dataset": "kubealign_components.data.dataset",
    "LocalSettings": "kubealign.runfile",
    "Placement": "kubealign_pipelines.resources",
    "Results": "kubealign.local.results",
    "RunFailed": "kubealign.errors",
    "RunFile": "kubealign.runfile",
    "StageResources": "kubealign_pipelines.stage_resources",
    "compile_pipeline": "kubealign_pipelines.compiler",
    "fan_out": "kubealign_pipelines.fan_out",
    "lineage_json": "kubealign.lineage",
    "load_run": "kubealign.local.results",
    "load_run_file": "kubealign.runfile",
    "open_output": "kubealign.lineage",
    "own_stage": "kubealign_pipelines.own_stages",
    "run_local": "kubealign.local.runner",
    "stage": "kubealign.single_stage",
}
__all__ = [
    "CompileSettings",
    "Dataset",
    "LocalSettings",
    "Placement",
    "Results",
    "RunFailed",
    "RunFile",
    "StageResources",
    "compile_pipeline",
    "fan_out",
    "lineage_json",
    "load_run",
    "load_run_file",
    "open_output",
    "own_stage",
    "run_local",
    "stage",
]


def __getattr__(name: str) -> object:
    """Import on first use: the command line shows its help without loading Kubeflow Pipelines."""
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module 'kubealign' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
