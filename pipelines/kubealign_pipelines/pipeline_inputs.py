"""The parameters of one pipeline as its tasks take them, and where these tasks go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kfp.dsl.pipeline_channel import PipelineChannel

from kubealign_pipelines.resources import Placement

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

Arguments = Mapping[str, PipelineChannel]
"""Of a component, by name."""


@dataclass(frozen=True, slots=True)
class PipelineInputs:
    """Parameters by name. Those of a stage begin with its name: ``train_beta`` is ``beta`` of ``train``."""

    placement: Placement
    """Makes tasks."""
    channels: Arguments

    @classmethod
    def of_function(cls, placement: Placement, values: Mapping[str, object]) -> PipelineInputs:
        """From what a pipeline's function has as ``locals()`` when it begins."""
        return cls(placement, {n: value for n, value in values.items() if isinstance(value, PipelineChannel)})

    def __getitem__(self, name: str) -> PipelineChannel:
        return self.channels[name]

    def of(self, stage: str) -> dict[str, PipelineChannel]:
        """The parameters of ``stage``, by the names that its component has for them."""
        start = f"{stage}_"
        return {n.removeprefix(start): one for n, one in self.channels.items() if n.startswith(start)}

    def cut(self, worker: BaseComponent) -> dict[str, PipelineChannel]:
        """Arguments of a stage after which ``worker`` takes chunks: how these are planned."""
        return self.placement.cut(worker, work=self["work"], rows_per_chunk=self["work_rows_per_chunk"])
