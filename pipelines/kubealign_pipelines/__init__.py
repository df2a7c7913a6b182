"""The pipelines by name. One is built by its module's function of the same name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from kubealign_components.config import require_choice
from kubealign_pipelines.late_client import import_kfp
from kubealign_pipelines.own_pipelines import build_own, is_own, own_rules
from kubealign_pipelines.rules import Choice, Rules

if TYPE_CHECKING:
    from kfp.dsl.graph_component import GraphComponent

    from kubealign_pipelines.resources import CompileSettings

__all__ = ["PIPELINES", "Choice", "CompileSettings", "Rules", "build", "rules"]

PIPELINES = ("offline_alignment", "salmon")
import_kfp()


def build(
    name: str, settings: CompileSettings | None = None, parameters: Mapping[str, object] | None = None
) -> GraphComponent:
    """The pipeline ``name`` as a KFP component, ready to compile.

    Args:
        name: one of :data:`PIPELINES`, or the file of one's own.
        settings: what is fixed at compile time.
        parameters: those of the run: some decide which stages the graph has.

    Raises:
        ConfigError: no pipeline of that name, an unknown choice, or a file that makes none.
    """
    from kubealign_pipelines.resources import CompileSettings

    if is_own(name):
        return build_own(name, settings or CompileSettings())
    return getattr(_module(name), name)(settings or CompileSettings(), parameters or {})


def rules(name: str) -> Rules:
    """What no stage alone can check of the parameters of the pipeline ``name``.

    Raises:
        ConfigError: no pipeline of that name.
    """
    if is_own(name):
        return own_rules(name)
    rules_of_pipeline: Rules = _module(name).RULES
    return rules_of_pipeline


def _module(name: str) -> ModuleType:
    require_choice("pipeline", name, PIPELINES)
    return importlib.import_module(f"kubealign_pipelines.{name}")


def __getattr__(name: str) -> GraphComponent:
    """Import on first use: the names of the pipelines are known without Kubeflow Pipelines."""
    if name != "CompileSettings":
        raise AttributeError(f"module 'kubealign_pipelines' has no attribute {name!r}")
    return importlib.import_module("kubealign_pipelines.resources").CompileSettings
