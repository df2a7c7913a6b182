"""The table of rounds on the page of a run: numbers of each evaluation, and which rounds pairs are from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kubealign.local.results import Results, StageRow
from kubealign.local.rounds import chosen_by_round, rounds_of
from kubealign_components.data.schemas import SELECTION, new_completion
from support.datasets import MakeDataset
from support.tiny import prompt_row


def selected(text: str, models: list[str], pairs: list[tuple[int, int]]) -> dict[str, Any]:
    ids = ("token_ids", "num_tokens", "finish_reason")
    own = [new_completion(**dict(zip(ids, ([i + 1], 1, "stop"))), model=m) for i, m in enumerate(models)]
    chosen = [{"chosen": one, "rejected": other} for one, other in pairs]
    return prompt_row(text) | {"completions": own, "reference_rewards": [], "pairs": chosen}


ROWS = [
    selected("a", ["people", "model (round 2)"], [(1, 0)]),
    selected("b", ["tiny", "model (round 3)", "model (round 2)"], [(0, 1), (2, 1)]),
    selected("c", ["tiny", "tiny"], [(1, 0)]),
]


def test_pairs_are_counted_by_the_round_of_the_chosen_completion(make_dataset: MakeDataset) -> None:
    assert chosen_by_round(make_dataset(ROWS, SELECTION)) == {1: 2, 2: 2}
    assert chosen_by_round(make_dataset(ROWS, SELECTION, shards=2)) == {1: 2, 2: 2}
    assert chosen_by_round(make_dataset(ROWS[:1], SELECTION)) == {2: 1}


def test_without_pairs_completions_are_counted(make_dataset: MakeDataset) -> None:
    rows = [{**row, "pairs": []} for row in ROWS]
    assert chosen_by_round(make_dataset(rows, SELECTION)) == {1: 4, 2: 2, 3: 1}


def test_one_round_needs_no_table() -> None:
    row = StageRow(
        stage="evaluate",
        title="evaluate",
        rows_in=1,
        rows_out=1,
        dropped={},
        counts={},
        numbers={},
        seconds=1.0,
    )
    run = Results(pipeline="p", folder=Path(), parameters={}, seconds=1.0, stages=[row])
    assert rounds_of(run) == []
