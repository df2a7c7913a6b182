"""held_out: the same prompts as a plain loop finds, and no other ones read as objects."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from kubealign_components.data.arrow_take import keep
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import REWARDED, TokenizedRow, new_completion
from kubealign_components.data.seeds import is_held_out, unit_interval
from kubealign_components.data.stats import Stats
from kubealign_components.evaluate import held_out
from kubealign_components.evaluate.held_out import held_out_rows
from support.tiny import prompt_row

ROWS, N, TOKENS = 1500, 2, 20


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Prompts with sampled completions, as ``rewards`` leaves them, in several shards."""
    completions = [
        new_completion(
            completion_id=f"{i:032x}",
            reference=True,
            model="m",
            messages="[]",
            token_ids=[i + 10 * t for t in range(TOKENS)],
            num_tokens=TOKENS,
            finish_reason="stop",
        )
        for i in range(N)
    ]
    uri = str(tmp_path_factory.mktemp("held-out") / "prompts")
    with DatasetWriter(uri, REWARDED, derive("test", 1, {})) as writer:
        for start in range(0, ROWS, ROWS // 3):
            numbers = range(start, start + ROWS // 3)
            writer.write_rows([prompt_row(f"question {i}?") | {"completions": completions} for i in numbers])
            writer.close_shard()
        return writer.commit(Stats(rows_in=ROWS, rows_out=ROWS))


def by_loop(dataset: Dataset, fraction: float, seed: int, most: int) -> list[TokenizedRow]:
    rows = [
        row for row in dataset.iter_rows(of=TokenizedRow) if is_held_out(row["prompt_id"], fraction, seed)
    ]
    return sorted(rows, key=lambda r: (unit_interval(seed, "validation", r["prompt_id"]), r["prompt_id"]))[
        :most
    ]


@pytest.mark.parametrize(("fraction", "most"), [(0.05, 40), (0.05, 10_000), (0.5, 7)])
def test_rows_are_those_of_a_plain_loop(prompts: Dataset, fraction: float, most: int) -> None:
    stats = Stats(rows_in=ROWS)
    found = held_out_rows(prompts, fraction=fraction, seed=3, most=most, stats=stats)
    assert found == by_loop(prompts, fraction, 3, most)
    assert stats.dropped.total() == ROWS - len(found)


def test_rows_that_are_not_compared_do_not_become_objects(
    prompts: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []

    def counted(batch: pa.RecordBatch, chosen: Any) -> pa.RecordBatch:
        rows = keep(batch, chosen)
        kept.append(rows.num_rows)
        return rows

    monkeypatch.setattr(held_out, "keep", counted)
    held_out_rows(prompts, fraction=0.05, seed=3, most=40, stats=Stats(rows_in=ROWS))
    assert len(kept) == 3, "shards"
    assert sum(kept) == 40
