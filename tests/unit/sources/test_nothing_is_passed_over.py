"""What a row holds is used, counted by name, or makes the row malformed: never nothing."""

from __future__ import annotations

import datetime
import gzip
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig, run
from kubealign_components.sources.example import Example
from kubealign_components.sources.row_formats import FORMATS, looks_like, parse
from kubealign_components.sources.values import Malformed, truth_of

USER = {"role": "user", "content": "Hi?"}
GOOD = {"role": "assistant", "content": "Good."}
BAD = {"role": "assistant", "content": "Bad."}
SYSTEM = {"role": "system", "content": "Be brief."}
CHATS = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
PAIR = {"prompt": "Hi?", "chosen": "Good.", "rejected": "Bad."}

Import = Callable[..., tuple[list[dict[str, Any]], Stats]]


def read(row: dict[str, Any]) -> Example:
    name = looks_like(row)
    assert name is not None, row
    return parse(row, FORMATS[name])


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """``imported(file name, content, settings)``: the rows of one file, and the counts."""

    def make(name: str, content: Any, **settings: Any) -> tuple[list[dict[str, Any]], Stats]:
        path = tmp_path / name
        if isinstance(content, pa.Table):
            pq.write_table(content, path)
        elif isinstance(content, list):
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        output = str(tmp_path / f"out-{name}")
        config = ImportConfig(sources=(SourceConfig(uri=str(path), **settings),), max_bad_fraction=1.0)
        stats = run(config, output=output)
        return list(Dataset.open(output, allow_empty=True).iter_rows()), stats

    return make


def texts(row: dict[str, Any]) -> list[str]:
    return [json.loads(c["messages"])[0]["content"] for c in row["completions"]]


@pytest.mark.parametrize(
    "columns",
    [
        {"images": ["a.png"]},
        {"image": {"bytes": b"\x89PNG", "path": None}},
        {"whatever": {"bytes": b"\x89PNG", "path": None}},
        {"image_url": "https://example.org/a.png"},
        {"image_1": "a.png"},
        {"audio": {"path": "a.wav"}},
        {"videos": ["a.mp4"]},
    ],
)
def test_media_beside_the_text_makes_a_row_malformed(columns: dict[str, Any]) -> None:
    for row in (PAIR, {"messages": [USER, GOOD]}, {"prompt": "Hi?", "completion": "Good."}):
        with pytest.raises(Malformed, match="not_text"):
            read(row | columns)
    with pytest.raises(Malformed, match="not_text"):
        read({"messages": [USER | columns, GOOD]})


@pytest.mark.parametrize("columns", [{"images": []}, {"image": None}, {"video": ""}, {"audio": False}])
def test_media_columns_that_are_empty_mean_nothing(columns: dict[str, Any]) -> None:
    assert read(PAIR | columns).messages == [USER]


@pytest.mark.parametrize(
    ("label", "verdict"),
    [
        *((value, "chosen") for value in (True, 1, 1.0, "1", "yes", "True", "chosen", Decimal(1))),
        *((value, "rejected") for value in (False, 0, 0.0, "0", "No", "false", "rejected", -1, "-1")),
    ],
)
def test_verdicts_however_they_are_written(label: Any, verdict: str) -> None:
    for row in ({"messages": [USER, GOOD]}, {"prompt": "Hi?", "completion": "Good."}):
        example = read(row | {"label": label})
        assert [c.label for c in example.completions] == [verdict]
        assert example.metadata == {}
        assert not example.notes


@given(st.text() | st.integers() | st.floats() | st.booleans() | st.none())
def test_a_label_is_a_verdict_or_is_noted(label: Any) -> None:
    example = read({"prompt": "Hi?", "completion": "Good.", "label": label})
    understood = example.completions[0].label is not None
    missing = label is None or (isinstance(label, float) and (label != label or abs(label) == float("inf")))
    assert understood == (truth_of(label) is not None)
    assert understood or missing or example.notes["labels_not_understood"] == 1


