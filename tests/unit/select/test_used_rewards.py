"""Selection at equal length, and by shuffled rewards: what was planted comes out, and readers are told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.null_runs import NULL_RUN, is_null_run
from kubealign_components.data.schemas import REWARDED, completion_id, new_completion
from kubealign_components.data.stats import Stats
from kubealign_components.reports.rows import rows_page
from kubealign_components.select.stage import SelectConfig, run
from kubealign_components.select.used_rewards import LengthSlope, length_slope, writers_of
from support.pages import Page
from support.tiny import prompt_row

Row = dict[str, object]
Made = list[tuple[int, float]]
"""Length and reward of each completion of a prompt."""


def rewarded(folder: Path, prompts: list[Made]) -> Dataset:
    rows = []
    for i, made in enumerate(prompts):
        row = prompt_row(f"prompt {i}")
        row |= {"prompt_token_ids": [1, 2], "prompt_tokens": 2, "dropped_completions": 0}
        row["completions"] = [
            new_completion(
                completion_id=completion_id(row["prompt_id"], [k, *[5] * (length - 1)]),
                reference=True,
                messages=f'[{{"role": "assistant", "content": "{k}"}}]',
                token_ids=[k, *[5] * (length - 1)],
                num_tokens=length,
                reward=reward,
                reward_se=abs(reward) * 1e-9 if k else None,
                finish_reason="stop",
            )
            for k, (length, reward) in enumerate(made)
        ]
        rows.append(row)
    with DatasetWriter(str(folder), REWARDED, derive("test", 1, {"made": str(prompts)})) as writer:
        writer.write_rows(rows)
        return writer.commit(Stats(rows_in=len(rows), rows_out=len(rows)))


def planted(slope: float, prompts: int = 60) -> tuple[list[Made], list[Made]]:
    """Completions with what they are worth, and with what a reward gives that pays ``slope`` for a token."""
    random = np.random.default_rng(4)
    worth: list[Made] = [
        [(int(n), float(level + random.normal())) for n in random.integers(5, 60, 4 + i % 5)]
        for i, level in enumerate(random.normal(size=prompts))
    ]
    return worth, [[(n, value + slope * n) for n, value in made] for made in worth]


def pairs_of(dataset: Dataset) -> dict[str, list[tuple[str, str]]]:
    return {
        row["prompt_id"]: [
            (
                row["completions"][p["chosen"]]["completion_id"],
                row["completions"][p["rejected"]]["completion_id"],
            )
            for p in row["pairs"]
        ]
        for row in dataset.iter_rows()
    }


def test_the_slope_is_that_of_least_squares_with_prompts_and_writers_as_factors() -> None:
    _, prompts = planted(0.03)
    rows = [
        (i, k % 2, n, r, 1 / len(made)) for i, made in enumerate(prompts) for k, (n, r) in enumerate(made)
    ]
    row, writer, length, reward, weight = (np.array(column) for column in zip(*rows))
    level = 2 * row + writer
    length, reward = length + 40 * writer, reward + 2.0 * writer
    design = np.concatenate([np.eye(2 * len(prompts))[level], length[:, None]], axis=1)
    root = np.sqrt(weight)
    oracle = np.linalg.lstsq(design * root[:, None], reward * root, rcond=None)[0][-1]
    slope, halves = LengthSlope(), LengthSlope()
    slope.add(row, writer, reward, length.astype(np.float64))
    for half in (row >= 30, row < 30):
        halves.add(row[half] % 30, writer[half], reward[half], length[half].astype(np.float64))
    assert slope.value == pytest.approx(oracle, rel=1e-9)
    assert halves.value == slope.value


def test_writers_are_the_reference_the_policy_of_each_round_and_the_source() -> None:
    """Whoever wrote for a source is one writer, since one answer of each says nothing of length."""
    facts = [("a", True, "stop"), ("a", False, "length"), ("b", False, "stop"), ("c", False, "offline")]
    facts += [(None, None, "offline"), ("b", False, "length"), ("a", True, "length")]
    names = ("model", "reference", "finish_reason")
    writers = writers_of(pa.StructArray.from_arrays([pa.array(own) for own in zip(*facts)], names))
    assert len(set(writers[:4])) == 4
    assert writers[3:].tolist() == [writers[3], writers[3], writers[2], writers[0]]


def test_at_equal_length_the_worth_is_chosen_that_a_taste_for_length_hid(tmp_path: Path) -> None:
    """The reward pays for length nearly ten times what the best answers are worth more."""
    worth, prompts = planted(0.4)
    best = rewarded(tmp_path / "worth", worth)
    given = rewarded(tmp_path / "given", prompts)
    truth, plain, controlled = (
        run(SelectConfig(rewards=rewards), rewarded=dataset, output=str(tmp_path / f"out{i}"))
        for i, (dataset, rewards) in enumerate(
            [(best, "as_given"), (given, "as_given"), (given, "length_controlled")]
        )
    )
    chosen = [pairs_of(Dataset.open(str(tmp_path / f"out{i}"))) for i in range(3)]
    alike = [np.mean([chosen[0][name] == one[name] for name in chosen[0]]) for one in chosen[1:]]
    assert alike[0] < 0.3 and alike[1] > 0.75
    means = [stats.metrics()["longer_mean"] for stats in (truth, plain, controlled)]
    assert means[1] > 30 and abs(means[2] - means[0]) < 4
    assert controlled.numbers["length_slope_before"] == length_slope(given).value
    assert controlled.numbers["length_slope_before"] == pytest.approx(0.4, rel=0.05)
    assert controlled.numbers["length_slope_after"] == 0.0
    made = Dataset.open(str(tmp_path / "out2"))
    for row in made.iter_rows():  # what is trained on has the rewards that were gone by
        for pair in row["pairs"]:
            assert (
                row["completions"][pair["chosen"]]["reward"] > row["completions"][pair["rejected"]]["reward"]
            )
    page = Page(rows_page(made))
    assert "length_controlled" in made.manifest.slug and "Rewards are those at equal length" in page.text
    assert "length slope before" in page.text and "length slope after" in page.text


def test_equal_rewards_stay_equal_at_equal_length(tmp_path: Path) -> None:
    """Nothing is preferred for its length alone."""
    prompts: list[Made] = [[(9, 1.0), (30, 1.0), (50, 1.0)], [(9, 0.0), (30, 1.0), (50, 1.0), (70, 0.0)]]
    dataset = rewarded(tmp_path / "in", prompts)
    config = SelectConfig(strategy="random_pairs", pairs_per_prompt=9, rewards="length_controlled")
    stats = run(config, rewarded=dataset, output=str(tmp_path / "out"))
    assert stats.dropped == {"all_rewards_tie": 1}
    [row] = Dataset.open(str(tmp_path / "out")).iter_rows()
    given = {c["completion_id"]: c["reward"] for r in dataset.iter_rows() for c in r["completions"]}
    [pairs] = pairs_of(Dataset.open(str(tmp_path / "out"))).values()
    assert row["pairs"] and all({given[a], given[b]} == {0.0, 1.0} for a, b in pairs)


def test_a_null_run_has_the_rewards_of_each_prompt_at_random_and_says_so(tmp_path: Path) -> None:
    _, prompts = planted(0.0, prompts=200)
    dataset = rewarded(tmp_path / "in", prompts)
    made = {}
    for name, config in {
        "plain": SelectConfig(strategy="all"),
        "null": SelectConfig(strategy="all", rewards="shuffled"),
        "other": SelectConfig(strategy="all", rewards="shuffled", seed=1),
    }.items():
        run(config, rewarded=dataset, output=str(tmp_path / name))
        made[name] = Dataset.open(str(tmp_path / name))
    rewards = {
        name: [[c["reward"] for c in row["completions"]] for row in one.iter_rows()]
        for name, one in made.items()
    }
    for plain, null in zip(rewards["plain"], rewards["null"], strict=True):
        assert Counter(plain) == Counter(null)
    worth = {
        name: [Counter((c["reward"], c["reward_se"]) for c in row["completions"]) for row in one.iter_rows()]
        for name, one in made.items()
    }
    assert worth["plain"] == worth["null"]  # a reward keeps the standard error that is its own
    flat = {
        name: np.concatenate([np.array(of_row) - np.mean(of_row) for of_row in rows])
        for name, rows in rewards.items()
    }
    assert abs(np.corrcoef(flat["plain"], flat["null"])[0, 1]) < 0.1
    assert abs(np.corrcoef(flat["null"], flat["other"])[0, 1]) < 0.1
    for row in made["null"].iter_rows():  # quantiles are of the shuffled rewards
        ranks = np.argsort([c["reward"] for c in row["completions"]])
        assert list(ranks) == list(
            np.argsort([c["quantile_reward"] for c in row["completions"]], kind="stable")
        )
    assert len({one.manifest.fingerprint for one in made.values()}) == 3
    assert [is_null_run(made[name].manifest.recipe) for name in ("plain", "null")] == [False, True]
    assert "shuffled" in made["null"].manifest.slug
    assert NULL_RUN in Page(rows_page(made["null"])).text
