"""The one shape of parallel work: split, a worker pod a chunk, merge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kfp import dsl

from kubealign_components.merge.component import merge
from kubealign_components.split.component import split
from kubealign_pipelines.resources import Placement


def fan_out(
    place: Placement,
    stage: str,
    worker: Callable[..., Any],
    dataset: Any,
    cut: dict[str, Any],
    **arguments: Any,
) -> Any:
    """The dataset that ``worker`` makes of ``dataset``, chunk by chunk.

    Args:
        place: applies resources.
        stage: name of the worker's stage, which is also the loop's.
        worker: component that takes a chunk and returns a part.
        dataset: the output that is cut.
        cut: arguments of ``split``: work, chunks, rows_per_chunk.
        arguments: of the worker.
    """
    plan = place(split(dataset=dataset, **cut), "split", f"split for {stage}")
    with dsl.ParallelFor(plan.output, parallelism=place.settings.parallelism, name=stage) as chunk:
        part = place(worker(chunk=chunk, **arguments), stage)
    merged = place(merge(parts=dsl.Collected(part.output), chunks=plan.output), "merge", f"merge {stage}")
    return merged.outputs["dataset"]