def test_what_is_not_kept_is_named(imported: Import) -> None:
    rows = [
        PAIR | {"score_chosen": "N/A", "notes": "x" * 999, "tags": ["a"], "empty": [], "small": 1},
        {"prompt": "Ho?", "chosen": "A", "rejected": "B", "tags": {"a": 1}},
    ]
    found, stats = imported("a.jsonl", rows)
    assert len(found) == 2
    assert {k: v for k, v in stats.counts.items() if "not" in k} == {
        "scores_not_understood": 1,
        "column_not_kept_notes": 1,
        "column_not_kept_tags": 2,
    }


def test_a_source_of_thousands_of_columns_has_a_bounded_number_of_names(imported: Import) -> None:
    _, stats = imported("a.jsonl", [PAIR | {f"c{i}": [i] for i in range(5000)}])
    assert len(stats.counts) < 200
    assert sum(n for name, n in stats.counts.items() if "not_kept" in name) == 5000


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "null"])
def test_what_is_no_number_is_missing_everywhere(imported: Import, value: str) -> None:
    line = (
        '{"prompt": "Hi?", "completion": "Good.", "answer": V, "system": V, "score": V, "label": V,'
        ' "level": V, "tools": V, "context": V}\n'
        '{"instruction": "Hi?", "input": V, "output": "Good.", "history": V}\n'
    ).replace("V", value)
    [one], stats = imported("a.jsonl", line.splitlines()[0], format="prompt")
    assert (one["answers"], one["metadata"], one["completions"][0]["score"]) == ([], None, None)
    assert json.loads(one["messages"]) == [USER]
    assert [name for name in stats.counts if "not" in name] == []
    [other], _ = imported("b.jsonl", line.splitlines()[1])
    assert json.loads(other["messages"]) == [USER]


def test_nan_in_parquet_and_csv_is_missing_too(imported: Import) -> None:
    table = pa.table(
        {"prompt": ["Hi?"], "completion": ["Good."], "answer": [float("nan")], "score": [float("inf")]}
    )
    for name, content in (
        ("a.parquet", table),
        ("a.csv", "prompt,completion,answer,score\nHi?,Good.,NaN,nan\n"),
    ):
        [row], _ = imported(name, content)
        assert (row["answers"], row["completions"][0]["score"]) == ([], None)


def test_types_of_parquet(imported: Import) -> None:
    day = datetime.date(2024, 2, 29)
    table = pa.table(
        {
            "prompt": pa.array([b"Hi?"], pa.binary()),
            "chosen": pa.array(["Good."], pa.large_string()),
            "rejected": pa.array(["Bad."]).dictionary_encode(),
            "score_chosen": pa.array([Decimal("4.50")]),
            "score_rejected": pa.array([2.25], pa.float16()),
            "answer": pa.array([Decimal("4.00")]),
            "written": pa.array([day]),
            "labels": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32())),
        }
    )
    [row], stats = imported("a.parquet", table)
    assert json.loads(row["messages"]) == [USER]
    assert texts(row) == ["Good.", "Bad."]
    assert [c["score"] for c in row["completions"]] == [4.5, 2.25]
    assert row["answers"] == ["4"]
    assert json.loads(row["metadata"]) == {"written": "2024-02-29"}
    assert stats.counts["column_not_kept_labels"] == 1
    exact = pa.table({"prompt": ["Hi?"], "answer": pa.array([Decimal("3.14159265358979323846")])})
    assert imported("b.parquet", exact)[0][0]["answers"] == ["3.14159265358979323846"]


def test_values_that_python_cannot_hold_are_rows_that_cannot_be_read(imported: Import) -> None:
    days = pa.array([0, 2**40], pa.timestamp("s"))
    rows, stats = imported("a.parquet", pa.table({"prompt": ["Hi?", "Ho?"], "day": days}))
    assert (len(rows), dict(stats.dropped)) == (1, {"unreadable_value": 1})
    no_text = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0])), pa.py_buffer(b"\xff")]
    )
    _, stats = imported("b.parquet", pa.table({"prompt": pa.concat_arrays([no_text, pa.array(["Hi?"])])}))
    assert dict(stats.dropped) == {"unreadable_value": 1}


