"""rank: rewards of the tiny model's comparisons, and of a judge whose mind is known, whatever the chunks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import kendalltau

from kubealign_components.config import from_parameters
from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.principles import Principle, PrincipleSet
from kubealign_components.data.schemas import COMPLETIONS, REWARDED, RewardedRow, TokenizedRow
from kubealign_components.data.stats import Stats
from kubealign_components.data.worker import Missing
from kubealign_components.engines.judge import Judgement, JudgeSpec, Pair, PairJudge
from kubealign_components.engines.judging_functions import JudgingFunction
from kubealign_components.errors import ConfigError
from kubealign_components.rank.bradley_terry import Comparisons, fit
from kubealign_components.rank.stage import RankConfig, RankStage, run
from support.tiny import prompt_row

MakeDataset = Callable[..., Dataset]
PRINCIPLES = """
schema: kubealign.principles/v1
name: two
version: 1
principles:
  - {name: Brief, positive: It is short., weight: 3}
  - {name: Kind, positive: It is kind.}
"""


@pytest.fixture
def principles(tmp_path: Path) -> str:
    (tmp_path / "two.yaml").write_text(PRINCIPLES)
    return str(tmp_path / "two.yaml")


def sampled_rows(texts: Sequence[Sequence[str]]) -> list[TokenizedRow]:
    """A prompt for each of ``texts``, which are its sampled completions."""
    rows = []
    for number, of_row in enumerate(texts):
        row = prompt_row(f"question {number}?", of_row)
        for position, completion in enumerate(row["completions"]):
            completion |= {"reference": True, "completion_id": f"{number:016x}{position:016x}"}
        rows.append(row)
    return rows


def ranked(
    dataset: Dataset, folder: Path, model: Path, chunks: int = 1, slice_rows: int = 64, **judge: object
) -> Dataset:
    planned = plan(dataset, work=str(folder / "work"), chunks=chunks)
    spec = JudgeSpec(judge=str(model), **judge)  # type: ignore[arg-type]
    config = RankConfig(judge=spec, resolved=1.0, slice_rows=slice_rows)
    return merge([run(config, chunk=chunk) for chunk in planned], planned, str(folder / f"ranked-{chunks}"))


def text_of(completion: object) -> str:
    assert isinstance(completion, dict)
    return str(json.loads(completion["messages"])[0]["content"])


def rewards_by_text(row: RewardedRow) -> dict[str, tuple[float, float | None]]:
    return {text_of(c): (c["reward"], c["reward_se"]) for c in row["completions"]}


def test_rewards_are_the_fit_to_what_the_model_says_in_both_orders(
    make_dataset: MakeDataset, tiny_model: Path, principles: str, tmp_path: Path
) -> None:
    texts = ["first", "second thing", "a third", "second thing"]
    dataset = make_dataset(sampled_rows([texts]), COMPLETIONS)
    made = ranked(dataset, tmp_path, tiny_model, principles=principles)
    [row] = made.iter_rows(of=RewardedRow)
    judge = PairJudge(JudgeSpec(judge=str(tiny_model), principles=principles))
    different = sorted(set(texts))
    pairs = [(0, 1), (0, 2), (1, 2)]
    judged = judge.judge([Pair(json.loads(row["messages"]), different[a], different[b]) for a, b in pairs])
    outcomes = []
    for judgements in judged:
        assert judgements is not None
        brief, kind = (expit([one.s12, one.s21]) for one in judgements)
        outcomes.append((3 * brief + kind) / 4)
    one, other = np.array(pairs).T
    first, second = np.array(outcomes).T
    expected = fit(3, Comparisons(one=one, other=other, shown_first=first, shown_second=second))
    assert [text_of(c) for c in row["completions"]] == texts
    for text, value, error in zip(different, expected.value, expected.error, strict=True):
        assert rewards_by_text(row)[text] == pytest.approx((value, error), abs=1e-4)
    assert made.manifest.schema == REWARDED
    stats = made.manifest.stats
    assert (stats["counts"]["comparisons"], stats["counts"]["reference_completions"]) == (3, 4)


def test_chunks_slices_and_the_order_of_completions_change_nothing(
    make_dataset: MakeDataset, tiny_model: Path, principles: str, tmp_path: Path
) -> None:
    texts = [[f"{n} is one", f"{n * n} is another", "none", "or so"] for n in range(4)]
    dataset = make_dataset(sampled_rows(texts), COMPLETIONS)
    whole = ranked(dataset, tmp_path / "a", tiny_model, principles=principles)
    cut = ranked(dataset, tmp_path / "b", tiny_model, 3, 1, principles=principles, token_budget=300)
    assert whole.manifest.fingerprint == cut.manifest.fingerprint
    shuffled = make_dataset(sampled_rows([[*of_row[::-1], of_row[0]] for of_row in texts]), COMPLETIONS)
    again = ranked(shuffled, tmp_path / "b", tiny_model, 2, principles=principles)
    assert again.manifest.stats["counts"]["rows_reused"] == 4
    for one, two, three in zip(
        *(made.iter_rows(of=RewardedRow) for made in (whole, cut, again)), strict=True
    ):
        for text, worth in rewards_by_text(one).items():
            assert rewards_by_text(two)[text] == pytest.approx(worth, abs=1e-4)
            assert rewards_by_text(three)[text] == rewards_by_text(two)[text]


def test_what_is_too_long_to_compare_is_left_out_and_counted(
    make_dataset: MakeDataset, tiny_model: Path, principles: str, tmp_path: Path
) -> None:
    rows = sampled_rows([["short", "brief", "long " * 300], ["alone"]])
    made = ranked(
        make_dataset(rows, COMPLETIONS), tmp_path, tiny_model, principles=principles, max_length=450
    )
    first, second = made.iter_rows(of=RewardedRow)
    assert sorted(rewards_by_text(first)) == ["brief", "short"]
    assert rewards_by_text(second) == {"alone": (0.0, 0.0)}
    counts = made.manifest.stats["counts"]
    assert (counts["completions_over_length"], counts["pairs_over_length"]) == (1, 2)
    assert counts["comparisons"] == 1  # nothing is compared with itself
    assert made.manifest.stats["sums"]["consistent"][1] == 1


def test_functions_rank_by_what_they_see_of_a_text(
    make_dataset: MakeDataset, tiny_model: Path, principles: str, tmp_path: Path
) -> None:
    rows = sampled_rows([["whole", "cut", "whole"]])
    rows[0]["completions"][1]["finish_reason"] = "length"
    finished = {"kind": "regex", "pattern": ".*", "finished": True}
    functions = tuple(
        JudgingFunction(principle=name, function="format_match", settings=finished)
        for name in ("Brief", "Kind")
    )
    made = ranked(
        make_dataset(rows, COMPLETIONS), tmp_path, tiny_model, principles=principles, functions=functions
    )
    worth = rewards_by_text(next(made.iter_rows(of=RewardedRow)))
    assert worth["whole"][0] > 0 > worth["cut"][0]
    by_rank = [step for step in made.manifest.recipe.values() if step["stage"] == "rank"]
    assert [step.get("models", {}) for step in by_rank] == [{}]  # no model was asked


def test_results_are_kept_by_what_functions_see_where_there_are_some() -> None:
    rows = sampled_rows([["whole", "cut", "whole"]]) * 3
    rows[1:] = [{**row, "completions": [dict(c) for c in row["completions"][::-1]]} for row in rows[1:]]
    rows[2]["completions"][1]["finish_reason"] = "length"
    judge = PlantedJudge()
    stage = RankStage(judge, comparisons=3, resolved=1)  # type: ignore[arg-type]
    plain = [stage.keys(row) for row in rows]
    assert plain[0] == plain[1] == plain[2]
    function = JudgingFunction(principle="Even", function="brevity", settings={})
    judge.spec = JudgeSpec(judge="planted", functions=(function,))
    seen = [stage.keys(row) for row in rows]
    assert seen[0] == seen[1] != seen[2]


class PlantedJudge:
    """Finds a text better by its number, more so when it is shown first; under Odd the other way round."""

    principles = PrincipleSet(
        name="planted",
        version=1,
        principles=(Principle(name="Even", positive="x", weight=9.0), Principle(name="Odd", positive="y")),
    )

    spec = JudgeSpec(judge="planted")

    def __init__(self) -> None:
        self.asked: list[Pair] = []

    def judge(self, pairs: Sequence[Pair]) -> Iterator[list[Judgement]]:
        self.asked += pairs
        for pair in pairs:
            gap = (float(pair.first) - float(pair.second)) / 3
            yield [Judgement("Even", gap + 1, gap - 1), Judgement("Odd", 1 - gap, -gap - 1)]


def test_few_pairs_find_the_order_that_a_judge_has_in_mind() -> None:
    judge = PlantedJudge()
    stage = RankStage(judge, comparisons=3, resolved=0.99)  # type: ignore[arg-type]
    rows = sampled_rows([[str(n) for n in range(16)], [str(n) for n in range(0, 20, 2)]])
    missing = [Missing(row, tuple(stage.keys(row)), (0,)) for row in rows]
    stats = Stats()
    for (one, results), row in zip(stage.compute(iter([missing])), rows, strict=True):
        assert one.row is row
        made = stage.apply(row, results)
        stage.summarise([made], stats)
        rewards = [c["reward"] for c in made["completions"]]
        assert kendalltau(rewards, range(len(rewards))).statistic >= 0.9
        assert sum(rewards) == pytest.approx(0, abs=1e-6)
    assert stats.counts["comparisons"] == len(judge.asked) <= 3 * (16 + 10)
    assert len({(p.messages[0]["content"], p.first, p.second) for p in judge.asked}) == len(judge.asked)
    assert stats.metrics()["prefers_position_a_mean"] == pytest.approx(1, abs=0.2)


def test_settings_of_the_judge_stand_under_its_name() -> None:
    options = {"judge": {"max_length": 99}, "comparisons": 2}
    config = from_parameters(
        RankConfig, {"judge": "some/model", "principles": "judging", "options": options}, "rank"
    )
    assert (config.judge.judge, config.judge.max_length, config.comparisons) == ("some/model", 99, 2)
    with pytest.raises(ConfigError, match=r"comparisons=0\.5"):
        RankConfig(judge=config.judge, comparisons=0.5)
