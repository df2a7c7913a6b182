"""The components of all stages, for pipelines of one's own: ``from kubealign.components import sample``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from kubealign_components.inputs import INPUTS

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

__all__ = sorted([*INPUTS, "merge", "split"])


def __getattr__(name: str) -> BaseComponent:
    """Import on first use: a component brings Kubeflow Pipelines along."""
    if name not in __all__:
        raise AttributeError(
            f"module 'kubealign.components' has no component {name!r}: it has {', '.join(__all__)}"
        )
    component: BaseComponent = getattr(
        importlib.import_module(f"kubealign_components.{name}.component"), name
    )
    return component
