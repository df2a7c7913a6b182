"""The page of a dataset: its numbers are those of the rows, whatever stage made them, and it stays small."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubealign_components.data.dataset import Dataset, DatasetWriter
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.schemas import (
    COMPLETIONS,
    JUDGED,
    PROMPTS,
    REWARDED,
    SELECTION,
    TRAINING,
    new_completion,
)
from kubealign_components.data.stats import Stats
from kubealign_components.reports import columns as columns_of
from kubealign_components.reports.columns import read_columns
from kubealign_components.reports.rows import marked, rows_page
from kubealign_components.reports.samples import LONGEST, SHARDS, SPANS, distinct, spread_rows
from support.datasets import MakeDataset
from support.pages import Page
from support.tiny import prompt_row

ATTACK = "<script>alert(1)</script>"


def completion(i: int, reward: float | None = None, tokens: int | None = 5, **more: Any) -> dict[str, Any]:
    text = json.dumps([{"role": "assistant", "content": f"answer {i} {ATTACK}"}])
    fields = {"completion_id": f"c{i}", "reference": True, "model": "tiny", "finish_reason": "stop"} | more
    return new_completion(messages=text, num_tokens=tokens, reward=reward, **fields)


def row(i: int, completions: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    base = prompt_row(f"prompt {i} {ATTACK}", [])
    return base | {"source": f"source-{i % 2}", "prompt_tokens": 7 + i, "completions": completions} | more


def test_numbers_of_rewarded_rows(make_dataset: MakeDataset) -> None:
    rows = [row(i, [completion(10 * i + k, reward=k / 4, tokens=k + 1) for k in range(3)]) for i in range(6)]
    rows[0]["completions"][1]["completion_id"] = "c0"  # the same text twice
    rows[5]["completions"][2]["finish_reason"] = "length"
    dataset = make_dataset(rows, REWARDED)
    read = read_columns(dataset)
    assert read.reward.tolist() == [0.0, 0.25, 0.5] * 6
    assert read.prompt.tolist() == [i for i in range(6) for _ in range(3)]
    assert read.finish_reasons == {"stop": 17, "length": 1}
    assert read.repeated == 1 and read.prompt_tokens.tolist() == [7, 8, 9, 10, 11, 12]
    page = Page(rows_page(dataset))
    for title in ("Prompt lengths", "Completion lengths", "Rewards", "Spread of a prompt's rewards"):
        assert title in page.charts
    assert "Reward against length (correlation +1.00)" in page.charts
    assert not {"Drift from the sampler", "Rewards of pairs"} & set(page.charts)
    assert ["source-0", "3", "9", "2.0", "0.2500"] in page.rows
    assert ["length", "1"] in page.rows
    assert f"answer 10 {ATTACK}" in page.text and page.loaded == []
    assert page.scripts == []


def test_what_was_sampled_is_counted_by_runs_of_tokens(make_dataset: MakeDataset) -> None:
    def sampled(*texts: list[int]) -> list[dict[str, Any]]:
        return [
            completion(i, token_ids=text, sampler_logprob=-1.0, tokens=len(text))
            for i, text in enumerate(texts)
        ]

    rows = [row(0, sampled([1, 2, 3], [1, 2, 3])), row(1, sampled([4, 5], [6, 7])), row(2, sampled([8, 9]))]
    rows[1]["completions"].append(completion(9, token_ids=[4, 5]))  # offline: nobody sampled it
    page = Page(rows_page(make_dataset(rows, COMPLETIONS)))
    assert "of 2 prompts" in page.text
    assert ["1", "75.0%", "70.0%"] in page.rows  # 3 of 6 and 4 of 4; 7 of 10
    assert ["2", "75.0%", "66.7%"] in page.rows  # 2 of 4 and 2 of 2; 4 of 6
    assert ["3", "50.0%", "50.0%"] in page.rows  # 1 of 2, and texts of two tokens have none
    assert "Distinct-n" not in Page(rows_page(make_dataset(rows[2:], COMPLETIONS))).text


def test_languages_of_prompts_and_completions_are_told(make_dataset: MakeDataset) -> None:
    german = "Bitte erkläre mir in einfachen Worten, warum der Himmel am Abend rot wird."
    english = "Please explain to me in simple words why the sky turns red in the evening."
    answer = json.dumps([{"role": "assistant", "content": english}])
    rows = [prompt_row(text, []) for text in (german, german, english, "1 + 1")]
    rows[0]["completions"] = [new_completion(completion_id="c", messages=answer)]
    page = Page(rows_page(make_dataset(rows, PROMPTS)))
    assert ["de", "2", "0"] in page.rows and ["en", "1", "1"] in page.rows
    assert ["not clear", "1", "0"] in page.rows


@pytest.mark.parametrize(("rows", "shards"), [(3, 1), (104, 1), (700, 1), (900, 6)])
def test_rows_that_are_looked_at_are_of_everywhere_and_none_twice(
    rows: int, shards: int, make_dataset: MakeDataset
) -> None:
    dataset = make_dataset([prompt_row(str(i), []) for i in range(rows)], PROMPTS, shards=shards)
    seen = [one["prompt_id"] for one in spread_rows(dataset, ["prompt_id"], 100)]
    assert len(seen) == len(set(seen)) and min(rows, 100) <= len(seen) <= 100 + SHARDS * SPANS
    each = [one["prompt_id"] for one in dataset.iter_rows(["prompt_id"])]
    assert {each.index(one) * 3 // rows for one in seen} == {0, 1, 2}


def test_weights_wanted_and_got_are_told_of_a_mix(make_dataset: MakeDataset) -> None:
    dataset = make_dataset([row(0, [completion(1)])], COMPLETIONS, stage="mix", params={"temperature": 2.0})
    mixed = {
        "large": {"weight": 1.0, "before": 400, "after": 20},
        "small": {"weight": 2.0, "before": 100, "after": 40},
    }
    page = Page(rows_page(Dataset(dataset.uri, replace(dataset.manifest, extra={"sources": mixed}))))
    assert ["small", "2", "100", "40", "50.0%", "66.7%"] in page.rows
    assert ["large", "1", "400", "20", "50.0%", "33.3%"] in page.rows
    assert "Weights" not in Page(rows_page(dataset)).text


def test_what_says_nothing_is_not_shown(make_dataset: MakeDataset) -> None:
    offline = [completion(1, tokens=None, finish_reason=None)]
    page = Page(rows_page(make_dataset([row(0, offline)], COMPLETIONS)))
    assert ["source-0", "1", "1"] in page.rows  # no column of tokens and rewards
    assert "How completions ended" not in page.text
    imported = Page(rows_page(make_dataset([prompt_row("a question", [])] * 2, PROMPTS)))
    assert "Prompt lengths" in imported.charts and "characters" in imported.text


def test_pairs_of_a_selection_and_of_training_are_set_side_by_side(make_dataset: MakeDataset) -> None:
    two = [completion(1, 0.9, 9, quantile_reward=1.0), completion(2, 0.1, 3, quantile_reward=0.0)]
    selected = make_dataset([row(0, two[::-1], pairs=[{"chosen": 1, "rejected": 0}])] * 3, SELECTION)
    training = make_dataset(
        [
            {
                "example_id": str(i),
                "prompt_id": "p",
                "source": "s",
                "split": "train",
                "messages": row(0, [])["messages"],
                "completions": two,
            }
            for i in range(3)
        ],
        TRAINING,
    )
    for dataset in (selected, training):
        read = read_columns(dataset)
        assert read.reward[read.chosen].tolist() == [0.9] * 3
        assert read.reward[read.rejected].tolist() == [0.1] * 3
        text = rows_page(dataset)
        page = Page(text)
        assert {"Rewards of pairs", "Quantile rewards of pairs", "Lengths of pairs"} <= set(page.charts)
        assert "chosen is longer 100.0%" in page.text
        assert "<ins>1</ins>" in text and "<del>2</del>" in text


def test_log_probabilities_and_their_drift(make_dataset: MakeDataset) -> None:
    one = completion(1, sampler_logprob=-10.0, logprob=-5.0)
    page = Page(rows_page(make_dataset([row(0, [one, completion(2, logprob=None)])], COMPLETIONS)))
    assert {"Reference log-probabilities", "Drift from the sampler"} <= set(page.charts)


def test_prompts_alone_have_a_page_and_so_has_nothing(make_dataset: MakeDataset) -> None:
    prompts = make_dataset([prompt_row("hello", [])], PROMPTS)
    assert Page(rows_page(prompts)).charts == ["Prompt lengths"]
    for schema in (PROMPTS, COMPLETIONS, JUDGED, SELECTION, TRAINING):
        assert "0 of 0 rows came through test" in Page(rows_page(make_dataset([], schema))).text


def test_what_was_dropped_is_shown_with_its_reason(tmp_path: Path) -> None:
    """Completions that a filter dropped, and rows of a source that nobody could read."""
    hidden = {"completions_hidden_by_template": [{"prompt_id": "p" * 64, "text": ATTACK}]}
    bad = [{"source": "s", "file": "a.jsonl", "row": 7, "reason": "bad_json", "text": "{" * 9}]
    for extra, cells in (
        ({"dropped_examples": hidden}, ["completions hidden by template", f"prompt {'p' * 12}", ATTACK]),
        ({"malformed": bad}, ["bad json", "s: a.jsonl row 7", "{" * 9]),
    ):
        uri = str(tmp_path / cells[0])
        with DatasetWriter(uri, PROMPTS, derive("filter", 1, {})) as writer:
            page = Page(rows_page(writer.commit(Stats(), extra)))
        assert cells in page.rows and page.scripts == []


def test_of_many_prompts_every_few_are_looked_at(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns_of, "PROMPTS", 4)
    dataset = make_dataset([row(i, [completion(i, float(i))]) for i in range(11)], REWARDED)
    read = read_columns(dataset)
    assert read.stride == 3 and read.reward.tolist() == [0, 3, 6, 9]
    assert "of every 3th prompt" in Page(rows_page(dataset)).text


@pytest.mark.parametrize("reward", [math.inf, math.nan, None])
def test_what_is_no_number_is_not_drawn(make_dataset: MakeDataset, reward: float | None) -> None:
    dataset = make_dataset([row(i, [completion(i, reward)]) for i in range(3)], REWARDED)
    assert "Rewards" not in Page(rows_page(dataset)).charts


def test_a_page_of_long_texts_stays_small(make_dataset: MakeDataset) -> None:
    long = json.dumps([{"role": "assistant", "content": "'" * 100_000}])
    rows = [row(i, [completion(k, 0.5) | {"messages": long} for k in range(20)]) for i in range(12)]
    assert len(rows_page(make_dataset(rows, REWARDED)).encode()) < 2_000_000


def test_words_that_differ_are_marked_and_escaped() -> None:
    one, other = marked("a <b> c", "a <b> d e")
    assert one == "a &lt;b&gt; <ins>c</ins>"
    assert other == "a &lt;b&gt; <del>d e</del>"
    assert np.array_equal(marked("", ""), ("", ""))


@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 2**20, 2**21 - 1]), max_size=6), max_size=4))
def test_distinct_runs_are_counted_as_by_a_set_of_them(sequences: list[list[int]]) -> None:
    arrays = [np.array(one, np.int64) for one in sequences]
    for n in range(1, LONGEST + 1):
        runs = [tuple(one[i : i + n]) for one in sequences for i in range(len(one) - n + 1)]
        assert distinct(arrays, n) == (len(set(runs)) / len(runs) if runs else None)


def test_counting_distinct_runs_takes_some_bytes_a_token() -> None:
    """Of 400 prompts with 64 completions of 2,000 tokens they are 50 million, in a pod of 4 GiB."""
    tokens = np.random.default_rng(0).integers(0, 150_000, 100_000)
    tracemalloc.start()
    distinct([tokens], LONGEST)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 * len(tokens)
