"""held_out: the same prompts as a plain loop finds, at a small part of its time."""

from __future__ import annotations

import time

import pytest

from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import REWARDED, TokenizedRow, new_completion
from kubealign_components.data.seeds import is_held_out, unit_interval
from kubealign_components.data.stats import Stats
from kubealign_components.evaluate.held_out import held_out_rows
from support.tiny import prompt_row

ROWS, N, TOKENS = 1500, 8, 200


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
    with DatasetWriter(uri, REWARDED, derive("test", 1, {}), shard_bytes=2**18) as writer:
        for i in range(ROWS):
            writer.write_rows([prompt_row(f"question {i}?") | {"completions": completions}])
        return writer.commit(Stats(rows_in=ROWS, rows_out=ROWS))


def by_loop(dataset: Dataset, fraction: float, seed: int, most: int) -> list[TokenizedRow]:
    rows = [
        row for row in dataset.iter_rows(of=TokenizedRow) if is_held_out(row["prompt_id"], fraction, seed)
    ]
    return sorted(rows, key=lambda r: (unit_interval(seed, "validation", r["prompt_id"]), r["prompt_id"]))[
        :most
    ]


@pytest.mark.parametrize(("fraction", "most"), [(0.05, 64), (0.05, 10_000), (0.5, 7)])
def test_rows_are_those_of_a_plain_loop(prompts: Dataset, fraction: float, most: int) -> None:
    stats = Stats(rows_in=ROWS)
    found = held_out_rows(prompts, fraction=fraction, seed=3, most=most, stats=stats)
    assert found == by_loop(prompts, fraction, 3, most)
    assert stats.dropped.total() == ROWS - len(found)


def test_rows_that_are_not_compared_do_not_become_objects(prompts: Dataset) -> None:
    """Processor time of both in this process: the loop takes many times as much."""
    times = []
    for read in (
        lambda: by_loop(prompts, 0.05, 3, 64),
        lambda: held_out_rows(prompts, fraction=0.05, seed=3, most=64, stats=Stats(rows_in=ROWS)),
    ):
        began = time.process_time()
        read()
        times.append(time.process_time() - began)
    print(f"evaluate reads {ROWS / times[1]:,.0f} rows/s, a plain loop {ROWS / times[0]:,.0f}")
    assert times[1] < times[0] / 4
