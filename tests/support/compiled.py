"""Compiled pipelines, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kubealign_pipelines.compiler import compile_pipeline
from kubealign_pipelines.resources import CompileSettings

Ir = dict[str, Any]


def read_ir(path: Path) -> tuple[Ir, dict[str, Any]]:
    """The IR at ``path``, and the pod settings of its executors."""
    spec, *platforms = yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader)
    pods = platforms[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if platforms else {}
    return spec, pods


def compile_ir(
    folder: Path,
    pipeline: str,
    settings: CompileSettings | None = None,
    parameters: dict[str, Any] | None = None,
) -> tuple[Ir, dict[str, Any]]:
    """:func:`read_ir` of ``pipeline``, which is compiled to ``pipeline.yaml`` in ``folder``."""
    path = folder / "pipeline.yaml"
    compile_pipeline(pipeline, path, settings or CompileSettings(), parameters or {})
    return read_ir(path)
