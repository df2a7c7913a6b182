"""A range of draws on this machine: who is settled is left alone, and nothing is drawn or rewarded twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kubealign import Results, RunFile, run_local
from kubealign_components.data.slices import KEY
from support.small_run import small_run

ROWS = [
    {"prompt": f"Tell me about {topic}."} for topic in ("tides", "bread", "chess", "bees", "maps", "wool")
]
FROM, TO = 2, 4


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("output")


@pytest.fixture(scope="module")
def drawn(tiny_model: Path, output: Path) -> Results:
    """DPO on the best and worst of two to eight samples; a reward of two values settles early."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        parameters = small_run(
            tiny_model,
            output.parent / "prompts.jsonl",
            ROWS,
            sample_n={"from": FROM, "to": TO, "within": 0.5},
        )
        return run_local(RunFile(parameters=parameters), output=output, name="drawn")


def finished(output: Path, stage: str) -> Counter[str]:
    """How often each result of ``stage`` was made."""
    return Counter(
        key
        for file in (output / "work" / stage).glob("*/data/*.parquet")
        for key in pq.read_table(file)[KEY].to_pylist()
    )


def test_only_who_is_not_settled_is_drawn_more_of(drawn: Results, output: Path) -> None:
    asked = drawn.datasets["draw_more"].rows
    assert 0 < asked < len(ROWS)
    assert drawn.datasets["draw_more"].manifest.stats["dropped"] == {"resolved": len(ROWS) - asked}
    assert [len(row["completions"]) for row in drawn.datasets["sample-2"].iter_rows()] == [TO] * asked
    made = finished(output, "sample")
    assert set(made.values()) == {1}, "what was drawn is taken over"
    assert len(made) == FROM * len(ROWS) + (TO - FROM) * asked
    assert set(finished(output, "rewards").values()) == {1}


def test_pairs_are_best_and_worst_of_all_draws_and_policies_are_compared_by_the_first(drawn: Results) -> None:
    joined = {row["prompt_id"]: row["completions"] for row in drawn.datasets["join_draws"].iter_rows()}
    number = Counter(len(completions) for completions in joined.values())
    asked = drawn.datasets["draw_more"].rows
    assert number == {TO: asked, FROM: len(ROWS) - asked}
    numbers = drawn.datasets["join_draws"].manifest.stats["numbers"]
    assert {n: numbers[f"prompts_with_{n}_draws"] for n in number} == number
    assert 0.5 < numbers["share_of_tokens"] < 1
    for row in drawn.datasets["select"].iter_rows():
        rewards = [c["reward"] for c in joined[row["prompt_id"]]]
        [pair] = row["pairs"]
        chosen, rejected = (row["completions"][pair[side]]["reward"] for side in ("chosen", "rejected"))
        assert (chosen, rejected) == (max(rewards), min(rewards))
    for row in drawn.datasets["evaluate"].iter_rows():
        assert len(row["reference"]) == len(row["aligned"]) == FROM
    assert drawn.model is not None
    assert drawn.parameters["sample_n"] == {"from": FROM, "to": TO, "within": 0.5}
