"""join_draws: every prompt once, in its order, with all that was drawn of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import REWARDED, completion_id, new_completion
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.join_draws.stage import JoinDrawsConfig, run
from support.datasets import MakeDataset
from support.tiny import prompt_row


def drawn(text: str, *rewards: float, start: int = 1, dropped: int = 0) -> dict[str, Any]:
    """A prompt with a sampled completion of one more token for each of ``rewards``."""
    row = prompt_row(text)
    completions = [
        new_completion(
            completion_id=completion_id(row["prompt_id"], [number] * number),
            reference=True,
            model="model",
            messages="[]",
            finish_reason="stop",
            token_ids=[number] * number,
            num_tokens=number,
            reward=reward,
        )
        for number, reward in enumerate(rewards, start)
    ]
    tokens = {"prompt_token_ids": [1], "prompt_tokens": 1, "dropped_completions": dropped}
    return row | tokens | {"completions": [dict(one) for one in completions]}


def joined(make_dataset: MakeDataset, earlier: list[Any], later: list[Any], to: int = 4) -> Dataset:
    before, after = (
        make_dataset(rows, REWARDED, stage="rewards", params={"rows": 0}) for rows in (earlier, later)
    )
    output = f"{before.uri}-joined"
    run(JoinDrawsConfig(to=to), earlier=before, later=after, output=output)
    return Dataset.open(output)


def test_a_prompt_has_all_its_draws_and_what_was_spared_is_told(make_dataset: MakeDataset) -> None:
    made = joined(
        make_dataset,
        [drawn("a", 0.0, 1.0), drawn("b", 1.0, 1.0), drawn("c", 2.0, 2.0)],
        [drawn("b", 1.0, 1.0, 0.0, 3.0)],
    )
    rewards = [[c["reward"] for c in row["completions"]] for row in made.iter_rows()]
    assert rewards == [[0.0, 1.0], [1.0, 1.0, 0.0, 3.0], [2.0, 2.0]]
    # Two draws of 1 and 2 tokens stand for four of 6 in all; the prompt with four has 10.
    assert made.manifest.stats["numbers"] == {
        "prompts_with_2_draws": 2,
        "prompts_with_4_draws": 1,
        "prompts_never_differed": 1,
        "share_of_tokens": pytest.approx((3 + 10 + 3) / (6 + 10 + 6)),
    }


def test_completions_that_were_dropped_were_drawn(make_dataset: MakeDataset) -> None:
    made = joined(make_dataset, [drawn("a", 0.0, dropped=1)], [drawn("a", 0.0, 1.0, 2.0, dropped=1)])
    assert made.manifest.stats["numbers"]["prompts_with_4_draws"] == 1


@given(asked=st.lists(st.booleans(), min_size=1, max_size=9).filter(any))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whoever_is_asked_each_prompt_stays_where_it_was(
    make_dataset: MakeDataset, asked: list[bool]
) -> None:
    earlier = [drawn(f"q{i}", 0.0, float(i)) for i in range(len(asked))]
    later = [drawn(f"q{i}", 0.0, float(i), 5.0) for i, one in enumerate(asked) if one]
    made = list(joined(make_dataset, earlier, later).iter_rows())
    assert [row["prompt_id"] for row in made] == [row["prompt_id"] for row in earlier]
    assert [len(row["completions"]) for row in made] == [3 if one else 2 for one in asked]


def test_draws_of_another_policy_order_or_reward_are_refused(make_dataset: MakeDataset) -> None:
    rows = [drawn(text, 0.0, 1.0) for text in "ab"]
    with pytest.raises(DataError, match="lacks 2 completions of the earlier draws"):
        joined(make_dataset, rows, [drawn("a", 0.0, 1.0, start=7)])
    with pytest.raises(DataError, match="expected the same order"):
        joined(make_dataset, rows, rows[::-1])
    before = make_dataset(rows, REWARDED, stage="rewards", params={"scale": 1})
    other = make_dataset(rows, REWARDED, stage="rewards", params={"scale": 2})
    with pytest.raises(ConfigError, match="rewards of the same kind"):
        run(JoinDrawsConfig(), earlier=before, later=other, output=f"{before.uri}-1")
    with pytest.raises(ConfigError, match="2 or more"):
        JoinDrawsConfig(to=1)
