"""split: cut a dataset into chunks for a fan-out."""

from __future__ import annotations

from dataclasses import dataclass

from kubealign_components.config import execution, require
from kubealign_components.data.chunks import Chunk, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.limits import MAX_CHUNKS


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitConfig:
    """Settings of ``split``; none of them changes the rows."""

    work: str = execution("")
    """URI of the work prefix that runs share to reuse each other's rows; empty: beside the dataset."""
    chunks: int = execution(0)
    """Number of chunks; 0 to follow ``rows_per_chunk``."""
    rows_per_chunk: int = execution(4096)
    """Most rows in a chunk while no more than 100 chunks are needed; used when ``chunks`` is 0."""

    def __post_init__(self) -> None:
        require(
            0 <= self.chunks <= MAX_CHUNKS,
            "chunks",
            self.chunks,
            f"0 (follow rows_per_chunk) to {MAX_CHUNKS}",
        )
        require(self.rows_per_chunk > 0, "rows_per_chunk", self.rows_per_chunk, "a positive number of rows")


def run(config: SplitConfig, *, dataset: Dataset) -> list[Chunk]:
    """The chunks of ``dataset``, at least one."""
    work = config.work or f"{dataset.uri.rstrip('/')}.work"
    if config.chunks:
        return plan(dataset, work=work, chunks=config.chunks)
    return plan(dataset, work=work, rows_per_chunk=config.rows_per_chunk)