def test_bytes_that_are_no_text_are_not_text(imported: Import) -> None:
    _, stats = imported("a.parquet", pa.table({"prompt": [b"\xff\xfe"], "chosen": ["a"], "rejected": ["b"]}))
    assert sum(stats.dropped.values()) == 1


def test_json_columns_of_datasets_are_values(imported: Import) -> None:
    calls = pa.array(['[{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Good."}]'])
    table = pa.table({"messages": pa.ExtensionArray.from_storage(pa.json_(), calls)})
    [row], _ = imported("a.parquet", table)
    assert texts(row) == ["Good."]


@pytest.mark.parametrize("text", [json.dumps(GOOD), json.dumps([USER]), '[{"from": "gpt", "value": "x"}]'])
def test_text_is_text_where_the_file_has_types(imported: Import, text: str) -> None:
    row = {"prompt": text, "chosen": text, "rejected": "Bad."}
    for name, content in (
        ("a.jsonl", [row]),
        ("a.json", json.dumps([row])),
        ("a.parquet", pa.Table.from_pylist([row])),
    ):
        [found], stats = imported(name, content)
        assert json.loads(found["messages"]) == [{"role": "user", "content": text}]
        assert texts(found) == [text, "Bad."]
        assert stats.counts["texts_that_are_json_chats"] == 2


def test_chats_in_json_text_are_read_from_csv_and_where_asked(imported: Import) -> None:
    row = {"prompt": json.dumps([USER]), "chosen": json.dumps([GOOD]), "rejected": json.dumps(BAD)}
    cells = ",".join('"' + cell.replace('"', '""') + '"' for cell in row.values())
    asked = {"json_columns": ("prompt", "chosen", "rejected")}
    for name, content, settings in (
        ("a.csv", f"prompt,chosen,rejected\n{cells}\n", {}),
        ("a.jsonl", [row], asked),
    ):
        [found], _ = imported(name, content, **settings)
        assert json.loads(found["messages"]) == [USER]
        assert texts(found) == ["Good.", "Bad."]


@pytest.mark.parametrize("beside", [{}, {"prompt": "Hi?"}, {"prompt": [USER]}, {"prompt": " Hi?\n"}])
def test_a_system_column_beside_whole_chats_is_used(beside: dict[str, Any]) -> None:
    assert read({**beside, **CHATS, "system": "Be brief."}).messages == [SYSTEM, USER]
    assert read({"prompt": [SYSTEM, USER], **CHATS}).messages == [SYSTEM, USER]
    assert read({"messages": [USER, GOOD], "system": "Be brief."}).messages == [SYSTEM, USER]
    assert read({"messages": [SYSTEM, USER, GOOD], "system": "Be brief."}).messages == [SYSTEM, USER]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Else?", **CHATS}, "contradicting_prompt"),
        ({"prompt": [{"role": "user", "content": "Else?"}], **CHATS}, "contradicting_prompt"),
        ({"prompt": "Else?", "messages": [USER, GOOD]}, "contradicting_prompt"),
        ({"messages": [SYSTEM, USER, GOOD], "system": "Be long."}, "contradicting_system"),
        ({"prompt": [SYSTEM, USER], "completion": "Good.", "system": "Be long."}, "contradicting_system"),
        ({"instruction": "Hi?", "history": "yesterday"}, "bad_history"),
        ({"prompt": "Hi?", "system": {"a": 1}}, "not_text"),
    ],
)
def test_columns_that_contradict_make_a_row_malformed(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Malformed, match=f"^{reason}$"):
        read(row)


