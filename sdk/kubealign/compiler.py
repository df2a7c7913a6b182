"""From a run file to the IR that Kubeflow Pipelines runs, on a cluster and here alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from kubealign.graph import Graph
from kubealign_components.config import require
from kubealign_pipelines import build
from kubealign_pipelines.resources import CompileSettings


def compile_pipeline(
    name: str,
    path: Path,
    settings: CompileSettings | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Graph:
    """Write the IR of the pipeline ``name`` to ``path`` and read it back as a graph.

    Args:
        name: one of :data:`kubealign_pipelines.PIPELINES`.
        path: a ``.yaml`` file; folders before it are made.
        settings: what is fixed at compile time.
        parameters: values that become the parameters' defaults.

    Raises:
        ConfigError: no such pipeline, or no YAML file name.
    """
    require(path.suffix in (".yaml", ".yml"), "--output", str(path), "a file name that ends in .yaml")
    pipeline = build(name, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(path), pipeline_parameters=dict(parameters or {}) or None)
    return read_graph(path)


def read_graph(path: Path) -> Graph:
    """The graph of the compiled pipeline at ``path``; a second YAML document holds only pod settings."""
    with path.open("rb") as file:
        return Graph(next(yaml.load_all(file, Loader=yaml.CSafeLoader)))
