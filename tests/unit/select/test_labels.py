"""Selection by people's labels, and whether a reward agrees with them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.labels import fewer, in_turn, preferred_pairs, verdicts_of
from kubealign_components.data.schemas import REWARDED, SELECTION, TOKENIZED, completion_id, new_completion
from kubealign_components.data.stats import Stats
from kubealign_components.errors import DataError
from kubealign_components.select.stage import SelectConfig, run
from support.tiny import prompt_row

Row = dict[str, Any]
LABELS = SelectConfig(strategy="labels", pairs_per_prompt=8)


def row_of(name: str, made: Sequence[tuple[int, str | None, float | None]], source: str = "people") -> Row:
    """A prompt whose completions are ``(token, label, reward)``; those without a label are sampled."""
    row = prompt_row(f"prompt {name}") | {"source": source}
    row |= {"prompt_token_ids": [1, 2, 3], "prompt_tokens": 3, "dropped_completions": 0}
    row["completions"] = [
        new_completion(
            completion_id=completion_id(row["prompt_id"], [token]),
            reference=label is None,
            model="someone",
            messages="[]",
            token_ids=[token],
            num_tokens=1,
            label=label,
            reward=reward,
        )
        for token, label, reward in made
    ]
    return row


def select(
    folder: Path, rows: Sequence[Row], config: SelectConfig = LABELS, schema: str = TOKENIZED
) -> tuple[list[Row], Stats]:
    with DatasetWriter(str(folder / "in"), schema, derive("test", 1, {"rows": len(rows)})) as writer:
        writer.write_rows(rows)
        dataset = writer.commit(Stats(rows_in=len(rows), rows_out=len(rows)))
    stats = run(config, rewarded=dataset, output=str(folder / "out"))
    return list(Dataset.open(str(folder / "out"), SELECTION, allow_empty=True).iter_rows()), stats


def pairs_of(row: Row) -> list[tuple[int, int]]:
    tokens = [c["token_ids"][0] for c in row["completions"]]
    return [(tokens[pair["chosen"]], tokens[pair["rejected"]]) for pair in row["pairs"]]


def test_pairs_are_those_that_people_labelled_without_any_reward(tmp_path: Path) -> None:
    rows = [
        row_of("a", [(1, "chosen", None), (2, "rejected", None), (3, "chosen", None), (4, "rejected", None)]),
        row_of("b", [(5, "chosen", None), (6, None, None)]),
        row_of("c", [(7, None, None)]),
    ]
    selected, stats = select(tmp_path, rows)
    assert [pairs_of(row) for row in selected] == [[(1, 2), (3, 4)]]
    assert selected[0]["reference_rewards"] == []
    assert {c["quantile_reward"] for c in selected[0]["completions"]} == {None}
    assert stats.dropped == {"no_pair": 1, "no_labels": 1}
    assert stats.counts["pairs"] == 2


def test_a_reward_does_not_turn_labelled_pairs_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        row_of(str(i), [(1, "chosen", 0.0), (2, "rejected", 1.0), (3, None, 0.5), (4, None, 2.0)])
        for i in range(5)
    ]
    with caplog.at_level(logging.WARNING):
        selected, stats = select(tmp_path, rows, schema=REWARDED)
    assert {tuple(pairs_of(row)) for row in selected} == {((1, 2),)}
    assert [c["quantile_reward"] for c in selected[0]["completions"]] == [0.0, 0.5]
    assert stats.metrics()["label_agreement_mean"] == 0.0
    assert "prefers the completion that people rejected in 100% of 5 labelled pairs" in caplog.text


def test_selection_by_reward_says_how_often_it_contradicts_the_labels_of_each_source(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        row_of("a", [(1, "chosen", 0.0), (2, "rejected", 1.0)], "one"),
        row_of("b", [(1, "chosen", 1.0), (2, "rejected", 0.0)], "two"),
        row_of("c", [(1, "chosen", 1.0), (2, "rejected", 1.0)], "two"),
    ]
    for row in rows:
        row["completions"] += row_of("x", [(8, None, 0.5), (9, None, 0.7)])["completions"]
    config = SelectConfig(pool="offline")
    with caplog.at_level(logging.WARNING):
        _, stats = select(tmp_path, rows, config, REWARDED)
    told = {name: value for name, value in stats.metrics().items() if name.startswith("label_")}
    assert told == {
        "label_agreement_mean": 0.5,
        "label_pairs": 3,
        "label_agreement_one_mean": 0.0,
        "label_agreement_two_mean": 0.75,
    }
    assert "source 'one'" in caplog.text and "source 'two'" not in caplog.text


def test_single_labels_are_kept_one_by_one(tmp_path: Path) -> None:
    rows = [row_of("a", [(1, "chosen", None), (2, None, None)]), row_of("b", [(3, "rejected", None)])]
    selected, _ = select(tmp_path, rows, SelectConfig(strategy="labelled"))
    assert [[c["label"] for c in row["completions"]] for row in selected] == [["chosen"], ["rejected"]]
    assert [row["pairs"] for row in selected] == [[], []]


def test_two_answers_that_became_one_are_no_pair(tmp_path: Path) -> None:
    selected, stats = select(tmp_path, [row_of("a", [(1, "chosen", None), (1, "rejected", None)])])
    assert selected == []
    assert stats.dropped == {"no_pair": 1}


def test_labels_without_a_counterpart_are_told_of_the_pointwise_objective(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        selected, stats = select(tmp_path, [row_of("a", [(1, "chosen", None)])])
    assert (selected, stats.dropped) == ([], {"no_pair": 1})
    assert "select_strategy labelled and train_objective kto" in caplog.text


def test_by_reward_a_missing_reward_is_named_with_the_way_out(tmp_path: Path) -> None:
    rows = [row_of("a", [(1, "chosen", None), (2, "rejected", None)])]
    with pytest.raises(DataError, match="strategy labels"):
        select(tmp_path, rows, SelectConfig(pool="offline"))


def compared_row(name: str, completions: int, comparisons: Sequence[tuple[int, int]]) -> Row:
    """A prompt whose completions, tokens 0, 1, …, people compared: (winner, loser), by their places."""
    row = row_of(name, [(token, None, None) for token in range(completions)])
    for place, completion in enumerate(row["completions"]):
        completion["wins"] = [n for n, (winner, _) in enumerate(comparisons) if winner == place]
        completion["losses"] = [n for n, (_, loser) in enumerate(comparisons) if loser == place]
    return row


def test_a_completion_may_win_one_comparison_and_lose_another(tmp_path: Path) -> None:
    chain = compared_row("a", 3, [(0, 1), (1, 2)])
    star = compared_row("b", 5, [(0, 1), (0, 3), (2, 4)])
    selected, stats = select(tmp_path, [chain, star])
    assert [pairs_of(row) for row in selected] == [[(0, 1), (1, 2)], [(0, 1), (0, 3), (2, 4)]]
    assert stats.counts["pairs"] == 5


def test_what_is_left_of_a_comparison_is_set_against_nothing_else(tmp_path: Path) -> None:
    row = compared_row("a", 5, [(0, 1), (2, 3)])
    row["completions"][4]["label"] = "rejected"
    row["completions"][0]["label"] = "chosen"
    del row["completions"][1]  # it was too long
    selected, _ = select(tmp_path, [row])
    assert [pairs_of(one) for one in selected] == [[(2, 3)]]


def test_comparisons_of_answers_that_became_one(tmp_path: Path) -> None:
    row = compared_row("a", 5, [(0, 2), (1, 3), (0, 1), (4, 0), (1, 4)])
    row["completions"][1] |= {name: row["completions"][0][name] for name in ("completion_id", "token_ids")}
    selected, _ = select(tmp_path, [row])  # (0, 1) is of one answer, (4, 0) and (1, 4) contradict each other
    assert [pairs_of(one) for one in selected] == [[(0, 2), (0, 3)]]


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8), max_size=5))
def test_pairs_are_the_comparisons(prompts: list[list[tuple[int, int]]]) -> None:
    rows = [compared_row(str(i), 6, comparisons) for i, comparisons in enumerate(prompts)]
    completions = [c for row in rows for c in row["completions"]]
    first, second = preferred_pairs(verdicts_of(completions), np.repeat(np.arange(len(rows)), 6))
    expected = [(6 * i + a, 6 * i + b) for i, comparisons in enumerate(prompts) for a, b in comparisons]
    assert list(zip(first.tolist(), second.tolist())) == expected


@given(st.lists(st.lists(st.booleans(), max_size=8), max_size=6), st.integers(1, 5), st.integers(0, 9))
def test_every_pair_is_of_one_prompt_and_no_label_is_left_over(
    prompts: list[list[bool]], most: int, seed: int
) -> None:
    row = np.repeat(np.arange(len(prompts)), [len(labels) for labels in prompts])
    chosen = np.array([label for labels in prompts for label in labels], dtype=np.bool_)
    first, second = in_turn(row, chosen)
    assert chosen[first].all() and not chosen[second].any()
    assert (row[first] == row[second]).all() and (np.diff(row[first]) >= 0).all()
    for number, labels in enumerate(prompts):
        used = set(first[row[first] == number]) | set(second[row[second] == number])
        assert len(used) == (len(labels) if len(set(labels)) == 2 else 0)
    key = np.random.default_rng(seed).integers(0, 2**63, len(row), dtype=np.uint64)
    kept = {(int(a), int(b)) for a, b in zip(*fewer(first, second, row, key, most))}
    assert kept <= set(zip(first.tolist(), second.tolist()))
    for number in range(len(prompts)):
        every = int((row[first] == number).sum())
        assert sum(row[a] == number for a, _ in kept) == min(every, most)