HH = "\n\nHuman: Name a fruit.\n\nAssistant: {}"


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r", "\u2028", "\x85"])
def test_transcripts_with_any_line_ends(ends: str) -> None:
    for form in (
        HH,
        HH.strip(),
        "Human: Name a fruit.\nAssistant: {}",
        "User: Name a fruit.\n\nAssistant: {}",
    ):
        row = {
            side: form.format(text).replace("\n", ends)
            for side, text in (("chosen", "Plum."), ("rejected", "No."))
        }
        example = read(row)
        assert example.messages == [{"role": "user", "content": "Name a fruit."}]
        assert [c.messages[0]["content"] for c in example.completions] == ["Plum.", "No."]
        assert (
            read(
                {"prompt": form.format("").replace("\n", ends), "chosen": "Plum.", "rejected": "No."}
            ).messages
            == example.messages
        )
        assert read({"prompt": "Name a fruit.", **row}).messages == example.messages


@pytest.mark.parametrize(
    "texts",
    [
        ("Once.\n\nHuman: a\n\nAssistant: b", "Once.\n\nHuman: a\n\nAssistant: c"),
        (HH.format("b"), "Name a fruit. c"),
        (HH.format("b"), "Person: Name a fruit."),
    ],
)
def test_texts_that_look_like_transcripts_are_no_prompts(texts: tuple[str, str]) -> None:
    with pytest.raises(Malformed, match="bad_transcript"):
        read({"chosen": texts[0], "rejected": texts[1]})


def test_tools_and_calls_are_kept_as_they_were_written(imported: Import) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "book",
            "description": "Books.",
            "parameters": {"type": "object", "b": 1, "a": None},
        },
        "strict": True,
    }
    call = {
        "type": "function",
        "function": {"name": "book", "arguments": {"time": "7", "guests": 2, "area": None}},
    }
    turns = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    [row], _ = imported("a.jsonl", [{"messages": turns, "tools": [tool]}])
    kept = json.loads(row["completions"][0]["messages"])[0]["tool_calls"][0]
    assert row["tools"] == json.dumps([tool], separators=(",", ":"))
    assert json.dumps(kept) == json.dumps(call)
    text = call | {"function": {"name": "book", "arguments": json.dumps(call["function"]["arguments"])}}  # type: ignore[index]
    [other], _ = imported(
        "b.jsonl", [{"messages": [USER, {"role": "assistant", "tool_calls": [text]}], "tools": [tool]}]
    )
    assert other["completions"][0]["completion_id"] == row["completions"][0]["completion_id"]


def test_the_order_of_keys_does_not_make_another_prompt(imported: Import) -> None:
    tool = {"name": "add", "parameters": {"type": "object"}}
    turned = dict(reversed(tool.items()))
    one, _ = imported("a.jsonl", [{"prompt": "Hi?", "tools": [tool]}, {"prompt": "Hi?", "tools": [turned]}])
    two, _ = imported("b.jsonl", [{"prompt": "Hi?", "tools": [turned]}, {"prompt": "Hi?", "tools": [tool]}])
    assert len(one) == 1
    assert [row | {"source": ""} for row in one] == [row | {"source": ""} for row in two]


REPEATED = st.lists(
    st.fixed_dictionaries(
        {"prompt": st.sampled_from("ab"), "completion": st.sampled_from("xyz")},
        optional={
            "score": st.integers(0, 3),
            "label": st.booleans(),
            "answer": st.sampled_from(["1", "2"]),
            "note": st.sampled_from("pq"),
            "model": st.sampled_from("mn"),
        },
    ),
    min_size=1,
    max_size=8,
)


