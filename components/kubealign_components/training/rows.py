"""Rows in Arrow files that the processes of a node map: one copy in memory, however many they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa

R = TypeVar("R")


class Rows(Generic[R]):
    """Rows by number, in the batches that they came in: nothing is copied to make one table of them; each
    is of the TypedDict ``R``."""

    def __init__(self, table: pa.Table) -> None:
        self.batches: list[pa.RecordBatch] = [batch for batch in table.to_batches() if batch.num_rows]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self.batches)])

    @classmethod
    def mapped(cls, file: Path) -> Rows[R]:
        """The rows of an Arrow file, which are read when they are used."""
        with pa.memory_map(str(file)) as source:
            return cls(pa.ipc.open_file(source).read_all())

    def __len__(self) -> int:
        return int(self._starts[-1])

    def take(self, numbers: Sequence[int]) -> list[R]:
        """The rows with these numbers, in their order."""
        indices = np.searchsorted(self._starts, numbers, side="right") - 1
        return [
            self.batches[index].slice(number - int(self._starts[index]), 1).to_pylist()[0]
            for index, number in zip(indices.tolist(), numbers)
        ]
