"""draw_more: which prompts go on, who is left and why, and that a fan-out always has a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import REWARDED, TOKENIZED, completion_id, new_completion
from kubealign_components.draw_more.stage import DrawMoreConfig, draws_of, run
from kubealign_components.errors import ConfigError, DataError
from support.datasets import MakeDataset
from support.tiny import prompt_row


def asked(text: str) -> dict[str, Any]:
    return prompt_row(text) | {"prompt_token_ids": [1], "prompt_tokens": 1}


def answered(text: str, *rewards: float, offline: tuple[float, ...] = ()) -> dict[str, Any]:
    row = asked(text)
    completions = [
        new_completion(
            completion_id=completion_id(row["prompt_id"], [number]),
            reference=number > len(offline),
            model="model",
            messages="[]",
            finish_reason="stop" if number > len(offline) else "offline",
            token_ids=[number],
            num_tokens=1,
            reward=reward,
        )
        for number, reward in enumerate([*offline, *rewards], 1)
    ]
    return row | {"completions": [dict(one) for one in completions]}


def unresolved(
    make_dataset: MakeDataset, rows: list[dict[str, Any]], **settings: Any
) -> tuple[Dataset, list[str]]:
    prompts = make_dataset([row | {"completions": []} for row in rows], TOKENIZED)
    rewarded = make_dataset(rows, REWARDED, stage="rewards")
    output = f"{rewarded.uri}-more"
    run(DrawMoreConfig(drawn=4, to=16, **settings), prompts=prompts, rewarded=rewarded, output=output)
    made = Dataset.open(output, TOKENIZED)
    return made, [row["prompt_id"] for row in made.iter_rows()]


def test_who_has_both_ends_of_few_values_is_settled_and_others_go_on(make_dataset: MakeDataset) -> None:
    both = [answered(f"both {i}", 0.0, 1.0, 1.0, 0.0) for i in range(30)]
    rows = [*both, answered("one", 1.0, 1.0, 1.0, 1.0), answered("other", 0.0, 0.0, 0.0, 0.0)]
    made, names = unresolved(make_dataset, rows, same=0.99)
    assert names == [row["prompt_id"] for row in rows[-2:]]
    stats = made.manifest.stats
    assert stats["dropped"] == {"resolved": 30} and stats["rows_in"] == 32
    assert stats["numbers"]["expected_same"] == 1.0
    assert all(row["completions"] == [] for row in made.iter_rows())


def test_who_never_differs_is_left_and_counted(make_dataset: MakeDataset) -> None:
    rng = np.random.default_rng(0)
    alike = [answered(f"alike {i}", *[float(rng.normal())] * 4) for i in range(60)]
    differing = [answered(f"differing {i}", *map(float, rng.normal(size=4))) for i in range(120)]
    made, names = unresolved(make_dataset, [*alike, *differing])
    assert made.manifest.stats["dropped"]["never_differed"] == 60
    assert not {row["prompt_id"] for row in alike} & set(names)
    assert len(names) >= 115


def test_one_prompt_goes_on_where_all_are_settled(make_dataset: MakeDataset) -> None:
    made, names = unresolved(make_dataset, [answered(f"q{i}", 0.0, 1.0, 1.0, 0.0) for i in range(20)])
    assert len(names) == 1, "a fan-out over no rows is none"
    assert made.manifest.stats["dropped"] == {"resolved": 19}


def test_what_a_source_brought_settles_nothing(make_dataset: MakeDataset) -> None:
    rows = [answered(f"q{i}", 0.0, 0.0, offline=(1.0, 0.0)) for i in range(20)]
    rewarded = make_dataset(rows, REWARDED, stage="rewards")
    ids, draws = draws_of(rewarded)
    assert ids == [row["prompt_id"] for row in rows]
    assert draws.number.tolist() == [2] * 20 and draws.reward.max() == 0.0


def test_a_prompt_whose_samples_were_all_dropped_goes_on(make_dataset: MakeDataset) -> None:
    rows = [answered(f"q{i}", 0.0, 1.0, 0.0, 1.0) for i in range(30)]
    rows[7] = answered("none")
    _, names = unresolved(make_dataset, rows)
    assert rows[7]["prompt_id"] in names


def test_more_is_given_up_late_than_early_and_in_all_as_much_as_was_said() -> None:
    held = [DrawMoreConfig(drawn=drawn, to=16, same=0.9).held for drawn in (4, 8, 12)]
    assert held == pytest.approx([0.95, 0.9, 0.9])


def test_rewards_of_other_prompts_and_settings_that_are_none_are_refused(make_dataset: MakeDataset) -> None:
    prompts = make_dataset([asked("a")], TOKENIZED)
    rewarded = make_dataset([answered("b", 0.0, 1.0)], REWARDED, stage="rewards")
    with pytest.raises(DataError, match="has other prompts than"):
        run(DrawMoreConfig(), prompts=prompts, rewarded=rewarded, output=f"{rewarded.uri}-more")
    for settings in ({"drawn": 1}, {"drawn": 16}, {"same": 1.0}, {"within": -0.1}):
        with pytest.raises(ConfigError):
            DrawMoreConfig(**settings)
