"""join_rounds: all completions of all rounds, each prompt once, and whose rewards are reference rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import REWARDED, SELECTION, completion_id, new_completion
from kubealign_components.errors import ConfigError, CorruptDataset, DataError
from kubealign_components.join_rounds.stage import JoinRoundsConfig, run
from kubealign_components.select.stage import SelectConfig
from kubealign_components.select.stage import run as select
from support.datasets import MakeDataset
from support.tiny import prompt_row

FIRST, SECOND = ({"policy": name * 64, "tokenizer": "t" * 64, "template": "u" * 64} for name in "ab")


def said(prompt: dict[str, Any], *tokens: int, reward: float, **columns: Any) -> dict[str, Any]:
    ids = list(tokens)
    given = {"reference": True, "model": "model", "messages": "[]", "finish_reason": "stop"} | columns
    name = completion_id(prompt["prompt_id"], ids)
    return dict(
        new_completion(completion_id=name, token_ids=ids, num_tokens=len(ids), reward=reward, **given)
    )


def answered(text: str, *completions: tuple[Sequence[int], float], **columns: Any) -> dict[str, Any]:
    row = prompt_row(text)
    own = [said(row, *tokens, reward=reward, **columns) for tokens, reward in completions]
    return row | {"completions": own, "prompt_token_ids": [1], "prompt_tokens": 1}


def rewarded(make_dataset: MakeDataset, rows: list[dict[str, Any]], identity: dict[str, str]) -> Dataset:
    return make_dataset(rows, REWARDED, stage="rewards", identity=identity, params={"rows": 0})


def joined(
    make_dataset: MakeDataset,
    earlier: list[dict[str, Any]],
    later: list[dict[str, Any]],
    reference: str = "first",
) -> Dataset:
    before, added = rewarded(make_dataset, earlier, FIRST), rewarded(make_dataset, later, SECOND)
    output = f"{before.uri}-joined-{reference}"
    run(JoinRoundsConfig(number=2, references=reference), earlier=before, later=added, output=output)
    return Dataset.open(output)


@pytest.mark.parametrize("reference", ["first", "last"])
def test_completions_stand_side_by_side_and_one_rounds_are_references(
    make_dataset: MakeDataset, reference: str
) -> None:
    offline = said(prompt_row("a"), 9, reward=0.5, reference=False, finish_reason="offline", model="people")
    earlier = answered("a", ([1, 2], 1.0), ([3], 2.0))
    earlier["completions"].insert(0, offline)
    made = joined(make_dataset, [earlier], [answered("a", ([3], 2.0), ([4], 3.0))], reference)
    [row] = made.iter_rows()
    later = reference == "last"
    assert [(c["token_ids"], c["reward"], c["reference"], c["model"]) for c in row["completions"]] == [
        ([9], 0.5, False, "people"),
        ([1, 2], 1.0, not later, "model"),
        ([3], 2.0, not later, "model"),
        ([3], 2.0, later, "model (round 2)"),
        ([4], 3.0, later, "model (round 2)"),
    ]
    assert made.manifest.identity == FIRST, "the tokens, and the log-probabilities to come, are the first's"
    counts = made.manifest.stats["counts"]
    assert counts == {"completions_before": 3, "completions_added": 2, "completions_said_before": 1}


@given(asked=st.lists(st.booleans(), min_size=1, max_size=9).filter(any))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_prompts_a_round_asks_each_keeps_its_own(
    make_dataset: MakeDataset, asked: list[bool]
) -> None:
    earlier = [answered(f"q{i}", ([i + 1], float(i))) for i in range(len(asked))]
    later = [answered(f"q{i}", ([i + 100], -float(i))) for i, one in enumerate(asked) if one]
    made = joined(make_dataset, earlier, later)
    expected = [[[i + 1], [i + 100]] if one else [[i + 1]] for i, one in enumerate(asked)]
    assert [[c["token_ids"] for c in row["completions"]] for row in made.iter_rows()] == expected
    assert [row["prompt_id"] for row in made.iter_rows()] == [row["prompt_id"] for row in earlier]


@pytest.mark.parametrize("reference", ["first", "last"])
def test_a_prompt_that_one_round_alone_asked_has_that_rounds_references(
    make_dataset: MakeDataset, reference: str
) -> None:
    offline = answered("b", ([7], 1.0), reference=False, finish_reason="offline")
    earlier = [answered("a", ([1], 1.0)), offline]
    later = [answered("a"), answered("b", ([2], 2.0))]
    rows = joined(make_dataset, earlier, later, reference).iter_rows()
    assert [[(c["token_ids"], c["reference"]) for c in row["completions"]] for row in rows] == [
        [([1], True)],
        [([7], False), ([2], True)],
    ]


def test_prompts_in_another_order_or_of_another_run_are_refused(make_dataset: MakeDataset) -> None:
    rows = [answered(text, ([1], 1.0)) for text in "ab"]
    with pytest.raises(DataError, match="expected the same order"):
        joined(make_dataset, rows, rows[::-1])
    with pytest.raises(DataError, match=r"1 prompts that .* has not"):
        joined(make_dataset, rows[:1], rows)


def test_rewards_or_tokens_of_another_kind_are_refused(make_dataset: MakeDataset) -> None:
    rows = [answered("a", ([1], 1.0))]
    before = rewarded(make_dataset, rows, FIRST)
    other = make_dataset(rows, REWARDED, stage="rewards", identity=SECOND, params={"rows": 1})
    with pytest.raises(ConfigError, match="rewards of the same kind"):
        run(JoinRoundsConfig(number=2), earlier=before, later=other, output=f"{before.uri}-1")
    other = rewarded(make_dataset, rows, SECOND | {"tokenizer": "z" * 64})
    with pytest.raises(CorruptDataset, match="its tokenizer has digest"):
        run(JoinRoundsConfig(number=2), earlier=before, later=other, output=f"{before.uri}-2")


@pytest.mark.parametrize("reference", ["first", "last"])
def test_pairs_are_of_all_rounds_and_quantiles_of_the_references_alone(
    make_dataset: MakeDataset, reference: str
) -> None:
    earlier = [answered("a", ([1], 1.0), ([2], 2.0))]
    made = joined(make_dataset, earlier, [answered("a", ([3], 3.0), ([4], 0.0))], reference)
    output = f"{made.uri}-selected"
    select(SelectConfig(quantile="mid_rank"), rewarded=made, output=output)
    [row] = Dataset.open(output, SELECTION).iter_rows()
    assert [c["token_ids"] for c in row["completions"]] == [[3], [4]]
    assert row["reference_rewards"] == ([1.0, 2.0] if reference == "first" else [3.0, 0.0])
    expected = [1.0, 0.0] if reference == "first" else [0.75, 0.25]
    assert [c["quantile_reward"] for c in row["completions"]] == expected