@given(rows=REPEATED, data=st.data())
def test_neither_the_order_of_files_nor_of_rows_can_be_seen(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    def import_files(files: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("order")
        (folder / "in").mkdir()
        for number, part in enumerate(files):
            lines = "".join(json.dumps(row) + "\n" for row in part)
            (folder / "in" / f"{number}.jsonl").write_text(lines)
        source = SourceConfig(uri=str(folder / "in"), name="s")
        run(ImportConfig(sources=(source,)), output=str(folder / "out"))
        return list(Dataset.open(str(folder / "out")).iter_rows())

    shuffled = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    assert import_files([rows]) == import_files([shuffled[:cut], shuffled[cut:]])


@pytest.mark.parametrize(
    "text",
    [
        "# made on Monday\n# by hand, with care\nprompt,completion\nHi?,Good.\n",
        "sep=;\nprompt;completion\nHi?;Good.\n",
        "prompt;completion\nHi?;Good.\n",
        "prompt\tcompletion\nHi?\tGood.\n",
        "#prompt,completion\nHi?,Good.\n",
        "\ufeffprompt,completion\r\nHi?,Good.\r\n",
        ",prompt,completion\n0,Hi?,Good.\n",
        '"prompt","completion"\n"Hi?","Good."\n',
    ],
)
def test_ways_to_write_a_table(imported: Import, text: str) -> None:
    [row], stats = imported("a.csv", text)
    assert json.loads(row["messages"]) == [USER]
    assert texts(row) == ["Good."]
    assert not stats.dropped


def test_a_column_that_stands_twice_is_named(imported: Import) -> None:
    with pytest.raises(DataError, match=r"a\.csv has the column 'prompt' twice"):
        imported("a.csv", "prompt,chosen,prompt\na,b,c\n")
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    with pytest.raises(DataError, match=r"a\.parquet has the column 'prompt' twice"):
        imported("a.parquet", twice)
    _, stats = imported("a.jsonl", '{"prompt": "a", "prompt": "b"}\n{"prompt": "Hi?"}\n')
    assert dict(stats.dropped) == {"key_twice": 1}


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "a.txt"])
def test_other_encodings_are_said(imported: Import, name: str) -> None:
    text = {"a.csv": "prompt\nHi?\n", "a.json": '[{"prompt": "Hi?"}]'}.get(name, '{"prompt": "Hi?"}\n')
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        with pytest.raises(DataError, match=rf"{name} is UTF-16, expected UTF-8"):
            imported(name, text.encode(encoding))
    latin = text.replace("Hi?", "Grüße").encode("latin-1")
    with pytest.raises((DataError, ConfigError), match=r"not UTF-8|not_utf8"):
        imported(name, latin)


@pytest.mark.parametrize(
    ("name", "head", "what"),
    [
        ("a.jsonl", gzip.compress(b'{"prompt": "Hi?"}', mtime=0), r"gzip; call it a\.jsonl\.gz"),
        ("a.csv", b"PK\x03\x04\x14\0", "ZIP archive"),
        ("a.txt", b"\x28\xb5\x2f\xfd\0", r"zstd; call it a\.txt\.zst"),
        ("a.json", b"PAR1\x15\x04", "Parquet"),
    ],
)
def test_files_that_are_no_text_are_said(imported: Import, name: str, head: bytes, what: str) -> None:
    with pytest.raises(DataError, match=rf"{name} is expected to be text, and is .*{what}"):
        imported(name, head)


@pytest.mark.parametrize("between", [", ", "\n "], ids=["list", "array"])
def test_chats_that_pandas_printed_are_read_from_csv(imported: Import, between: str) -> None:
    """``to_csv`` writes lists as Python prints them, and arrays without commas."""
    said = {"content": 'It\'s "good"}\n {fine.', "role": "assistant"}
    cells = [f"[{USER!r}{between}{turn!r}]".replace('"', '""') for turn in (said, BAD)]
    [row], stats = imported("a.csv", 'chosen,rejected\n"{}","{}"\n'.format(*cells))
    assert json.loads(row["messages"]) == [USER]
    assert texts(row) == [said["content"], "Bad."]
    typed = {"prompt": "Hi?", "chosen": f"[{GOOD!r}]", "rejected": "Bad."}
    [row], stats = imported("a.jsonl", [typed])
    assert texts(row)[0] == typed["chosen"]
    assert stats.counts["texts_that_are_json_chats"] == 1


