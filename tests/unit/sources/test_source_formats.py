"""Every row format, by what its rows become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kubealign_components.sources.example import Example
from kubealign_components.sources.file_readers import read_rows
from kubealign_components.sources.row_formats import FORMATS, looks_like, parse
from kubealign_components.sources.values import Malformed

USER = {"role": "user", "content": "Hi?"}
GOOD = {"role": "assistant", "content": "Good."}
BAD = {"role": "assistant", "content": "Bad."}
TOOL = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
WRAPPED = {"type": "function", "function": TOOL}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def read(row: dict[str, Any]) -> Example:
    """``row`` in the format that it is detected to have."""
    name = looks_like(row)
    assert name is not None, row
    return parse(row, FORMATS[name])


def told(example: Example) -> list[tuple[str, str | None, float | None]]:
    return [(c.messages[0]["content"], c.label, c.score) for c in example.completions]


PAIR = [("Good.", "chosen", None), ("Bad.", "rejected", None)]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"prompt": "Hi?", "chosen": "Good.", "rejected": "Bad."}, id="plain"),
        pytest.param({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, id="conversational"),
        pytest.param({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, id="implicit"),
        pytest.param({"chosen": "Hi? Good.", "rejected": "Hi? Bad."}, id="implicit-plain"),
        pytest.param(
            {
                "chosen": "\n\nHuman: Hi?\n\nAssistant: Good.",
                "rejected": "\n\nHuman: Hi?\n\nAssistant: Bad.",
            },
            id="transcripts",
        ),
        pytest.param(
            {"prompt": "Hi?", "chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD]},
            id="ultrafeedback-binarized",
        ),
        pytest.param({"messages": [USER], "chosen": GOOD, "rejected": BAD}, id="messages-and-pair"),
        pytest.param(
            {
                "conversations": [{"from": "human", "value": "Hi?"}],
                "chosen": {"from": "gpt", "value": "Good."},
                "rejected": {"from": "gpt", "value": "Bad."},
            },
            id="sharegpt",
        ),
        pytest.param(
            {"instruction": "Hi?", "input": "", "chosen": "Good.", "rejected": "Bad."}, id="instruction"
        ),
        pytest.param(
            {"input_text": "Hi?", "candidate_0": "Good.", "candidate_1": "Bad.", "choice": 0}, id="candidates"
        ),
        pytest.param(
            {
                "prompt": {"role": ["user"], "content": ["Hi?"]},
                "chosen": {"role": ["assistant"], "content": ["Good."]},
                "rejected": {"role": ["assistant"], "content": ["Bad."]},
            },
            id="columns-of-turns",
        ),
    ],
)
def test_pairs(row: dict[str, Any]) -> None:
    example = read(row)
    assert example.messages == [USER]
    assert told(example) == PAIR


CHAT = [{"role": "user", "content": "Hi?"}]
SAID = {"response_0": "Good.", "response_1": "Bad."}
NUMBERED = {"response_1": "Good.", "response_2": "Bad."}
HISTORY = {"history": "Hi?", "human_ref_A": "Good.", "human_ref_B": "Bad."}
PLAIN = {"response1": "Good.", "response2": "Bad."}
ROUNDS = {"prompt": ["Hi?"], "response_a": ["Good."], "response_b": ["Bad."], "winner_model_a": 0}
TEXTS = {"prompt": '["Hi?"]', "response_a": '["Good."]', "response_b": '["Bad."]'}
LETTERS = {"response_a": "Good.", "response_b": "Bad."}
MODELS = {"model_a": "llama", "model_b": "gpt"}
OUTPUTS = {"output_1": "Good.", "output_2": "Bad."}
WEB = {"answer_0": "Good.", "answer_1": "Bad.", "score_0": 1}
WORDS = {"preference": "Response 1 is much better because it is true."}
NAMED = {"llama": "Good.", "gpt": "Bad."}
SIDES = {"conversation_a": [*CHAT, GOOD], "conversation_b": [*CHAT, BAD]}


@pytest.mark.parametrize(
    ("row", "better"),
    [
        pytest.param({"prompt": "Hi?", **SAID, "better_response_id": 0}, 0, id="pku"),
        pytest.param({"prompt": "Hi?", **SAID, "better_response_id": 1}, 1, id="pku-second"),
        pytest.param({"prompt": "Hi?", **NUMBERED, "preference_strength": -2}, 0, id="helpsteer2"),
        pytest.param({"prompt": "Hi?", **NUMBERED, "preference_strength": 0}, None, id="helpsteer2-tie"),
        pytest.param({"context": CHAT, **PLAIN, "overall_preference": 3}, 1, id="helpsteer3"),
        pytest.param({**SIDES, "winner": "model_a"}, 0, id="arena"),
        pytest.param({**SIDES, "winner": "model_b"}, 1, id="arena-second"),
        pytest.param({**SIDES, "winner": "tie (bothbad)"}, None, id="arena-tie"),
        pytest.param({**ROUNDS, "winner_model_b": 1, "winner_tie": 0}, 1, id="arena-rounds"),
        pytest.param({**HISTORY, "labels": 1}, 0, id="shp"),
        pytest.param({**HISTORY, "labels": 0}, 1, id="shp-second"),
        pytest.param({"prompt": "Hi?", **SAID}, None, id="no-verdict"),
        pytest.param({"prompt": "Hi?", **NUMBERED, "choice": 1}, 0, id="number-of-the-column"),
        pytest.param({"prompt": "Hi?", **NUMBERED, "choice": "response_2"}, 1, id="name-of-the-column"),
        pytest.param({**SIDES, "winner": "A", "preference_strength": 3}, 0, id="strength-of-the-winner"),
        pytest.param({"problem": "Hi?", "context": "Z", **SAID, "choice": 0}, 0, id="context-of-a-problem"),
        pytest.param({"prompt": "Hi?", "chosen": "Good.", "rejected": "Bad.", **SAID}, 0, id="pair-beside"),
        pytest.param({**TEXTS, "winner_model_a": 1}, 0, id="arena-rounds-in-json"),
        pytest.param({"prompt": "Hi?", **LETTERS, "preference": "[[B>>A]]"}, 1, id="arena-hard"),
        pytest.param({"prompt": "Hi?", **LETTERS, "preference": "A=B"}, None, id="arena-hard-tie"),
        pytest.param({"prompt": "Hi?", **LETTERS, "chosen": "response_b"}, 1, id="chosen-names-a-column"),
        pytest.param({"prompt": "Hi?", **LETTERS, "chosen": "B", "rejected": "A"}, 1, id="two-letters"),
        pytest.param({"prompt": "Hi?", **LETTERS, "preferred": "Bad."}, 1, id="chosen-is-the-text"),
        pytest.param({"prompt": "Hi?", **LETTERS, **MODELS, "winner": "gpt"}, 1, id="winner-is-a-model"),
        pytest.param({"instruction": "Hi?", **OUTPUTS, "preference": 2.0}, 1, id="alpaca-eval"),
        pytest.param({"instruction": "Hi?", **OUTPUTS, "preference": 1.0000012}, 0, id="alpaca-eval-weight"),
        pytest.param({"instruction": "Hi?", **OUTPUTS, "preference": "1.98"}, 1, id="alpaca-eval-second"),
        pytest.param({"instruction": "Hi?", **OUTPUTS, "preference": 1.5}, None, id="alpaca-eval-tie"),
        pytest.param({"instruction": "Hi?", **OUTPUTS, "preference": 0}, None, id="alpaca-eval-old-tie"),
        pytest.param({"context": CHAT, **PLAIN, **WORDS, "preference_strength": -2}, 0, id="words-beside"),
        pytest.param({"prompt": "Hi?", **SAID, **WORDS, "choice": 1}, 1, id="words-beside-a-choice"),
        pytest.param({"question": "Hi?", **WEB, **WORDS, "score_1": 2}, 1, id="words-beside-scores"),
        pytest.param({"question": {"full_text": "Hi?"}, **WEB, "score_1": -1}, 0, id="webgpt"),
        pytest.param({"question": {"full_text": "Hi?"}, **WEB, "score_1": 1}, None, id="webgpt-tie"),
        pytest.param({"question": "Hi?", "response_j": "Good.", "response_k": "Bad."}, 0, id="stackexchange"),
        pytest.param({"prompt": "Hi?", "chosen": "llama", "rejected": "gpt", **NAMED}, 0, id="named-columns"),
        pytest.param({"messages": [*CHAT, GOOD], "rejected_response": "Bad."}, 0, id="ms-swift"),
        pytest.param({"prompt": "Hi?", "chosen": ["Good."], "rejected": ["Bad."]}, 0, id="lists-of-one"),
    ],
)  # fmt: skip
def test_comparisons_of_public_files(row: dict[str, Any], better: int | None) -> None:
    example = read(row)
    assert example.messages == [USER]
    labels = [None, None] if better is None else ["chosen", "rejected"][:: 1 if better == 0 else -1]
    assert [(c.messages[0]["content"], c.label) for c in example.completions] == list(
        zip(("Good.", "Bad."), labels)
    )
    assert example.notes["comparisons_without_a_verdict"] == (
        "prompt" in row and row.keys() == {"prompt", *SAID}
    )


@pytest.mark.parametrize(
    "verdict",
    [
        *({"better_response_id": 2}, {"winner": "model_c"}, {"winner": "a"}, {"winner_tie": 0}),
        *({"preference_strength": "much"}, {"preferred": "A>C"}, WORDS, {"preference": 1.5}),
    ],
)
def test_a_verdict_that_is_none_is_told(verdict: dict[str, Any]) -> None:
    with pytest.raises(Malformed, match="bad_choice"):
        read({"prompt": "Hi?", **SAID, **verdict})


def test_scores_and_models_of_both_sides() -> None:
    example = read(
        {"prompt": "Hi?", **SAID, "score_0": 2, "score_1": "-1", "model_0": "x", "better_response_id": 0}
    )
    assert told(example) == [("Good.", "chosen", 2.0), ("Bad.", "rejected", -1.0)]
    assert [c.model for c in example.completions] == ["x", None]


def test_ranked_answers_are_completions_and_others_what_verifies_one() -> None:
    ranked = [{"answer": "Good.", "model": "a", "rank": 1.0}, {"answer": "Bad.", "model": "b", "rank": 2.0}]
    example = read({"prompt": "\n\nHuman: Hi?\n\nAssistant: ", "answers": ranked})
    assert (example.messages, example.answers) == ([USER], [])
    assert told(example) == [("Good.", None, -1.0), ("Bad.", None, -2.0)]
    assert read({"prompt": "Hi?", "answers": ["4"]}).answers == ["4"]


def test_the_input_beside_a_pair_is_its_prompt() -> None:
    pair = {"chosen": "Good.", "rejected": "Bad."}
    assert read({"system": "", "input": "Hi?", **pair}).messages == [USER]
    assert read({"input": "\n\nHuman: Hi?\n\nAssistant:", **pair}).messages == [USER]
    chats = {side: f"\n\nHuman: Hi?\n\nAssistant: {said}" for side, said in pair.items()}
    for text in ("", "Where?"):
        assert told(read({"input": text, **chats})) == PAIR


def test_the_common_beginning_of_a_pair_is_its_prompt_however_long() -> None:
    chat = [{"role": "system", "content": "Be brief."}, USER, GOOD, {"role": "user", "content": "More?"}]
    example = read({"chosen": [*chat, GOOD], "rejected": [*chat, BAD]})
    assert example.messages == chat
    assert told(example) == PAIR
    same = read({"chosen": [*chat, GOOD], "rejected": [*chat, GOOD]})
    assert same.messages == chat


def test_pair_scores_and_models() -> None:
    row = {"prompt": "Hi?", "chosen": "Good.", "rejected": "Bad.", "score_chosen": 9, "score_rejected": "2.5"}
    example = read(row | {"chosen_model": "a", "prompt_id": "p1", "long": "x" * 999, "nested": {"a": 1}})
    assert told(example) == [("Good.", "chosen", 9.0), ("Bad.", "rejected", 2.5)]
    assert [c.model for c in example.completions] == ["a", None]
    assert example.metadata == {"prompt_id": "p1"}


@pytest.mark.parametrize(("choice", "first"), [(0, "chosen"), ("1", "rejected"), ("candidate_1", "rejected")])
def test_candidate_choice(choice: object, first: str) -> None:
    row = {"messages": [{"author": "user", "content": "Hi?"}], "candidate_0": "Good.", "candidate_1": "Bad."}
    assert read(row | {"choice": choice}).completions[0].label == first
    with pytest.raises(Malformed, match="bad_choice"):
        read(row | {"choice": 2})


def test_messages_end_with_a_completion_or_are_a_prompt() -> None:
    chat = [USER, GOOD, {"role": "user", "content": "More?"}]
    whole = read({"messages": [*chat, BAD]})
    assert whole.messages == chat
    assert told(whole) == [("Bad.", None, None)]
    assert read({"messages": chat}).completions == []


@pytest.mark.parametrize(("label", "verdict"), [(True, "chosen"), (False, "rejected"), ("spam", None)])
def test_unpaired_preference_labels(label: object, verdict: str | None) -> None:
    for row in ({"messages": [USER, GOOD]}, {"prompt": "Hi?", "completion": "Good."}):
        example = read(row | {"label": label})
        assert told(example) == [("Good.", verdict, None)]
        assert example.metadata == ({} if verdict else {"label": "spam"})


def test_instruction_with_input_history_and_system() -> None:
    row = {"instruction": "Sort.", "input": "b a", "output": "a b", "system": "Be brief."}
    example = read(row | {"history": [["Hi?", "Good."]]})
    contents = [(m["role"], m["content"]) for m in example.messages]
    assert contents == [
        ("system", "Be brief."),
        ("user", "Hi?"),
        ("assistant", "Good."),
        ("user", "Sort.\nb a"),
    ]
    assert told(example) == [("a b", None, None)]
    assert read({"instruction": "Sort."}).completions == []


def test_completion_lists() -> None:
    listed = [
        {"model": "m1", "response": "Good.", "overall_score": 8.5},
        {"text": "Fair.", "score": "N/A"},
        {"completion": "Bad.", "rating": 1},
        {"response": "  "},
    ]
    example = read({"instruction": "Hi?", "completions": listed})
    assert told(example) == [("Good.", None, 8.5), ("Fair.", None, None), ("Bad.", None, 1.0)]
    assert example.completions[0].model == "m1"
    assert example.refused == {"empty_completion": 1}
    assert told(read({"prompt": "Hi?", "completions": ["A", "B"]})) == [("A", None, None), ("B", None, None)]


@pytest.mark.parametrize(
    ("columns", "answers"),
    [
        ({"answer": 42}, ["42"]),
        ({"answer": 5.0}, ["5"]),
        ({"answers": ["4", "4", "four"]}, ["4", "four"]),
        ({"solution": " 7 "}, ["7"]),
        ({"answer": "7", "solution": "long"}, ["7"]),
        ({}, []),
    ],
)
def test_answers(columns: dict[str, Any], answers: list[str]) -> None:
    assert read({"question": "How many?", **columns}).answers == answers


def test_a_question_comes_after_its_passage() -> None:
    example = read({"passage": "Two apples.", "question": "How many apples?", "answer": "2 apples"})
    assert example.messages == [{"role": "user", "content": "Two apples.\nHow many apples?"}]


def test_sharegpt_tools_survive() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "1+1?"},
            {"from": "function_call", "value": json.dumps({"name": "add", "arguments": {"a": 1}})},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "It is 2."},
        ],
        "tools": json.dumps([TOOL]),
    }
    example = read(row)
    assert example.tools == [WRAPPED]
    assert example.messages == [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "2"},
    ]
    assert told(example) == [("It is 2.", None, None)]
    row["conversations"] = row["conversations"][:2]
    assert read(row).completions[0].messages[0]["tool_calls"] == [CALL]


def test_openai_tools_survive_arrow_nulls(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        {**USER, "tool_calls": None, "tool_call_id": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add", "tool_calls": None},
        GOOD,
    ]
    typed = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tools = [{**WRAPPED}, {"type": "function", "function": {**TOOL, "parameters": typed}}]
    rows = [{"messages": turns, "tools": tools}, {"messages": [USER, GOOD], "tools": tools}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    row, _ = next(iter(read_rows(tmp_path / "a.parquet", "a.parquet")))
    assert isinstance(row, dict)
    example = read(row)
    assert example.messages[1]["tool_calls"] == [call]
    assert example.messages[2] == {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"}
    bare = {**TOOL, "parameters": {"type": "object", "properties": {}}}
    assert example.tools == [{**WRAPPED, "function": bare}, tools[1]]


def part(kind: str, content: str = "", **fields: Any) -> dict[str, Any]:
    return {"type": kind, "content": content, "metadata": {}, "name": "", "args": "", "answers": []} | fields


def swissai_row(*branches: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "conversation_id": "c1",
        "system_prompt": {"content": "Be exact.", "metadata": {}},
        "initial_prompt": {"role": "user", "content": "1+1?", "metadata": {}},
        "available_functions": [TOOL | {"parameters": json.dumps(TOOL["parameters"])}],
        "conversation_branches": [
            {"messages": [{"role": "assistant", "parts": parts}]} for parts in branches
        ],
    }


OPENING = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "1+1?"}]


def test_swissai_branches_are_completions() -> None:
    first = [part("thought", "Count."), part("response", "2", metadata={"model": "m1"})]
    second = [part("response", "Two."), part("verifiable-responses", answers=["2", "two"])]
    row = swissai_row(first, second)
    row["conversation_branches"][1]["reward"] = 0.5
    example = read(row)
    assert example.messages == OPENING
    assert told(example) == [("2", None, None), ("Two.", None, 0.5)]
    assert example.completions[0].messages[0]["reasoning_content"] == "Count."
    assert example.completions[0].model == "m1"
    assert example.answers == ["2", "two"]
    assert example.tools == [WRAPPED]
    assert example.metadata == {"conversation_id": "c1"}


def test_swissai_tool_use_becomes_part_of_the_prompt() -> None:
    used = [
        part("function-call", name="add", args='{"a": 1}'),
        part("function-output", "2"),
        part("response", "It is 2."),
    ]
    example = read(swissai_row(used))
    assert example.messages == [
        *OPENING,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "2"},
    ]
    assert told(example) == [("It is 2.", None, None)]
    mixed = read(swissai_row(used, [part("response", "2")]))
    assert mixed.messages == OPENING
    assert told(mixed) == [("2", None, None)]
    assert mixed.refused == {"completion_of_several_turns": 1}


def test_swissai_prompt_without_branches() -> None:
    only_answers = read(swissai_row([part("verifiable-responses", answers=["2"])]))
    assert (only_answers.messages, only_answers.completions, only_answers.answers) == (OPENING, [], ["2"])
    assert read(swissai_row()).messages == OPENING


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi?", "chosen": "Good.", "rejected": ""}, "empty_completion"),
        ({"prompt": " ", "chosen": "Good.", "rejected": "Bad."}, "no_prompt"),
        ({"chosen": "Good.", "rejected": "Bad."}, "no_prompt"),
        ({"chosen": [USER, GOOD], "rejected": [{"role": "user", "content": "No"}, BAD]}, "no_prompt"),
        ({"messages": []}, "no_messages"),
        ({"messages": [{"role": "system", "content": ""}]}, "no_messages"),
        ({"messages": [GOOD, USER]}, "bad_role_order"),
        ({"messages": [USER, USER, GOOD]}, "bad_role_order"),
        ({"messages": [USER, GOOD, {"role": "system", "content": "Late"}]}, "bad_role_order"),
        ({"messages": [USER, {"role": "tool", "content": "2"}]}, "bad_role_order"),
        ({"messages": [GOOD]}, "no_prompt"),
        ({"messages": [{"role": "king", "content": "Hi"}]}, "unknown_role"),
        ({"messages": ["Hi"]}, "bad_message"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not_text"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty_turn"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "empty_completion"),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": "add("}]},
            "bad_tool_call",
        ),
        ({"prompt": "Hi?", "tools": "add("}, "bad_tools"),
        ({"prompt": "Hi?", "tools": [{"name": 3}]}, "bad_tools"),
        ({"prompt": "Hi?", "answer": {"a": 1}}, "bad_answer"),
        ({"prompt": "Hi?", "completions": "Good."}, "bad_completions"),
        ({"prompt": "Hi?", "completions": [{"text": ""}, {}]}, "empty_completion"),
        ({"initial_prompt": {"content": ""}}, "no_prompt"),
        (swissai_row([part("song", "la")]), "unknown_part"),
    ],
)
def test_malformed_rows_have_a_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Malformed, match=f"^{reason}$"):
        read(row)


def test_text_that_happens_to_be_json_stays_text() -> None:
    for text in ('{"name": "Ann"}', "[1, 2]", '[{"a": 1}]', "{not json}", "[]"):
        example = read({"prompt": text, "chosen": text, "rejected": "Bad."})
        assert example.messages == [{"role": "user", "content": text}]
        assert example.completions[0].messages == [{"role": "assistant", "content": text}]


def test_formats_are_known_by_columns_that_hold_something() -> None:
    assert looks_like({"prompt": "Hi?", "chosen": "Good.", "rejected": "Bad."}) == "preference"
    assert [looks_like(row) for row in ({"a": 1}, 7, None)] == [None, None, None]
    assert looks_like({"chosen": None, "rejected": None, "prompt": "Hi?"}) == "prompt"
