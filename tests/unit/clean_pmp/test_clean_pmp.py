"""clean_pmp: what rows of each kind say, and no trace of the order in which sources say it."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp import dsl

from kubealign_components.clean_pmp.component import clean_pmp
from kubealign_components.clean_pmp.pairs import looks_like_pair, read_pair
from kubealign_components.clean_pmp.stage import CleanPmpConfig, PmpSource, run
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import PREFERENCES, pair_id
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.sources.source import Unwanted
from kubealign_components.sources.values import Malformed
from support.source_files import write_withdrawal

Row = dict[str, Any]
Cleaned = Callable[..., tuple[list[Row], Stats, Dataset]]


@pytest.fixture
def cleaned(tmp_path: Path) -> Cleaned:
    """``cleaned(rows, …, **settings)``: one source a list of rows."""
    made = 0

    def make(*sources: list[Row], **given: Any) -> tuple[list[Row], Stats, Dataset]:
        nonlocal made
        made += 1
        folder = tmp_path / str(made)
        folder.mkdir()
        found = []
        limit = given.pop("limit", 0)
        for i, rows in enumerate(sources):
            (folder / f"{i}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            found.append(PmpSource(name=f"source{i}", uri=str(folder / f"{i}.jsonl"), max_rows=limit))
        stats = run(CleanPmpConfig(sources=tuple(found), **given), output=str(folder / "out"))
        dataset = Dataset.open(str(folder / "out"), PREFERENCES, allow_empty=True)
        rows = [row | {"metadata": json.loads(row["metadata"])} for row in dataset.iter_rows()]
        return rows, stats, dataset

    return make


def shp(history: str, a: str, b: str, label: int, scores: tuple[int, int], **columns: Any) -> Row:
    names = {"history": history, "human_ref_A": a, "human_ref_B": b, "labels": label}
    ratio = max(scores) / min(scores)
    return names | {"score_A": scores[0], "score_B": scores[1], "score_ratio": ratio} | columns


def plain(number: object, chosen: str = "Good.", rejected: str = "Bad.", **columns: Any) -> Row:
    return {"prompt": f"Question {number}?", "chosen": chosen, "rejected": rejected, **columns}


def texts(row: Row) -> list[str]:
    """The preferred completion and the other one."""
    both = [json.loads(c["messages"])[0]["content"] for c in row["completions"]]
    return [both[row["preferred"]], both[1 - row["preferred"]]]


def test_shp_rows_are_kept_above_the_ratio(cleaned: Cleaned) -> None:
    rows = [
        shp("Why is the sky blue?", "Scattering.", "No idea.", 1, (30, 10), domain="askscience"),
        shp("Why is grass green?", "No idea.", "Chlorophyll.", 0, (3, 9)),
        shp("Exactly twice?", "A", "B", 1, (4, 2)),
        shp("Why?", "A", "", 1, (40, 2)),
    ]
    made, stats, _ = cleaned(rows)
    assert {json.loads(r["messages"])[0]["content"]: (texts(r), r["margin"]) for r in made} == {
        "Why is the sky blue?": (["Scattering.", "No idea."], 20.0),
        "Why is grass green?": (["Chlorophyll.", "No idea."], 6.0),
    }
    assert stats.dropped == Counter(low_score_ratio=1, empty_completion=1)
    assert {tuple(r["principles"]) for r in made} == {()}
    sky = next(r for r in made if r["margin"] == 20.0)
    assert sky["metadata"]["source"]["domain"] == "askscience"
    assert sorted(sky["metadata"]["scores"]) == [10.0, 30.0]
    assert sky["metadata"]["scores"][sky["preferred"]] == 30.0
    assert len(cleaned(rows, min_score_ratio=1.5)[0]) == 3


def test_the_ratio_is_computed_where_the_column_is_missing(cleaned: Cleaned) -> None:
    row = shp("Why?", "A", "B", 1, (9, 3))
    del row["score_ratio"]
    assert len(cleaned([row])[0]) == 1
    assert cleaned([row], min_score_ratio=3.0)[1].dropped == Counter(low_score_ratio=1)


def test_hh_prompts_end_where_the_assistant_is_due(cleaned: Cleaned) -> None:
    shared = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Tell me a joke\n\nAssistant: Why did "
    made, _, _ = cleaned([{"chosen": f"{shared}the hen cross?", "rejected": f"{shared}you ask?"}])
    (row,) = made
    assert json.loads(row["messages"]) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Tell me a joke"},
    ]
    assert texts(row) == ["Why did the hen cross?", "Why did you ask?"]
    assert row["margin"] is None


WORDS = st.text("ab ", min_size=1, max_size=6).filter(lambda text: bool(text.strip()))


@given(st.lists(st.tuples(WORDS, WORDS), max_size=3), WORDS, WORDS, WORDS)
def test_hh_is_split_at_the_longest_common_beginning_walked_back_to_the_assistant_mark(
    before: list[tuple[str, str]], last: str, chosen: str, rejected: str
) -> None:
    start = "".join(f"\n\nHuman: {human}\n\nAssistant: {assistant}" for human, assistant in before)
    start += f"\n\nHuman: {last}\n\nAssistant: "
    both = [start + chosen, start + rejected]
    try:
        row = read_pair({"chosen": both[0], "rejected": both[1]}, "preference", "hh", 2.0)
    except Unwanted as reason:
        assert reason.reason == "identical_completions"
        assert chosen.strip() == rejected.strip()
        return
    common = os.path.commonprefix(both)  # noqa: RUF071
    mark = common.rindex("\n\nAssistant:") + len("\n\nAssistant:")
    tails = [text[mark:].strip() for text in both]
    assert texts(row) == tails
    turns = json.loads(row["messages"])
    assert len(turns) == 2 * len(before) + 1
    assert [turn["content"] for turn in turns[::2]] == [*(human.strip() for human, _ in before), last.strip()]


def test_conversations_that_part_early_are_counted(cleaned: Cleaned) -> None:
    chosen = "\n\nHuman: Hi\n\nAssistant: A\n\nHuman: More\n\nAssistant: B"
    rejected = "\n\nHuman: Hi\n\nAssistant: C"
    made, stats, _ = cleaned([{"chosen": chosen, "rejected": rejected}, plain(1)])
    assert len(made) == 1
    assert stats.dropped == Counter(completion_of_several_turns=1)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(plain("", score_chosen=5, score_rejected=2), id="preference"),
        pytest.param(
            {
                "conversations": [{"from": "human", "value": "Question ?"}],
                "chosen": {"from": "gpt", "value": "Good."},
                "rejected": {"from": "gpt", "value": "Bad."},
            },
            id="sharegpt",
        ),
        pytest.param(
            {"input_text": "Question ?", "candidate_0": "Bad.", "candidate_1": "Good.", "choice": 1},
            id="candidates",
        ),
    ],
)
def test_every_source_of_pairs_is_read(cleaned: Cleaned, row: Row) -> None:
    (made,), _, _ = cleaned([row])
    assert texts(made) == ["Good.", "Bad."]
    assert json.loads(made["messages"]) == [{"role": "user", "content": "Question ?"}]
    assert made["margin"] == (3.0 if "score_chosen" in row else None)
    ids = [c["completion_id"] for c in made["completions"]]
    assert made["pair_id"] == pair_id(made["prompt_id"], ids)


def test_scores_that_contradict_the_label_give_no_margin(cleaned: Cleaned) -> None:
    (row,), stats, _ = cleaned([plain(1, score_chosen=1, score_rejected=4)])
    assert (texts(row), row["margin"]) == (["Good.", "Bad."], None)
    assert stats.counts["margin_contradicts_label"] == 1


def test_the_better_completion_is_first_half_of_the_time_and_for_good(cleaned: Cleaned) -> None:
    rows = [plain(i, f"Good {i}.", f"Bad {i}.") for i in range(400)]
    made, stats, _ = cleaned(rows)
    assert Counter(row["preferred"] for row in made)[0] == pytest.approx(200, abs=40)
    assert stats.counts["swapped"] == pytest.approx(200, abs=40)
    for row in made:
        ids = [c["completion_id"] for c in row["completions"]]
        assert row["metadata"]["swapped"] == (ids[0] > ids[1])
    shuffled, _, _ = cleaned(random.Random(0).sample(rows, 400))
    assert shuffled == made
    other, _, _ = cleaned(rows, seed=1)
    assert [row["preferred"] for row in other] != [row["preferred"] for row in made]
    assert [texts(row) for row in other] == [texts(row) for row in made]


def test_a_pair_named_the_other_way_round_is_the_same_pair(cleaned: Cleaned) -> None:
    (one,), _, _ = cleaned([shp("Why?", "A", "B", 1, (9, 3))])
    (other,), _, _ = cleaned([shp("Why?", "B", "A", 0, (3, 9))])
    assert one == other


def test_repeated_pairs_are_one_and_contradicting_ones_none(cleaned: Cleaned) -> None:
    twice = [plain(1), plain(1)]
    made, stats, _ = cleaned([*twice, plain(2)], [plain(1), plain(2, "Bad.", "Good.")])
    assert [row["source"] for row in made] == ["source0"]
    assert stats.dropped == Counter(duplicate_pair=2, conflicting_labels=2)
    assert (stats.rows_in, stats.rows_out) == (5, 1)


def test_what_cannot_be_compared_is_counted(cleaned: Cleaned) -> None:
    made, stats, _ = cleaned([plain(1, "Same.", "Same."), plain(2, "Good.", " "), plain(3)])
    assert len(made) == 1
    assert stats.dropped == Counter(identical_completions=1, empty_completion=1)


@pytest.mark.parametrize(
    ("row", "form", "reason"),
    [
        (3, "shp", "not_an_object"),
        (shp("", "A", "B", 1, (9, 3)), "shp", "no_prompt"),
        (shp("Why?", "A", "B", 2, (9, 3)), "shp", "bad_label"),
        (shp("Why?", "A", "B", 1, (9, 3)) | {"human_ref_B": None}, "shp", "no_pair"),
        ({"history": "Why?", "human_ref_A": "A", "human_ref_B": "B", "labels": 1}, "shp", "no_score_ratio"),
        ({"instruction": "Sort.", "output": "a b"}, "instruction", "no_pair"),
    ],
)
def test_rows_that_are_no_preference_are_malformed(row: Any, form: str, reason: str) -> None:
    with pytest.raises(Malformed) as refused:
        read_pair(row, form, "test", 2.0)
    assert refused.value.reason == reason


@settings(max_examples=80)
@given(
    st.dictionaries(
        st.sampled_from(["history", "human_ref_A", "human_ref_B", "labels", "score_A", "score_ratio"]),
        st.none() | st.integers(-2, 2) | st.text(max_size=2) | st.floats() | st.lists(st.integers()),
    ),
)
def test_no_shp_row_is_more_than_malformed(row: Row) -> None:
    try:
        read_pair(row, "shp", "test", 2.0)
    except (Malformed, Unwanted) as refused:
        assert refused.reason


def test_formats_are_told_apart_by_their_columns() -> None:
    assert looks_like_pair(shp("Why?", "A", "B", 1, (9, 3))) == "shp"
    assert looks_like_pair(plain(1)) == "preference"
    assert looks_like_pair({"x": 1}) is None


def test_a_source_of_something_else_is_refused(cleaned: Cleaned) -> None:
    with pytest.raises(ConfigError, match=r"sources\.source0\.format='auto'.*columns x.*shp: history"):
        cleaned([{"x": 1}])
    with pytest.raises(DataError, match=r"1 of 1 rows are malformed \(1 no_pair\)"):
        cleaned([{"instruction": "Sort.", "output": "a b"}])


def test_limits_are_seeded_samples(cleaned: Cleaned) -> None:
    rows = [plain(i) for i in range(30)]
    made, stats, _ = cleaned(rows, [plain(f"other {i}") for i in range(30)], limit=10, max_rows=15)
    assert (len(made), stats.dropped) == (15, Counter(over_max_rows=45))
    assert max(Counter(row["source"] for row in made).values()) <= 10


def test_prompts_are_held_out_whole(cleaned: Cleaned) -> None:
    rows = [plain(i % 40, f"Good {i}.", f"Bad {i}.") for i in range(120)]
    made, _, _ = cleaned(rows, validation_fraction=0.3)
    sides: dict[str, set[str]] = {}
    for row in made:
        sides.setdefault(row["prompt_id"], set()).add(row["split"])
    assert {len(side) for side in sides.values()} == {1}
    assert {side for both in sides.values() for side in both} == {"train", "validation"}


def test_real_preferences_all_become_pairs(cleaned: Cleaned, preference_rows: list[Row]) -> None:
    made, stats, _ = cleaned(preference_rows)
    assert stats.rows_in == len(preference_rows) == 300
    assert len(made) > 290
    wanted = {(r["chosen"]["value"], r["rejected"]["value"]) for r in preference_rows}
    assert {tuple(texts(row)) for row in made} <= wanted


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_score_ratio": float("nan")}, "min_score_ratio=nan"),
        ({"max_rows": -1}, "max_rows=-1"),
        ({"validation_fraction": 1.0}, r"validation_fraction=1\.0"),
        ({"sources": ()}, r"sources=\(\)"),
    ],
)
def test_settings_that_cannot_be_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CleanPmpConfig(**{"sources": (PmpSource(name="a", uri="a.jsonl"),)} | given)


def test_the_component(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([plain(i) for i in range(5)]))
    dataset = dsl.Dataset(name="dataset", uri=str(tmp_path / "out"))
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "metrics"))
    sources = [{"name": "a", "uri": str(tmp_path / "a.json"), "max_rows": 4.0}]
    clean_pmp.python_func(dataset=dataset, metrics=metrics, sources=sources, options={"seed": 3})
    assert dataset.metadata["schema"] == PREFERENCES
    assert (metrics.metadata["rows_out"], metrics.metadata["dropped_over_max_rows"]) == (4, 1)


def test_what_was_taken_back_is_left_out(cleaned: Cleaned, tmp_path: Path) -> None:
    """A pair that two sources have is the other's when one is taken back; contradictions count no more."""
    first = [plain(0), plain(1), plain(2, "Bad.", "Good.")]
    second = [plain(0), plain(2), plain(3)]
    before, _, dataset = cleaned(first, second)
    gone = next(row["prompt_id"] for row in before if "Question 1?" in row["messages"])
    work = str(tmp_path / "work")
    for taken, kept, dropped in (
        ({"prompts": [gone]}, "03", {"withdrawn": 1, "duplicate_pair": 1, "conflicting_labels": 2}),
        ({"sources": ["source0"]}, "023", {"withdrawn": 3}),
        ({"sources": ["source1"]}, "012", {"withdrawn": 3}),
    ):
        withdrawn = write_withdrawal(tmp_path / "w.json", **taken)
        rows, stats, after = cleaned(first, second, withdrawn=withdrawn, work=work)
        asked = sorted(json.loads(row["messages"])[0]["content"] for row in rows)
        assert asked == [f"Question {number}?" for number in kept]
        assert dict(+stats.dropped) == dropped
        assert after.manifest.fingerprint != dataset.manifest.fingerprint
    about_others = write_withdrawal(tmp_path / "w.json", prompts=["0" * 32], sources=["nobody"])
    _, _, same = cleaned(first, second, withdrawn=about_others, work=work)
    assert same.manifest.fingerprint == dataset.manifest.fingerprint
