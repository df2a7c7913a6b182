"""A chunked stage to break, and a process that runs one chunk of it and breaks where it is told to.

python chunk_worker.py chunk.json SLICE_ROWS LOG WRITE MOMENT SECONDS SALT
python chunk_worker.py merge parts.json OUTPUT WRITE MOMENT
python chunk_worker.py soak chunks.json NUMBER SEED
python chunk_worker.py share chunk.json LOGS PROCESSES SECONDS
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from kubealign_components.data.chunks import Chunk, Part, merge, open_chunk
from kubealign_components.data.engine_processes import engines
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import COMPLETIONS, PROMPTS
from kubealign_components.data.stats import Stats
from kubealign_components.data.worker import Missing, run_chunk
from kubealign_components.errors import DataError, EngineError, StoreError
from kubealign_components.store import faulty, register

Row = dict[str, Any]


class Upper:
    """Writes the prompt id in upper case as metadata; stops after some rows if told to.

    With a salt its results are its own, as those of an engine that samples.
    """

    result_schema = pa.schema([("text", pa.string())])
    unread: ClassVar[Sequence[str]] = ()

    def __init__(
        self, fail_after: int | None = None, log: Path | None = None, seconds: float = 0, salt: str = ""
    ) -> None:
        self.computed: list[str] = []
        self.fail_after, self.log, self.seconds, self.salt = fail_after, log, seconds, salt

    def keys(self, row: Row) -> list[str]:
        return [str(row["prompt_id"])]

    def compute(self, slices: Iterator[list[Missing]]) -> Iterator[tuple[Missing, list[Row]]]:
        for missing in slices:
            rows = [one.row for one in missing]
            if self.fail_after is not None and len(self.computed) >= self.fail_after:
                raise RuntimeError("killed")
            names = [row["prompt_id"] for row in rows]
            self.computed += names
            if self.log:
                with self.log.open("a") as file:
                    file.write("".join(f"{name}\n" for name in names))
            time.sleep(self.seconds)
            for one in missing:
                yield one, [{"text": one.row["prompt_id"].upper() + self.salt}]

    def apply(self, row: Row, results: Sequence[Row]) -> Row:
        return row | {"metadata": results[0]["text"]}

    def summarise(self, rows: Sequence[dict[str, Any]], stats: Stats) -> None:
        stats.counts["seen"] += len(rows)

    def counted_columns(self, _: Stats) -> Sequence[str]:
        return ("prompt_id",)


def run(chunk: Chunk, stage: Upper, slice_rows: int = 2) -> Part:
    """The part of ``chunk``."""
    dataset = open_chunk(chunk, PROMPTS)
    provenance = derive("upper", 1, {}, inputs={"prompts": dataset})
    return run_chunk(chunk, dataset, stage, schema=COMPLETIONS, provenance=provenance, slice_rows=slice_rows)


@dataclass(frozen=True, kw_only=True)
class SharedConfig:
    """Of :func:`run_shared`."""

    log: str
    """Folder for the ids of computed rows, in a file for each process."""
    processes: int
    seconds: float = 0.0
    """Of each slice."""
    fails: str = ""
    """The id of a row at which something goes wrong, and what, after a colon."""


class Failing(Upper):
    """Goes wrong at one row."""

    def __init__(self, config: SharedConfig) -> None:
        super().__init__(log=Path(config.log) / str(os.getpid()), seconds=config.seconds)
        self._fails = config.fails.split(":") if config.fails else ["", ""]

    def compute(self, slices: Iterator[list[Missing]]) -> Iterator[tuple[Missing, list[Row]]]:
        for missing in slices:
            if self._fails[0] in [one.row["prompt_id"] for one in missing]:
                if self._fails[1] == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise {"data": DataError, "engine": EngineError}[self._fails[1]]("the row is at fault")
            yield from super().compute(iter([missing]))


def run_shared(config: SharedConfig, *, chunk: Chunk) -> Part:
    """The part of ``chunk``, worked on by several processes."""
    dataset = open_chunk(chunk, PROMPTS)
    return run_chunk(
        chunk,
        dataset,
        Failing(config),
        schema=COMPLETIONS,
        provenance=derive("upper", 1, {}, inputs={"prompts": dataset}),
        slice_rows=2,
        engines=engines(run_shared, config, chunk, processes=config.processes),
    )


def share(place: str, log: str, processes: str, seconds: str) -> None:
    """Run one chunk in several processes."""
    # By its name, and not as a function of __main__: that is what the processes look for.
    from support import chunk_worker

    config = chunk_worker.SharedConfig(log=log, processes=int(processes), seconds=float(seconds))
    print(
        chunk_worker.run_shared(config, chunk=Chunk.from_json(json.loads(Path(place).read_text()))).to_json()
    )


def main(place: str, slice_rows: str, log: str, write: str, moment: str, seconds: str, salt: str) -> None:
    store = faulty.FaultyStore({int(write): moment}, faulty.kill)
    register(faulty.SCHEME, lambda: store)
    stage = Upper(log=Path(log), seconds=float(seconds), salt=salt)
    print(run(Chunk.from_json(json.loads(Path(place).read_text())), stage, int(slice_rows)).to_json())


def join(place: str, output: str, write: str, moment: str) -> None:
    """Merge parts, and die on the way."""
    store = faulty.FaultyStore({int(write): moment}, faulty.kill)
    register(faulty.SCHEME, lambda: store)
    planned = json.loads(Path(place).read_text())
    parts = [Part.from_json(text) for text in planned["parts"]]
    merge(parts, [Chunk.from_json(value) for value in planned["chunks"]], output)


def soak(places: str, number: str, seed: str) -> None:
    """Run every chunk, from another one on in each worker, while about one write in 7 fails."""
    draw = random.Random(seed)
    faults = {n: draw.choice(faulty.MOMENTS) for n in range(20_000) if draw.random() < 1 / 7}
    store = faulty.FaultyStore(
        faults, lambda uri: (faulty.kill if draw.random() < 1 / 8 else faulty.refuse)(uri)
    )
    register(faulty.SCHEME, lambda: store)
    chunks = [Chunk.from_json(value) for value in json.loads(Path(places).read_text())]
    start = len(chunks) * int(number) // 3
    for chunk in chunks[start:] + chunks[:start]:
        while True:
            try:
                run(chunk, Upper())
                break
            except StoreError:
                print("refused", flush=True)


if __name__ == "__main__":
    MODES = {"soak": soak, "merge": join, "share": share}
    mode = MODES.get(sys.argv[1])
    mode(*sys.argv[2:]) if mode else main(*sys.argv[1:])
