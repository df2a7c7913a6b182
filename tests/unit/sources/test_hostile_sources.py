"""Damaged and hostile files: errors with names, in bounded time and memory, never a crash."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubealign_components.clean_prompts.trees import Trees, read_messages
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.sources import json_files
from kubealign_components.sources.file_readers import read_rows
from kubealign_components.sources.locate import find_files
from kubealign_components.sources.splits import matches, splits_of
from kubealign_components.sources.values import Malformed


@pytest.mark.parametrize("kind", ["stream", "file"])
@pytest.mark.parametrize("compression", [None, "lz4"])
def test_single_bit_flips_of_arrow_files_are_rows_or_named_errors(
    tmp_path: Path, kind: str, compression: str | None
) -> None:
    rows = [
        {"prompt": f"ä{i}", "turns": [{"role": "user", "content": "x" * i}], "n": i / 2} for i in range(8)
    ]
    table = pa.Table.from_pylist(rows).append_column("d", pa.array(list("abcabcab")).dictionary_encode())
    path = tmp_path / "a.arrow"
    make = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with make(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    sound, draw = path.read_bytes(), random.Random(0)
    named = 0
    for _ in range(400):
        bit = draw.randrange(8 * len(sound))
        flipped = bytearray(sound)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            list(read_rows(path, path.name))
        except DataError as error:
            named += "a.arrow" in str(error)
    assert named > 50


def card(body: str) -> str:
    return f"---\n{body}\n---\n"


def test_dataset_cards_are_bounded() -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    slow = "**a" * 25 + "b"
    started = time.monotonic()
    for body in (f"{bomb}configs:\n- data_files: *a8", f"{bomb}configs:\n- data_dir: *a8"):
        with pytest.raises(ConfigError, match="a dataset card without YAML aliases"):
            splits_of(["a.jsonl"], card(body))
    assert splits_of(["a" * 200 + ".jsonl"], card(f"configs:\n- data_files: '{slow}'")) == {"train": []}
    for pattern in ("[z-a].jsonl", "a[!].jsonl", "[", "[]"):
        splits_of(["a.jsonl"], card(f"configs:\n- data_files: '{pattern}'"))
    for body in ("configs:\n- data_files: [[a]]", "configs:\n- data_files: 'x'\n  data_dir: [a]"):
        with pytest.raises(ConfigError):
            splits_of(["a.jsonl"], card(body))
    with pytest.raises(ConfigError, match="at most 1000 patterns"):
        splits_of(["a.jsonl"], card(f"configs:\n- data_files: {json.dumps(['x'] * 1001)}"))
    assert splits_of(["a.jsonl"], card("configs: 7\nd: 2024-99-99")) == {"train": ["a.jsonl"]}
    assert time.monotonic() - started < 5


NAMES = st.text(st.sampled_from("ab/."), max_size=8)


@given(NAMES, st.text(st.sampled_from("ab/.*?"), max_size=6))
def test_globs_match_as_regular_expressions_do(name: str, pattern: str) -> None:
    import re

    pieces = re.findall(r"\*\*/|\*\*|\*|\?|.", pattern)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    expression = "".join(special.get(piece) or re.escape(piece) for piece in pieces)
    assert matches(name, pieces) == (re.fullmatch(expression, name) is not None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("state.json", "[]"),
        ("state.json", "{"),
        ("state.json", '{"_data_files": 7}'),
        ("state.json", '{"_data_files": [{"filename": 7}]}'),
        ("dataset_dict.json", "null x"),
        ("dataset_dict.json", "[1]"),
        ("dataset_dict.json", '{"splits": 7}'),
        ("dataset_dict.json", '{"splits": [[1]]}'),
    ],
)
def test_records_of_saved_datasets_of_another_form_are_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "data.arrow").write_bytes(b"")
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match="a saved dataset"):
        find_files(str(tmp_path), split="train")


def test_items_over_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "MAX_ROW_BYTES", 2**21)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(["x" * (2**21 - 10)]))
    assert len(list(read_rows(path, path.name))) == 1
    path.write_text(json.dumps(["x" * (2**21 + 10)]))
    with pytest.raises(DataError, match="an item of more than 2097152 characters"):
        list(read_rows(path, path.name))


def test_lone_surrogates_in_trees_are_malformed_and_doubles_do_not_depend_on_order() -> None:
    for column in ("message_id", "parent_id", "text", "lang"):
        row = {"message_id": "a", "text": "Hi", "role": "prompter"} | {column: "\ud800"}
        with pytest.raises(Malformed, match="not_json"):
            read_messages(row)
    found = []
    for texts in (("a", "b"), ("b", "a")):
        with Trees() as trees:
            for number, text in enumerate(texts):
                [message] = read_messages({"message_id": "m", "text": text, "role": "prompter"})
                trees.add(0, number, message)
            trees.link()
            found.append([root.message.text for root in trees.roots(1)])
    assert found == [["a"], ["a"]]
