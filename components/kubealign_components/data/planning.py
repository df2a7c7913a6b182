"""Cutting a dataset into chunks is the last thing that the stage before a fan-out does."""

from __future__ import annotations

from dataclasses import dataclass

from kubealign_components.config import execution, require
from kubealign_components.data.chunks import plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.limits import MAX_CHUNKS
from kubealign_components.json_types import JsonObject
from kubealign_components.store import beside


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanConfig:
    """How a dataset is cut; none of it changes the rows."""

    work: str = execution("")
    """URI of the work prefix that runs share to reuse each other's rows; empty: beside the dataset."""
    rows_per_chunk: int = execution(0)
    """Most rows of an engine while no more than ``max_chunks`` are needed; 0 where no fan-out follows."""
    engines: int = execution(1)
    """Engines of a pod of the fan-out: a chunk has up to ``rows_per_chunk`` rows for each."""
    max_chunks: int = execution(MAX_CHUNKS)
    """Most chunks: what the object of a run has room for."""

    def __post_init__(self) -> None:
        require(self.rows_per_chunk >= 0, "rows_per_chunk", self.rows_per_chunk, "0 or more rows")
        require(self.engines >= 1, "engines", self.engines, "1 or more")
        most = f"1 to {MAX_CHUNKS} chunks"
        require(1 <= self.max_chunks <= MAX_CHUNKS, "max_chunks", self.max_chunks, most)


def planned(config: PlanConfig, dataset: Dataset) -> list[JsonObject]:
    """Descriptors of the chunks of ``dataset`` as plain JSON; none where no fan-out follows.

    Raises:
        ChunkError: there are no rows.
        CorruptDataset: a prompt id stands twice.
    """
    if not config.rows_per_chunk:
        return []
    work = config.work or beside(dataset.uri, "work")
    rows = config.rows_per_chunk * config.engines
    chunks = plan(dataset, work=work, rows_per_chunk=rows, most=config.max_chunks)
    return [chunk.to_json() for chunk in chunks]