@pytest.mark.parametrize("text", ["[{'role': 'assistant'", "{'role'}", "[{'a': open('x')}]", "[{'" * 500])
def test_what_only_begins_like_a_printed_chat_is_text(imported: Import, text: str) -> None:
    [row], _ = imported("a.csv", f'prompt,chosen,rejected\nHi?,"{text}",Bad.\n')
    assert texts(row) == [text, "Bad."]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": "Well."},
        {"type": "thinking", "thinking": [{"type": "text", "text": "Well."}], "closed": True},
        {"type": "reasoning", "text": "Well."},
    ],
)
def test_parts_of_reasoning_are_the_reasoning(part: dict[str, Any]) -> None:
    answer = {"role": "assistant", "content": [part, {"type": "text", "text": "Good."}]}
    [completion] = read({"messages": [USER, answer]}).completions
    assert completion.messages == [GOOD | {"reasoning_content": "Well."}]


def test_values_that_are_false_are_noticed_as_well() -> None:
    turns = [USER | {"weight": 0}, GOOD | {"train": False, "annotations": [], "refusal": None}]
    example = read({"messages": turns})
    assert dict(example.notes) == {"turn_field_not_kept_weight": 1, "turn_field_not_kept_train": 1}


@pytest.mark.parametrize(
    ("turn", "unread"),
    [
        (USER | {"name": "Bob"}, "name"),
        (USER | {"reasoning_content": "Well."}, "reasoning_content"),
        (USER | {"text": "Ho?"}, "text"),
        (USER | {"from": "Bob"}, "from"),
        (GOOD | {"tool_call_id": "c1"}, "tool_call_id"),
        (GOOD | {"reasoning": ["Well."]}, "reasoning"),
    ],
)
def test_members_that_a_turn_of_the_role_does_not_have_are_noticed(turn: dict[str, Any], unread: str) -> None:
    turns = [turn, GOOD] if turn["role"] == "user" else [USER, turn]
    assert dict(read({"messages": turns}).notes) == {f"turn_field_not_kept_{unread}": 1}


def test_reasoning_that_is_said_twice_is_read_once() -> None:
    answer = GOOD | {"content": "<think>\nWell.\n</think>Good."}
    [completion] = read({"messages": [USER, answer | {"reasoning_content": "Well."}]}).completions
    assert completion.messages == [answer]
    [completion] = read({"messages": [USER, answer | {"reasoning_content": "Other."}]}).completions
    assert completion.messages == [answer | {"reasoning_content": "Other."}]


@pytest.mark.parametrize("name", ["reasoning", "Complex_CoT", "model_thoughts", "rationale"])
def test_reasoning_in_a_column_of_its_own_is_noticed(name: str) -> None:
    example = read({"prompt": "Hi?", "response": "Good.", name: "Well."})
    assert dict(example.notes) == {f"column_not_understood_{name}": 1}


def test_a_file_whose_kind_changes_is_read_row_by_row(imported: Import) -> None:
    pairs = [{"prompt": f"Fruit {i}?", "chosen": "A", "rejected": "B"} for i in range(70)]
    turns = [{"role": "user", "content": "Town?"}, {"role": "assistant", "content": "Rome"}]
    later = [{"messages": turns}, {"instruction": "Sum?", "output": "2"}]
    rows, stats = imported("mixed.jsonl", [*pairs, *later])
    assert stats.rows_out == 72
    assert not stats.dropped
    assert stats.counts["rows_read_as_messages"] == stats.counts["rows_read_as_instruction"] == 1
    found = {row["messages"]: len(row["completions"]) for row in rows}
    assert found['[{"role":"user","content":"Town?"}]'] == 1
    assert stats.counts["completions"] == 142
    # A prompt without its pair is no other kind, and a format that was named is kept to.
    _, stats = imported("alone.jsonl", [*pairs, {"prompt": "Alone?"}, later[0]])
    assert stats.dropped == {"no_pair": 1}
    _, stats = imported("named.jsonl", [*pairs, later[0]], format="preference")
    assert stats.dropped == {"no_pair": 1}


