"""What a column of verdicts or answers means is seen from the whole of it, or it is refused by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kubealign_components.data.dataset import Dataset
from kubealign_components.errors import DataError
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig, run
from kubealign_components.sources.row_formats import FORMATS, looks_like, parse
from kubealign_components.sources.scales import Scales
from kubealign_components.sources.values import Malformed

TWO = {"response1": "A", "response2": "B"}


def imported(folder: Path, rows: Sequence[dict[str, Any]]) -> Dataset:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(ImportConfig(sources=(SourceConfig(uri=str(path)),)), output=str(folder / "out"))
    return Dataset.open(str(folder / "out"))


def labels(dataset: Dataset) -> list[list[str | None]]:
    rows = sorted(dataset.iter_rows(), key=lambda row: row["messages"])
    return [[c["label"] for c in row["completions"]] for row in rows]


@pytest.mark.parametrize(
    ("strengths", "why"),
    [
        ([-3, 0, 2], ""),
        ([-2, -1], ""),
        ([-100, 100], ""),
        ([0, 0], ""),
        ([1, 2, 3, 4, 5], "from 1 to 5"),
        ([0, 1, 2, 3], "from 0 to 3"),
        ([0.1, 0.9], "from 0.1 to 0.9"),
        (["1", "7"], "from 1 to 7"),
        ([-1, 1, 4, 5], "from -1 to 5"),
    ],
)
def test_strengths_of_preference_are_on_a_scale_with_two_sides(
    tmp_path: Path, strengths: list[float], why: str
) -> None:
    for column in ("preference_strength", "overall_preference"):
        rows = [{"prompt": f"Q{i}?", **TWO, column: s} for i, s in enumerate(strengths)]
        if why:
            with pytest.raises(DataError, match=f"{column} cannot be read as verdicts: its values go {why}"):
                imported(tmp_path, rows)
            continue
        sides = {0: [None, None], -1: ["chosen", "rejected"], 1: ["rejected", "chosen"]}
        folder = tmp_path / column
        folder.mkdir()
        assert labels(imported(folder, rows)) == [sides[(s > 0) - (s < 0)] for s in strengths]


@pytest.mark.parametrize(
    ("verdicts", "why"),
    [
        ([1, 0], ""),
        ([-1, 1.0], ""),
        (["good", "bad", "neutral"], ""),
        (["true", "false"], ""),
        ([0, 1, 2, 3, 4], "its values go from 0 to 4"),
        ([1, 2], "its values go from 1 to 2"),
        ([-1, 0, 1], "its values go from -1 to 1"),
        ([0.0, 0.7, 1.0], "its values go from 0 to 1"),
        (["bad", "good", "excellent"], "1 of 3 words are none"),
    ],
)
def test_verdicts_on_single_answers_are_of_two_kinds(tmp_path: Path, verdicts: list[Any], why: str) -> None:
    rows = [{"prompt": f"Q{i}?", "completion": "A", "label": v} for i, v in enumerate(verdicts)]
    if why:
        with pytest.raises(DataError, match=f"label cannot be read as verdicts: {why}"):
            imported(tmp_path, rows)
    else:
        assert sum(label is not None for [label] in labels(imported(tmp_path, rows))) == 2


@pytest.mark.parametrize(
    ("values", "slip", "why"),
    [
        ([1, 0], 3, "its values go from 0 to 3, and verdicts on an answer are 1 and 0, or 1 and -1"),
        ([1, -1], 0, "its values go from -1 to 1, and verdicts on an answer are 1 and 0, or 1 and -1"),
        ([2, 3, 4, 5], 7, ""),  # classes, which are left as they are
        ([3], 3, ""),
        (["good", "bad"], "excellent", "2 of 101 words are none, such as good and bad, or 1 and 0"),
    ],
)
def test_one_value_of_a_hundred_may_be_a_slip(values: list[Any], slip: object, why: str) -> None:
    scales = Scales()
    for position in range(99):
        scales.verdict("label", values[position % len(values)])
    scales.verdict("label", slip)
    assert not [*scales.problems()]
    more = Scales()
    more.verdict("label", slip)
    scales.add(more)
    assert [*scales.problems()] == ([("label", why)] if why else [])


def test_slips_of_strengths_and_preferences_without_a_second_output() -> None:
    scales = Scales()
    for strength in [-1, 1] * 50:
        scales.signed("strength", strength)
    scales.signed("strength", 30)
    for number in range(600):
        scales.signed("signed", number - 300)
        scales.signed("unsigned", number)
        scales.weighted("outputs", number % 3)
        scales.weighted("preference", number % 2)
    assert {column: why.partition(",")[0] for column, why in scales.problems()} == {
        "unsigned": "its values go from 0 to 599",
        "preference": "its values go from 0 to 1",
    }


def test_rows_that_cannot_be_used_say_nothing_of_a_scale() -> None:
    scales = Scales()
    with pytest.raises(Malformed):
        parse({"prompt": "Q?", "completion": " ", "label": 5}, FORMATS["prompt"], scales=scales)
    parse({"prompt": "Q?", "completion": "A", "label": 1}, FORMATS["prompt"], scales=scales)
    assert not [*scales.problems()]


def told(row: dict[str, Any]) -> list[tuple[str, str | None, float | None, str | None]]:
    example = parse(row, FORMATS[str(looks_like(row))])
    return [(c.messages[0]["content"], c.label, c.score, c.model) for c in example.completions]


def test_lists_beside_a_list_of_completions_are_theirs() -> None:
    row = {"prompt": "Q?", "responses": ["A", "B"], "models": ["m", "n"]}
    for name in ("scores", "ratings", "rewards"):
        assert told({**row, name: [2, "1"]}) == [("A", None, 2.0, "m"), ("B", None, 1.0, "n")]
        assert told({**row, name: [2]}) == [("A", None, None, "m"), ("B", None, None, "n")]
    ranked = [{"text": "A", "pm_score": 3, "selected": True}, {"text": "B", "pm_score": 0}]
    assert [score for _, _, score, _ in told({"question": "Q?", "answers": ranked})] == [3.0, 0.0]


def test_several_answers_of_a_side_are_all_read(tmp_path: Path) -> None:
    [row] = imported(tmp_path, [{"prompt": "Q?", "chosen": ["A"], "rejected": ["B", "C"]}]).iter_rows()
    assert [(c["label"], c["wins"], c["losses"]) for c in row["completions"]] == [
        ("chosen", [0, 1], []),
        ("rejected", [], [0]),
        ("rejected", [], [1]),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Q?", "completions": ["One.", "Two."], "labels": [True, False]}, "labels_of_steps"),
        ({"trajectory": [{"from": "user"}], "chosen": "It A", "rejected": "It B"}, "prompt_column_not_known"),
        ({"post": "Where is it?", "chosen": "It is A", "rejected": "It is B"}, "prompt_column_not_known"),
        ({"post_text": "Where is it?", "chosen": "It A", "rejected": "It B"}, "prompt_column_not_known"),
    ],
)
def test_what_reads_as_something_else_is_refused(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Malformed, match=f"^{reason}$"):
        told(row)


@pytest.mark.parametrize(
    "beside",
    [
        {"system_prompt": "Answer in brief."},
        {"system_message": "Answer in brief."},
        {"question_type": "open ended qa"},
        {"input_ids_chosen": [1, 2]},
    ],
)
def test_what_is_beside_a_prompt_that_both_answers_begin_with(beside: dict[str, Any]) -> None:
    example = parse({**beside, "chosen": "It is A", "rejected": "It is B"}, FORMATS["preference"])
    system = (
        [{"role": "system", "content": "Answer in brief."}]
        if any(name.startswith("system") for name in beside)
        else []
    )
    assert example.messages == [*system, {"role": "user", "content": "It is"}]


@pytest.mark.parametrize("ends", ["abc", "012", "123"])
def test_an_answer_of_three_is_no_comparison_of_two(ends: str) -> None:
    choices = {f"response_{end}": end for end in ends}
    assert looks_like({"question": "Q?", **choices, "answer": ends[1]}) == "prompt"


def test_scores_and_models_of_a_pair_beside_its_texts_are_its() -> None:
    row = {"prompt": "Q?", "chosen": "B", "rejected": "A", "response_a": "A", "response_b": "B"}
    scored = {"chosen_score": 3, "rejected_score": 1, "chosen_model": "m"}
    assert told({**row, **scored}) == [("B", "chosen", 3.0, "m"), ("A", "rejected", 1.0, None)]


def test_files_beside_a_split_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("train.jsonl", "more.jsonl"):
        (folder / name).write_text(json.dumps({"prompt": name}) + "\n")
    (folder / "NOTES.txt").write_text("n")
    run(ImportConfig(sources=(SourceConfig(uri=str(folder)),)), output=str(tmp_path / "out"))
    dataset = Dataset.open(str(tmp_path / "out"))
    [source] = dataset.manifest.extra["sources"]
    assert (dataset.manifest.rows, source["files_not_read"]) == (1, ["more.jsonl"])
    assert source["noticed"] == {"files_not_read": 1}
