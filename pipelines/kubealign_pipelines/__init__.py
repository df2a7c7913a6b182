"""The pipelines by name. One is built by its module's function of the same name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from kubealign_components.config import require_choice
from kubealign_pipelines.resources import CompileSettings
from kubealign_pipelines.rules import Choice, Rules

__all__ = ["PIPELINES", "Choice", "CompileSettings", "Rules", "build", "rules"]

PIPELINES = ("offline_alignment", "salmon")


def build(
    name: str, settings: CompileSettings | None = None, parameters: Mapping[str, Any] | None = None
) -> Any:
    """The pipeline ``name`` as a KFP component, ready to compile.

    Args:
        name: one of :data:`PIPELINES`.
        settings: what is fixed at compile time.
        parameters: those of the run: some decide which stages the graph has.

    Raises:
        ConfigError: no pipeline of that name, or an unknown choice.
    """
    return getattr(_module(name), name)(settings or CompileSettings(), parameters or {})


def rules(name: str) -> Rules:
    """What no stage alone can check of the parameters of the pipeline ``name``.

    Raises:
        ConfigError: no pipeline of that name.
    """
    found: Rules = _module(name).RULES
    return found


def _module(name: str) -> ModuleType:
    require_choice("pipeline", name, PIPELINES)
    return importlib.import_module(f"kubealign_pipelines.{name}")
