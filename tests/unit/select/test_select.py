"""select: the vectorised stage against the obvious one, and what must hold whatever the data."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubealign_components.config import from_mapping
from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import REWARDED, SELECTION, completion_id, new_completion
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError, DataError, EmptyDataset
from kubealign_components.select.pairs import STRATEGIES
from kubealign_components.select.quantiles import METHODS, quantile_rewards, rank_rewards
from kubealign_components.select.stage import SelectConfig, run
from kubealign_components.select.used_rewards import REWARDS
from support.select_oracle import select_row
from support.tiny import prompt_row

Row = dict[str, Any]
Made = tuple[int, float, bool]  # token, reward, reference


def rewarded_row(name: int | str, made: Sequence[Made]) -> Row:
    """A rewarded prompt; a completion's token stands for all it is, and from 100 on its reward is an
    estimate."""
    row = prompt_row(f"prompt {name}")
    row |= {"prompt_token_ids": [1, 2, 3], "prompt_tokens": 3, "dropped_completions": 0}
    row["completions"] = [
        new_completion(
            completion_id=completion_id(row["prompt_id"], [token]),
            reference=reference,
            model="policy" if reference else "offline",
            messages=f'[{{"content":"{token}","role":"assistant"}}]',
            token_ids=[token],
            num_tokens=1,
            reward=reward,
            reward_se=token % 5 / 10 if token >= 100 else None,
            sampler_logprob=-1.5 if reference else None,
        )
        for token, reward, reference in made
    ]
    return row


def dataset_of(folder: Path, rows: Sequence[Row], *, batch: int = 1000) -> Dataset:
    """``rows`` in shards of ``batch`` rows, which the stage reads one at a time."""
    with DatasetWriter(str(folder), REWARDED, derive("test", 1, {"rows": len(rows)})) as writer:
        for start in range(0, len(rows), batch):
            writer.write_rows(rows[start : start + batch])
            writer.close_shard()
        return writer.commit(Stats(rows_in=len(rows), rows_out=len(rows)))


def select(folder: Path, rows: Sequence[Row], config: SelectConfig, **how: Any) -> tuple[list[Row], Stats]:
    stats = run(config, rewarded=dataset_of(folder / "in", rows, **how), output=str(folder / "out"))
    return list(Dataset.open(str(folder / "out"), SELECTION, allow_empty=True).iter_rows()), stats


# Few distinct rewards make ties, few tokens make identical completions; the other half has neither.
rewards = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 0.5, 1.0, 3.0]) | st.integers(0, 100).map(lambda n: n / 7)
completions = st.lists(st.tuples(st.integers(0, 12), rewards, st.booleans()), max_size=14) | st.lists(
    st.tuples(st.integers(0, 200), rewards, st.just(True)), min_size=6, max_size=14
)


def consistent(made: list[Made]) -> list[Made]:
    """Equal completions have equal rewards."""
    rewards: dict[int, float] = {}
    return [(token, rewards.setdefault(token, reward), reference) for token, reward, reference in made]


prompts = st.lists(completions.map(consistent), min_size=1, max_size=6).map(
    lambda all_made: [rewarded_row(i, made) for i, made in enumerate(all_made)]
)
WORDS = [*STRATEGIES, "all"]
configs = st.builds(
    SelectConfig,
    strategy=st.sampled_from(WORDS),
    quantile=st.sampled_from(METHODS),
    pairs_per_prompt=st.integers(1, 5),
    min_references=st.integers(2, 3),
    min_quantile_gap=st.sampled_from([0.0, 0.2, 0.5]),
    reward_interval=st.sampled_from([0.0, 0.5, 0.95]),
    pool=st.sampled_from(["reference", "offline", "both"]),
    k=st.integers(1, 4),
    best_quantile=st.sampled_from([0.8, 1.0]),
    worst_quantile=st.sampled_from([0.0, 0.2, 0.5]),
    middle_quantile=st.sampled_from([0.5, 0.0, 0.9]),
    seed=st.integers(0, 3),
)
fuzz = settings(max_examples=60)


@pytest.mark.parametrize("strategy", WORDS)
@fuzz
@given(rows=prompts, config=configs)
def test_equals_the_obvious_implementation(
    tmp_path_factory: Any, strategy: str, rows: list[Row], config: SelectConfig
) -> None:
    config = replace(config, strategy=strategy)
    selected, stats = select(tmp_path_factory.mktemp("select"), rows, config)
    expected = [select_row(row, config) for row in rows]
    assert selected == [row for _, row in expected if row is not None]
    assert stats.dropped == Counter(reason for reason, _ in expected if reason is not None)
    assert stats.counts["pairs"] == sum(len(row["pairs"]) for row in selected)


@fuzz
@given(rows=prompts, config=configs)
def test_what_always_holds(tmp_path_factory: Any, rows: list[Row], config: SelectConfig) -> None:
    selected, stats = select(tmp_path_factory.mktemp("select"), rows, config)
    stats.check()
    assert stats.rows_in == len(rows) == len(selected) + sum(stats.dropped.values())
    before = {row["prompt_id"]: row for row in rows}
    for row in selected:
        known = before[row["prompt_id"]]["completions"]
        ids = [c["completion_id"] for c in row["completions"]]
        assert len(set(ids)) == len(ids)
        for c in row["completions"]:
            assert c | {"quantile_reward": None} in known
            assert 0 <= c["quantile_reward"] <= 1
            assert config.pool == "both" or c["reference"] == (config.pool == "reference")
        assert row["reference_rewards"] == [c["reward"] for c in known if c["reference"]]
        assert len(row["pairs"]) <= config.pairs_per_prompt
        for pair in row["pairs"]:
            chosen, rejected = (row["completions"][pair[side]] for side in ("chosen", "rejected"))
            assert chosen["reward"] > rejected["reward"]
            gap = chosen["quantile_reward"] - rejected["quantile_reward"]
            assert gap >= config.min_quantile_gap - 1e-9
            width = NormalDist().inv_cdf((1 + config.reward_interval) / 2)
            errors = (chosen["reward_se"] or 0) + (rejected["reward_se"] or 0)
            assert chosen["reward"] - rejected["reward"] > width * errors - 1e-9


@fuzz
@given(
    rows=prompts,
    config=configs,
    used=st.sampled_from(REWARDS),
    shuffled=st.randoms(use_true_random=False),
    batch=st.integers(1, 4),
)
def test_order_batches_and_shards_do_not_matter(
    tmp_path_factory: Any,
    rows: list[Row],
    config: SelectConfig,
    used: str,
    shuffled: random.Random,
    batch: int,
) -> None:
    config = replace(config, rewards=used)

    def outcome(selected: list[Row]) -> dict[str, Any]:
        return {
            row["prompt_id"]: [
                tuple(row["completions"][pair[side]]["completion_id"] for side in ("chosen", "rejected"))
                for pair in row["pairs"]
            ]
            or sorted(c["completion_id"] for c in row["completions"])
            for row in selected
        }

    folder = tmp_path_factory.mktemp("select")
    first, _ = select(folder / "a", rows, config)
    again, _ = select(folder / "b", rows, config, batch=batch)
    assert again == first
    moved = [
        row | {"completions": shuffled.sample(row["completions"], len(row["completions"]))} for row in rows
    ]
    shuffled.shuffle(moved)
    other, _ = select(folder / "c", moved, config)
    assert outcome(other) == outcome(first)


def test_quantiles_by_hand() -> None:
    # Row 0: references 1, 2, 2, 4 and offline 3; row 1: references 5, 5.
    row = np.array([0, 0, 0, 0, 0, 1, 1])
    reward = np.array([1.0, 2.0, 2.0, 4.0, 3.0, 5.0, 5.0])
    reference = np.array([True, True, True, True, False, True, True])
    ranks = rank_rewards(row, reward, reference)
    third, sixth = 1 / 3, 1 / 6
    expected = {
        "inclusive": [0.25, 0.75, 0.75, 1.0, 0.75, 1.0, 1.0],
        "mid_rank": [0.125, 0.5, 0.5, 0.875, 0.75, 0.5, 0.5],
        "leave_one_out": [0.0, third + sixth, third + sixth, 1.0, 0.75, 0.5, 0.5],
    }
    for method, values in expected.items():
        np.testing.assert_allclose(quantile_rewards(ranks, reference, method), values, rtol=1e-15)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=15))
def test_quantiles_are_monotone_and_unbiased(made: list[tuple[int, bool]]) -> None:
    reward = np.array([float(r) for r, _ in made])
    reference = np.array([True, True, *(ref for _, ref in made[2:])])
    ranks = rank_rewards(np.zeros(len(made), dtype=np.int64), reward, reference)
    for method in METHODS:
        quantile = quantile_rewards(ranks, reference, method)
        assert (np.diff(quantile[np.argsort(reward, kind="stable")])[np.diff(np.sort(reward)) > 0] >= 0).all()
        if method != "inclusive":
            np.testing.assert_allclose(quantile[reference].mean(), 0.5, atol=1e-12)


def test_recipe_bands_by_hand(tmp_path: Path) -> None:
    # Ten references with rewards 0..9: quantiles 0.1 .. 1.0, worst band 0.1 and 0.2.
    row = rewarded_row("bands", [(i, float(i), True) for i in range(10)])
    [selected], _ = select(tmp_path, [row], SelectConfig(strategy="quantile_bands", pairs_per_prompt=5))
    rewards = [
        tuple(selected["completions"][pair[side]]["reward"] for side in ("chosen", "rejected"))
        for pair in selected["pairs"]
    ]
    assert rewards[0] == (9.0, 1.0)  # the best of the worst band, not the worst of all
    assert all(chosen >= 4 > rejected for chosen, rejected in rewards[1:4])
    assert rewards[4][0] > rewards[4][1]
    assert sorted(r for pair in rewards for r in pair) == [float(i) for i in range(10)]


def test_random_choices_cover_the_pool_and_follow_the_seed(tmp_path: Path) -> None:
    rows = [rewarded_row(i, [(t, float(t), True) for t in range(6)]) for i in range(300)]

    def rejected(seed: int) -> list[float]:
        selected, _ = select(tmp_path / str(seed), rows, SelectConfig(strategy="best_random", seed=seed))
        return [row["completions"][row["pairs"][0]["rejected"]]["reward"] for row in selected]

    counts = Counter(rejected(0))
    assert set(counts) == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert max(counts.values()) < 90  # 60 expected, standard deviation 7
    assert rejected(1) != rejected(0)


def test_every_drop_has_a_name(tmp_path: Path) -> None:
    rows = [
        rewarded_row("few", [(1, 1.0, True), (2, 2.0, False)]),
        rewarded_row("tie", [(1, 1.0, True), (2, 1.0, True)]),
        rewarded_row("same", [(1, 1.0, True), (1, 1.0, True), (2, 3.0, False)]),
        rewarded_row("good", [(1, 1.0, True), (2, 2.0, True)]),
        rewarded_row("none", []),
    ]
    selected, stats = select(tmp_path, rows, SelectConfig())
    assert [row["messages"] for row in selected] == [rows[3]["messages"]]
    assert stats.dropped == {"too_few_references": 2, "all_rewards_tie": 2}
    selected, stats = select(tmp_path / "offline", rows, SelectConfig(pool="offline"))
    assert stats.dropped == {"too_few_references": 2, "empty_pool": 2, "no_pair": 1}
    with pytest.raises(EmptyDataset, match="2 empty_pool, 1 no_pair, 2 too_few_references"):
        Dataset.open(str(tmp_path / "offline" / "out"))


def test_estimates_whose_intervals_overlap_are_no_pair(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        rewarded_row("close", [(102, 0.0, True), (103, 0.9, True), (2, 0.35, True)]),
        rewarded_row("apart", [(102, 0.0, True), (103, 1.5, True), (107, 1.1, True)]),
        rewarded_row("exact", [(1, 0.0, True), (100, 1e-3, True)]),
    ]
    selected, stats = select(tmp_path / "a", rows, SelectConfig(pairs_per_prompt=3, strategy="random_pairs"))
    assert [row["messages"] for row in selected] == [row["messages"] for row in rows[1:]]
    assert stats.dropped == {"rewards_overlap": 1}
    assert stats.counts["pairs"] == 3
    _, stats = select(tmp_path / "b", rows, SelectConfig(reward_interval=0.5))
    assert not stats.dropped
    _, stats = select(tmp_path / "c", rows[:1], SelectConfig())
    assert stats.dropped == {"rewards_overlap": 1}
    assert "select_reward_interval (0.95)" in caplog.text


def test_a_sampled_copy_stands_for_an_offline_one(tmp_path: Path) -> None:
    row = rewarded_row("copy", [(1, 1.0, False), (1, 1.0, True), (2, 0.0, True)])
    [selected], stats = select(tmp_path, [row], SelectConfig(pool="both"))
    assert [(c["token_ids"], c["reference"]) for c in selected["completions"]] == [([1], True), ([2], True)]
    assert stats.counts["completions_duplicate"] == 1


def test_the_manifest_tells_what_was_done(tmp_path: Path) -> None:
    rows = [rewarded_row(i, [(t, float(min(t, 3)), True) for t in range(5)]) for i in range(4)]
    _, stats = select(
        tmp_path, rows, SelectConfig(strategy="top_bottom_k", k=2, pairs_per_prompt=2, pool="both")
    )
    manifest = Dataset.open(str(tmp_path / "out")).manifest
    assert manifest.slug == "top_bottom_k-pairs2-inclusive-both"
    assert manifest.extra["pairwise"] is True
    assert "5.0 reference rewards a prompt" in manifest.extra["note"]
    assert "0.60" in manifest.extra["note"]
    metrics = stats.metrics()
    assert metrics["pairs"] == 8
    assert metrics["references_mean"] == 5
    assert metrics["reference_tied_mean"] == pytest.approx(0.4)
    assert 0.4 <= metrics["quantile_gap_mean"] <= 0.8


def test_bad_rewards_and_ids_are_refused(tmp_path: Path) -> None:
    good = [(1, 1.0, True), (2, 2.0, True)]
    for name, value in (("nan", float("nan")), ("inf", float("inf")), ("null", None)):
        row = rewarded_row(name, good)
        row["completions"][1]["reward"] = value
        with pytest.raises(DataError, match="1 of 2 completions of a batch have no finite reward"):
            select(tmp_path / name, [row], SelectConfig())
        assert not (tmp_path / name / "out" / "manifest.json").exists()
    row = rewarded_row("id", good)
    row["completions"][0]["completion_id"] = "first"
    with pytest.raises(DataError, match="id 'first': expected a content hash"):
        select(tmp_path / "id", [row], SelectConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "best"}, r"strategy='best': expected one of all, best_random, best_worst"),
        ({"quantile": "median"}, r"quantile='median': expected one of inclusive, leave_one_out, mid_rank"),
        ({"rewards": "shuffle"}, r"rewards='shuffle': expected one of .*did you mean shuffled"),
        (
            {"rewards": "shuffled", "strategy": "labels"},
            r"rewards='shuffled': expected as_given where",
        ),
        ({"pool": "all"}, r"pool='all': expected one of both, offline, reference"),
        ({"pairs_per_prompt": 0}, r"pairs_per_prompt=0: expected 1 or more"),
        ({"k": 0}, r"k=0: expected 1 or more"),
        ({"min_references": 0}, r"min_references=0: expected 1 or more"),
        ({"min_references": 1, "quantile": "leave_one_out"}, r"min_references=1: expected 2 or more"),
        ({"min_quantile_gap": 1.5}, r"min_quantile_gap=1.5: expected a quantile, from 0 to 1"),
        (
            {"worst_quantile": 0.7, "best_quantile": 0.7},
            r"worst_quantile=0.7: expected less than best_quantile",
        ),
    ],
)
def test_settings_are_checked_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(SelectConfig, settings, "select")


def test_component_runs_the_stage(tmp_path: Path, make_dataset: Callable[..., Dataset]) -> None:
    from kfp import dsl

    from kubealign_components.select.component import select as component

    rows = [rewarded_row(i, [(t, float(t), True) for t in range(4)]) for i in range(3)]
    source = make_dataset(rows, REWARDED)
    rewarded = dsl.Dataset(name="rewarded", uri=source.uri, metadata={"schema": REWARDED})
    dataset = dsl.Dataset(name="dataset", uri=str(tmp_path / "selected"), metadata={})
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "metrics"), metadata={})
    report = dsl.HTML(name="report", uri=str(tmp_path / "report.html"))
    component.python_func(
        rewarded=rewarded,
        dataset=dataset,
        metrics=metrics,
        report=report,
        pairs_per_prompt=2,
        options={"worst_quantile": 0.3},
    )
    assert Path(report.path).read_text().startswith("<!doctype html>")
    assert dataset.metadata["schema"] == SELECTION
    assert dataset.metadata["slug"].endswith("best_worst-pairs2-inclusive")
    assert metrics.metadata["pairs"] == 6
