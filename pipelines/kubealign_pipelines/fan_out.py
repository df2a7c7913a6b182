"""The one shape of parallel work: split, a worker pod a chunk, merge."""

from __future__ import annotations

from typing import Any

from kfp import dsl

from kubealign_components.merge.component import merge
from kubealign_components.split.component import split
from kubealign_pipelines.resources import Placement


def fan_out(
    place: Placement, worker: Any, dataset: Any, cut: dict[str, Any], about: str = "", **arguments: Any
) -> Any:
    """The dataset that ``worker`` makes of ``dataset``, chunk by chunk.

    Args:
        place: makes tasks.
        worker: component that takes a chunk and returns a part.
        dataset: the output that is cut.
        cut: arguments of ``split``: work, chunks, rows_per_chunk.
        about: tells two fan-outs of one stage apart.
        arguments: of the worker.
    """
    title = place.title(worker, about)
    plan = place(split, "for " + title, dataset=dataset, **cut)
    with dsl.ParallelFor(plan.output, parallelism=place.settings.parallelism, name=title) as chunk:
        part = place(worker, about, chunk=chunk, **arguments)
    merged = place(merge, title, parts=dsl.Collected(part.output), chunks=plan.output)
    return merged.outputs["dataset"]
