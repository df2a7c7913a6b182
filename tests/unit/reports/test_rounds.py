"""The table of rounds: numbers of each evaluation, and which rounds what is trained on comes from."""

from __future__ import annotations

from typing import Any

from kubealign_components.data.schemas import SELECTION, new_completion
from kubealign_components.reports.rounds import COLUMNS, chosen_by_round, lines_of, shares_of_rounds, shown_of
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


def test_a_line_tells_the_share_of_each_round_and_a_later_round_is_told_of_it(
    make_dataset: MakeDataset,
) -> None:
    numbers = {"reward_aligned": 0.5, "prompts": 3.0, **shares_of_rounds(make_dataset(ROWS, SELECTION))}
    [first, second] = lines_of([{"reward_aligned": 0.25}, shown_of(numbers)])
    assert first == ["1", "0.25", "", "", "", "", "1: 100%"]
    assert len(first) == len(COLUMNS)
    assert second == ["2", "0.5", "", "", "", "", "1: 50%, 2: 50%"]
    assert "prompts" not in shown_of(numbers)
