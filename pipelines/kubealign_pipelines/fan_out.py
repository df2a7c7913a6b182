"""The one shape of parallel work: the stage before plans the chunks, a worker pod takes each, merge joins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kfp import dsl

from kubealign_components.merge.component import merge
from kubealign_pipelines.resources import Placement

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent
    from kfp.dsl.pipeline_channel import PipelineChannel

CHUNKS = "Output"
"""KFP's name of what a component returns: a stage that is asked to plans the chunks of what it made."""


def fan_out(
    placement: Placement,
    worker: BaseComponent,
    made: dsl.PipelineTask,
    *,
    about: str = "",
    cut: Mapping[str, PipelineChannel] | None = None,
    model: PipelineChannel | None = None,
    **arguments: PipelineChannel,
) -> dsl.PipelineTask:
    """The task that joins what ``worker`` makes of the dataset of ``made``, chunk by chunk.

    Args:
        placement: makes tasks.
        worker: component that takes a chunk and returns a part.
        made: task whose dataset is worked on, and which has planned its chunks.
        about: tells two fan-outs of one stage apart.
        cut: how the chunks of the fan-out that follows are planned, if one does.
        model: manifest of a model of this run that the workers read by URI.
        arguments: of the worker.
    """
    title = placement.title(worker, about)
    chunks = made.outputs[CHUNKS]
    with dsl.ParallelFor(chunks, parallelism=placement.at_once(worker), name=title) as chunk:
        part = placement(worker, about, chunk=chunk, **arguments)
    return placement(
        merge,
        title,
        source=made.outputs["dataset"],
        parts=dsl.Collected(part.output),
        chunks=chunks,
        **({} if model is None else {"model": model}),
        **(cut or {}),
    )
