"""Rows in the shapes of public datasets: what is preferred, what was asked, and what no format reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kubealign_components.clean_pmp.pairs import read_pair
from kubealign_components.errors import KubeAlignError
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig, run
from kubealign_components.sources.example import Example
from kubealign_components.sources.refusals import ADVICE, shape_of
from kubealign_components.sources.row_formats import FORMATS, looks_like, parse
from kubealign_components.sources.source import Unwanted
from kubealign_components.sources.values import Malformed


def read(row: dict[str, Any]) -> Example:
    name = looks_like(row)
    assert name is not None
    return parse(row, FORMATS[name])


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def rated(text: str, score: float) -> dict[str, Any]:
    return {"response": text, "overall_score": score, "model": text, "custom_system_prompt": "Be kind."}


BOTH = {"Good.": "chosen", "Bad.": "rejected"}
TIE = {"Good.": None, "Bad.": None}
ORCA = {"system": "", "input": "Hi?", "chosen": "Good.", "rejected": "Bad.", "rating": [9.0, 9.0]}
ANSWERS = {"response_A": "Good.", "response_B": "Bad."}
OUTPUTS = {"output_1": "Good.", "output_2": "Bad."}
PPE = {"prompt": "Hi?", "model_a": "x", "model_b": "y", "response_1": "Good.", "response_2": "Bad."}
JUDGED = {
    "conversation_a": chat("Hi?", "Good.", "More?", "a"),
    "conversation_b": chat("Hi?", "Bad.", "More?", "b"),
}


@pytest.mark.parametrize(
    ("row", "labels"),
    [
        pytest.param(
            {"instruction": "Hi?", "chosen_response": "Good.", "rejected_response": "Bad."},
            BOTH,
            id="ultrafeedback-binarized-preferences",
        ),
        pytest.param({"input": "Hi?", "accepted": "Good.", "rejected": "Bad."}, BOTH, id="code-pairs"),
        pytest.param({**ORCA, "status": "unchanged"}, BOTH, id="orca"),
        pytest.param({**ORCA, "status": "tie"}, TIE, id="orca-tie"),
        pytest.param({"question": "Hi?", **ANSWERS, "label": "A>B"}, BOTH, id="judgebench"),
        pytest.param({"input": "Hi?", **OUTPUTS, "label": 1}, BOTH, id="llmbar"),
        pytest.param({**PPE, "winner": "model_a"}, BOTH, id="ppe"),
        pytest.param({**PPE, "winner": "tie"}, TIE, id="ppe-tie"),
        pytest.param({**JUDGED, "turn": 1, "winner": "model_a"}, BOTH, id="mt-bench"),
        pytest.param(
            {"messages_a": chat("Hi?", "Good."), "messages_b": chat("Hi?", "Bad."), "winner": "model_a"},
            BOTH,
            id="search-arena",
        ),
        pytest.param(
            {"prompt": "Human: Hi? ", "chosen": "Assistant: Good.", "rejected": "Assistant: Bad."},
            BOTH,
            id="names-on-both-sides",
        ),
        pytest.param({"conversation": chat("Hi?", "Good.")}, {"Good.": None}, id="wildchat"),
        pytest.param({"conversations": ["Hi?", "Good."]}, {"Good.": None}, id="lima"),
        pytest.param({"conversation": [{"input": "Hi?", "output": "Good."}]}, {"Good.": None}, id="capybara"),
        pytest.param(
            {"problem": "Hi?", "generated_solution": "Good.", "expected_answer": "5"},
            {"Good.": None},
            id="openmathinstruct",
        ),
        pytest.param(
            {"instruction": "Hi?", "chosen": chat("Hi?", "Good."), "rejected": chat("Hi?", "Bad.")}
            | {"conversations": []},
            BOTH,
            id="an-empty-column-of-turns",
        ),
    ],
)
def test_public_rows(row: dict[str, Any], labels: dict[str, str | None]) -> None:
    example = read(row)
    assert example.messages == chat("Hi?")
    assert {c.messages[0]["content"]: c.label for c in example.completions} == labels
    assert example.notes["comparisons_that_are_ties"] == (labels == TIE)


def test_the_second_side_wins_as_well() -> None:
    for verdict in ({**ANSWERS, "label": "B>A"}, {**OUTPUTS, "label": 2}, {**PPE, "winner": "model_b"}):
        example = read({"prompt": "Hi?", **verdict})
        assert [c.label for c in example.completions] == ["rejected", "chosen"]


@pytest.mark.parametrize("label", [0, 3, "1.5"])
def test_a_number_that_no_column_has_is_no_verdict(label: object) -> None:
    with pytest.raises(Malformed, match="bad_choice"):
        read({"prompt": "Hi?", **OUTPUTS, "label": label})


def test_questions_of_a_user_are_no_turns_of_two() -> None:
    with pytest.raises(Malformed, match="bad_message"):
        read({"prompt": ["Who was first?", "And second?", "And third?"], "response": "Nobody knows."})


def test_whether_0_is_the_first_answer_or_a_worse_one_is_not_guessed() -> None:
    example = read({"prompt": "Hi?", "response_0": "a", "response_1": "b", "label": 0})
    assert [c.label for c in example.completions] == [None, None]
    assert example.notes["comparisons_without_a_verdict"] == example.notes["column_not_understood_label"] == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        pytest.param(
            {"prompt": "a\n\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc\nd", "response": "e"},
            ["a", "b", "c\nd"],
            id="helpsteer2",
        ),
        pytest.param(
            {"prompt": "<extra_id_0>System\n\n<extra_id_1>User\na\n<extra_id_1>Assistant\n", "response": "e"},
            ["a"],
            id="all-marks",
        ),
        pytest.param(
            {"prompt": "c", "context": chat("a", "b"), "chosen": "d", "rejected": "e"},
            ["a", "b", "c"],
            id="turns-in-context",
        ),
        pytest.param(
            {"prompt": "c", "system_message": "a", "completion": "d"}, ["a", "c"], id="system-message"
        ),
    ],
)
def test_all_that_was_said_before_is_in_the_prompt(row: dict[str, Any], said: list[str]) -> None:
    example = read(row)
    assert [m["content"] for m in example.messages] == said
    assert not example.notes


def test_steps_that_both_answers_go_on_from_are_theirs() -> None:
    begun = {"initial_reason_steps": "Step 1: a\nStep 2: "}
    example = read({"prompt": "Hi?", **begun, "chosen": "b", "rejected": "c", "answer": "5"})
    assert [c.messages[0]["content"] for c in example.completions] == [
        f"Step 1: a\nStep 2: {end}" for end in "bc"
    ]


def test_scores_and_models_by_the_names_that_files_have() -> None:
    columns = {"chosen_avg_rating": 4.5, "rejected_avg_rating": 3.0, "chosen_model": "x"}
    pair = read({"instruction": "Hi?", "chosen_response": "a", "rejected_response": "b", **columns})
    safe = read(
        {"prompt": "Hi?", "response_0": "a", "response_1": "b", "response_0_source": "x", "choice": 0}
    )
    drawn = read(
        {"instruction": "Hi?", "generations": ["a", "b"], "generation_models": ["x", "y"], "ratings": [5, 1]}
    )
    raw = read({"instruction": "Hi?", "completions": [rated("a", 7.5), rated("b", 9.0)]})
    assert [(c.score, c.model) for e in (pair, safe, drawn, raw) for c in e.completions] == [
        *((4.5, "x"), (3.0, None)),
        *((None, "x"), (None, None)),
        *((5.0, "x"), (1.0, "y")),
        *((7.5, "a"), (9.0, "b")),
    ]
    assert raw.notes["completion_field_not_kept_custom_system_prompt"] == 2


@pytest.mark.parametrize(
    ("columns", "answers"),
    [
        pytest.param({"reward_model": {"ground_truth": '["14"]', "style": "rule"}}, ["14"], id="or1"),
        pytest.param({"reward_model": {"ground_truth": "[1, 2]"}}, ["[1, 2]"], id="an-interval"),
        pytest.param({"answer": {"value": "Paris", "aliases": ["paris"]}}, ["Paris", "paris"], id="triviaqa"),
        pytest.param({"expected_answer": "5"}, ["5"], id="openmathreasoning"),
    ],
)
def test_what_verifies_an_answer(columns: dict[str, Any], answers: list[str]) -> None:
    assert read({"problem": "Hi?", **columns}).answers == answers


MESSAGE = {"message_id": "a", "parent_id": None, "text": "Hi?", "role": "prompter"}
UNREAD = {
    "oasst": (MESSAGE, "tree_of_messages"),
    "oasst-nested": ({"message_tree_id": "a", "prompt": {**MESSAGE, "replies": []}}, "tree_of_messages"),
    "argilla": ({"fields": {"prompt": "Hi?"}, "responses": [{"values": {}}]}, "annotation_record"),
    "summaries": ({"info": {"post": "x"}, "summaries": [{"text": "a"}], "choice": 0}, "summaries_to_compare"),
    "mmlu": ({"question": "Hi?", "choices": ["a", "b"], "answer": 1}, "choices_beside_the_question"),
    "arc": (
        {"question": "Hi?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"},
        "choices_beside_the_question",
    ),
    "c-eval": ({"question": "Hi?", "A": "a1", "B": "b1", "C": "c1"}, "choices_beside_the_question"),
}


@pytest.mark.parametrize(("row", "reason"), UNREAD.values(), ids=UNREAD)
def test_rows_that_no_format_reads_are_refused_with_what_to_write(
    row: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    config = ImportConfig(sources=(SourceConfig(uri=str(tmp_path / "rows.jsonl")),))
    with pytest.raises(KubeAlignError) as caught:
        run(config, output=str(tmp_path / "out"))
    assert ADVICE[reason][1:] in str(caught.value)


def test_rows_that_resemble_those_are_read() -> None:
    for row in (
        {"question": "Which?\nA. plum\nB. rock", "choices": ["plum", "rock"], "answer": "A"},
        {"question": "Which?", "source_choices": ["plum", "rock"], "answer": "A"},
        {"message_tree_id": "a", "prompt": "Hi?", "completion": "x"},
        {"prompt": "Hi?", "responses": ["a", "b"]},
    ):
        assert shape_of(row) is None
        assert read(row).messages


def test_a_tie_is_no_pair_and_no_fault() -> None:
    tie = {**ORCA, "status": "tie"}
    with pytest.raises(Unwanted, match="tie"):
        read_pair(tie, "preference", "s", 2.0)
    assert read_pair({**tie, "status": "swapped"}, "preference", "s", 2.0)["margin"] is None