@pytest.mark.parametrize("mark", ["### Human: {}\n### Assistant: {}", "**User:** {}\n\n**Assistant:** {}"])
def test_decorated_transcripts_are_chats(mark: str) -> None:
    example = read({side: mark.format("Fruit?", text) for side, text in (("chosen", "A"), ("rejected", "B"))})
    assert example.messages == [{"role": "user", "content": "Fruit?"}]
    assert [c.messages[0]["content"] for c in example.completions] == ["A", "B"]


@pytest.mark.parametrize(
    "start", ["\n\nH: Fruit?\n\nA: ", "<|user|>\nFruit?<|assistant|>\n", "[INST] Fruit? [/INST] "]
)
def test_chats_in_a_form_that_is_not_read_are_noted(start: str) -> None:
    assert read({"chosen": start + "Plum", "rejected": start + "Kiwi"}).notes == {
        "prompts_with_marks_of_a_chat": 1
    }
    assert read({"prompt": start}).notes == {"prompts_with_marks_of_a_chat": 1}
    assert not read({"prompt": "Which is the answer: A or B?"}).notes


def test_columns_that_name_an_answer_are_noted_where_nobody_reads_them() -> None:
    example = read(
        {"prompt": "Fruit?", "first_reply": "A", "second_reply": "B", "better_reply": 1, "lang": "en"}
    )
    names = ("first_reply", "second_reply", "better_reply")
    assert example.notes == {f"column_not_understood_{name}": 1 for name in names}


def test_lists_of_texts_in_cells_are_lists_where_cells_have_no_types(imported: Import) -> None:
    cells = 'prompt,responses,answer\nFruit?,"[""Plum"", ""Kiwi""]","[""a"", ""b""]"\n'
    (row,), stats = imported("rows.csv", cells)
    assert stats.counts["completions"] == 2
    assert row["answers"] == ["a", "b"]
    assert read({"prompt": "List?", "answer": '["a", "b"]'}).answers == ['["a", "b"]']


def test_bytes_that_are_no_text_are_named() -> None:
    with pytest.raises(Malformed, match="not_text"):
        read({"prompt": b"\xff", "chosen": "A", "rejected": "B"})


def test_scores_of_single_completions_and_members_of_listed_ones(imported: Import) -> None:
    [row], stats = imported("a.jsonl", [{"prompt": "Hi?", "completion": "Good.", "rating": 4, "margin": 2}])
    assert row["completions"][0]["score"] == 4.0
    assert stats.counts["column_not_understood_margin"] == 1
    listed = {"response": "Good.", "score": 1, "critique": "Fine.", "principle": ""}
    _, stats = imported("b.jsonl", [{"prompt": "Hi?", "completions": [listed]}])
    assert stats.counts["completion_field_not_kept_critique"] == 1
    assert "completion_field_not_kept_principle" not in stats.counts


def test_the_passage_of_an_instruction_is_in_its_prompt(imported: Import) -> None:
    [row], _ = imported("a.jsonl", [{"instruction": "Sum up.", "context": "It rains.", "response": "Rain."}])
    assert json.loads(row["messages"]) == [{"role": "user", "content": "Sum up.\nIt rains."}]
    _, stats = imported("b.jsonl", [{"prompt": "Sum up.", "context": "It rains.", "response": "Rain."}])
    assert stats.counts["column_not_understood_context"] == 1


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_numbers_of_any_precision_are_those_that_were_written(imported: Import, kind: pa.DataType) -> None:
    table = pa.table({"question": ["Hi?"], "answer": pa.array([0.1], pa.float64()).cast(kind)})
    [row], _ = imported("a.parquet", table)
    assert row["answers"] == ["0.1"]
    scored = pa.array([[{"text": "Good.", "score": 0.3}]]).cast(
        pa.list_(pa.struct([("text", pa.string()), ("score", kind)]))
    )
    [row], _ = imported("b.parquet", pa.table({"prompt": ["Hi?"], "completions": scored}))
    assert row["completions"][0]["score"] == 0.3


