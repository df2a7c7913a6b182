"""Runs beside each other: what differs is told, what cannot be compared is said, texts do nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from kubealign.cli.main import main
from kubealign.compare.page import compare_page, spread_evenly
from kubealign.compare.runs import compared
from kubealign.local.runs import read_run
from kubealign_components.data.bootstrap import bootstrap_interval
from support.datasets import MakeDataset
from support.pages import Page
from support.run_folders import add_run

ATTACK = "<script>alert(1)</script>\x1b[2J"


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["compare", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def three(tmp_path: Path, make_dataset: MakeDataset) -> list[Path]:
    gains = [{"a": 0.1, "b": 0.2, "c": 0.3}, {"a": 0.4, "b": 0.4, "d": 0.9}, {"a": 5.0, "b": 7.0}]
    settings: list[dict[str, object]] = [
        {"train_beta": 0.1, "seed": 0, "train_options": {"batch_size": 8, "gamma": 1.0}},
        {"train_beta": 0.2, "seed": 0, "train_options": {"batch_size": 8}, "sources": [{"uri": "x"}]},
        {"train_beta": 0.1, "seed": 0, "train_options": {"batch_size": 8, "gamma": 1.0}},
    ]
    return [
        add_run(
            tmp_path / "out",
            name,
            make_dataset,
            aligned=dict(of_run),
            parameters=given,
            reward=reward,
            text=text,
        )
        for name, of_run, given, reward, text in zip(
            ("one", "two", "other"),
            gains,
            settings,
            ("brevity", "brevity", "length"),
            ("fine", ATTACK, "grand"),
        )
    ]


def test_settings_that_differ_are_told_and_no_others(three: list[Path]) -> None:
    told = json.loads(call(*three, "--json"))
    assert told["settings"] == {
        "train_beta": ["0.1", "0.2", "0.1"],
        "train_options.gamma": ["1.0", None, "1.0"],
        "sources.0.uri": [None, "x", None],
    }
    assert told["evaluation"]["reward_gain"] == pytest.approx([0.2, 0.5667, 6.0], abs=1e-3)
    assert list(told["runs"]) == ["one", "two", "other"]


def test_rewards_are_compared_by_prompt_where_they_are_the_same_reward(three: list[Path]) -> None:
    told = json.loads(call(*three, "--json"))
    assert list(told["differences"]) == ["two"]  # the third run's rewards are of another function
    gains = np.array([0.4 - 0.1, 0.4 - 0.2])
    interval = bootstrap_interval(gains, seed=0)
    assert interval is not None
    expected = {"prompts": 2, "mean": 0.25, "low": interval[0], "high": interval[1]}
    assert told["differences"]["two"] == pytest.approx(expected)
    notes = " ".join(told["notes"])
    assert "different rewards" in notes
    assert "1 of the 3 held-out prompts of one" in notes and "1 of the 3 held-out prompts of two" in notes


def test_what_is_printed_shows_texts_of_prompts_that_all_have(three: list[Path]) -> None:
    text = call(*three)
    for wanted in (
        "Settings that differ",
        "train_options.gamma",
        "tell a",
        "tell b",
        "fine",
        "grand",
        "median",
    ):
        assert wanted in text
    assert "tell c" not in text and "tell d" not in text
    assert "\x1b[2J" not in text
    assert "tell a" not in call(*three, "--rows", 0)


def test_the_page_holds_the_same_and_runs_nothing(three: list[Path], tmp_path: Path) -> None:
    call(*three, "--html", tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert page.loaded == [] and len(page.scripts) == 2 and "alert" not in "".join(page.scripts)
    assert "<script>alert(1)</script>" in page.text
    assert ["train_beta", "0.1", "0.2", "0.1"] in page.rows
    assert {"Rewards of one", "Rewards of two", "Rewards of other"} <= set(page.charts)
    assert {f"Rewards of samples of {name}" for name in ("one", "two", "other")} <= set(page.charts)
    assert ["two", "+0.25", "+0.2 to +0.3", "2"] in page.rows


def test_one_shared_prompt_has_no_interval_and_none_no_difference(
    tmp_path: Path, make_dataset: MakeDataset
) -> None:
    given = {"one": {"a": 0.1}, "same": {"a": 0.4, "b": 0.4}, "apart": {"c": 0.5}}
    paths = [add_run(tmp_path, name, make_dataset, aligned=dict(of_run)) for name, of_run in given.items()]
    told = json.loads(call(*paths, "--json"))["differences"]
    assert told == {"same": {"prompts": 1, "mean": pytest.approx(0.3), "low": None, "high": None}}
    page = Page(compare_page(compared([read_run(path) for path in paths])))
    assert ["same", "+0.3", "none from one prompt", "1"] in page.rows


def test_two_runs_have_the_difference_of_their_numbers(three: list[Path]) -> None:
    page = Page(compare_page(compared([read_run(path) for path in three[:2]])))
    assert ["reward gain", "0.2", "0.5667", "+0.3667"] in page.rows


def test_a_run_without_evaluation_or_rewards_is_compared_by_what_it_has(
    three: list[Path], tmp_path: Path, make_dataset: MakeDataset
) -> None:
    early = add_run(tmp_path / "out", "early", make_dataset, aligned={"a": 0.0}, evaluated=False)
    bare = add_run(tmp_path / "out", "bare", make_dataset, aligned={"a": None, "b": None})
    text = call(three[0], early, bare)
    assert "Note: early (done) has no evaluation." in text
    page = Page(compare_page(compared([read_run(path) for path in (three[0], early, bare)])))
    assert "Rewards of one" in page.charts and "Rewards of bare" not in page.charts
    assert "tell a" in page.text


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path, make_dataset: MakeDataset) -> None:
    paths = [add_run(tmp_path / name, "dpo", make_dataset, aligned={"a": 1.0}) for name in ("x", "y")]
    assert list(json.loads(call(*paths, "--json"))["runs"]) == ["x/runs/dpo", "y/runs/dpo"]


def test_too_few_too_many_the_same_or_none(three: list[Path], tmp_path: Path) -> None:
    assert "expected 2 to 8 runs" in call(three[0], code=2)
    assert "expected 2 to 8 runs" in call(*three * 3, code=2)
    assert "expected each run once" in call(three[0], three[0], code=2)
    assert "nothing: no such run here" in call(three[0], tmp_path / "nothing", code=1)


@pytest.mark.parametrize(("size", "most"), [(0, 3), (1, 3), (3, 3), (10, 3), (10, 1), (5, 0)])
def test_what_is_picked_of_many_is_in_order_and_no_more_than_asked(size: int, most: int) -> None:
    names = [str(i) for i in range(size)]
    picked = spread_evenly(names, most)
    assert len(picked) == min(size, most) and picked == sorted(picked, key=int)