def test_pairs_that_seldom_mean_what_they_say_are_noted(imported: Import) -> None:
    against = PAIR | {"score_chosen": 1, "score_rejected": 5}
    repeated = {"prompt": "Ho?", "chosen": "Ho? Good.", "rejected": "Ho? Bad."}
    equal = {"prompt": "Ha?", "chosen": "Same.", "rejected": "Same."}
    rows, stats = imported("a.jsonl", [against, repeated, equal])
    noted = ("pairs_scored_against_their_labels", "pairs_that_repeat_their_prompt", "comparisons_of_equals")
    assert [stats.counts[name] for name in noted] == [1, 1, 1]
    assert "comparisons_contradicted" not in stats.counts
    assert sorted(sum(bool(c["wins"]) for c in row["completions"]) for row in rows) == [0, 1, 1]


def test_quotes_escaped_by_a_backslash_are_refused_and_not_mangled(imported: Import) -> None:
    with pytest.raises(DataError, match=r"damaged at line 2: .* Spark writes a backslash"):
        imported("a.csv", 'prompt,chosen,rejected\n"say \\"hi\\"",a,b\n')
    [row], _ = imported("b.csv", 'prompt,chosen,rejected\n"say ""hi"", C:\\",a "good" one,b\n')
    assert json.loads(row["messages"])[0]["content"] == 'say "hi", C:\\'
    assert json.loads(row["completions"][0]["messages"])[0]["content"] == 'a "good" one'


@pytest.mark.parametrize("roles", [("prompter", "ai"), ("Human", "chatgpt")])
def test_roles_of_known_exports(imported: Import, roles: tuple[str, str]) -> None:
    turns = [{"from": role, "value": text} for role, text in zip(roles, ("Hi?", "Good."))]
    [row], _ = imported("a.jsonl", [{"conversations": turns}])
    assert json.loads(row["messages"]) == [USER]
    assert json.loads(row["completions"][0]["messages"]) == [GOOD]


def test_results_of_tools_under_the_names_of_known_families(imported: Import) -> None:
    call = {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'}
    for role in ("ipython", "tool_response"):
        chat = [USER, call, {"role": role, "content": "1"}, GOOD]
        [row], _ = imported(f"{role}.jsonl", [{"messages": chat}])
        assert [turn["role"] for turn in json.loads(row["messages"])] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    "names",
    [("win", "lose"), ("y_w", "y_l"), ("positive", "negative"), ("gold", "answerKey"), ("grade", "stars")],
)
def test_columns_that_judge_or_verify_are_noted_by_whatever_name(names: tuple[str, str]) -> None:
    example = read({"prompt": "Hi?", names[0]: "Good.", names[1]: "Bad."})
    assert example.notes == {f"column_not_understood_{name}": 1 for name in names}


TO_COUNT_WITH = {"target": 98, "numbers": [44, 19, 35]}


@pytest.mark.parametrize(
    ("truth", "noted"),
    [
        ({"ground_truth": "7"}, []),
        ({"reward_model": {"ground_truth": "7", "style": "rule"}}, []),
        ({"answer": 7.0, "ground_truth": None}, []),
        ({"ground_truth": TO_COUNT_WITH, "reward_model": {"ground_truth": "7"}}, ["ground_truth"]),
        ({"ground_truth": "8", "solution": "7"}, ["ground_truth"]),
    ],
)
def test_what_verifies_an_answer_in_files_for_reinforcement_learning(
    truth: dict[str, Any], noted: list[str]
) -> None:
    example = read({"prompt": [USER], **truth})
    understood = {name.removeprefix("column_not_understood_") for name in example.notes if "kept" not in name}
    assert (example.answers, understood) == (["7"], set(noted))


@pytest.mark.parametrize("truth", [TO_COUNT_WITH, {"target": ["Paris", "paris"]}, [{"name": "f"}]])
@pytest.mark.parametrize("name", ["ground_truth", "reward_model"])
def test_what_a_program_verifies_by_is_left_and_noted(name: str, truth: object) -> None:
    example = read({"prompt": [USER], name: truth if name == "ground_truth" else {"ground_truth": truth}})
    assert (example.answers, example.notes[f"column_not_understood_{name}"]) == ([], 1)
