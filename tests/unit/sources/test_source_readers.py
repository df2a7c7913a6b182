"""File formats: any rows, any block boundaries, and damage by name."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubealign_components.errors import DataError
from kubealign_components.sources.file_readers import Unreadable, read_rows

ROWS = [{"prompt": f'Frage {i}: «ä», \n"{i}"?', "chosen": "x" * i, "rejected": "y"} for i in range(700)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def rows_of(path: Path) -> list[Any]:
    return [row for row, _ in read_rows(path, path.name)]


def json_list(path: Path, indent: int | None = None) -> None:
    path.write_text(json.dumps(ROWS, indent=indent, ensure_ascii=False), encoding="utf-8")


def json_lines(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")


def json_values(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))


def two_json_lists(path: Path) -> None:
    path.write_text(json.dumps(ROWS[:300]) + "\n" + json.dumps(ROWS[300:], indent=1))


def json_lists_as_columns(path: Path) -> None:
    path.write_text(json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}))


def json_numbered_columns(path: Path) -> None:
    """As ``DataFrame.to_json`` writes by default."""
    path.write_text(json.dumps({name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in ROWS[0]}))


def json_numbered_rows(path: Path) -> None:
    path.write_text(json.dumps({str(i): row for i, row in enumerate(ROWS)}))


def json_data(path: Path) -> None:
    path.write_text(json.dumps({"data": ROWS}, indent=1))


def comma_separated(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(ROWS)


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=300)


def arrow_stream(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def arrow_file(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.json", json_list),
        ("indented.json", lambda path: json_list(path, 2)),
        ("lines.json", json_lines),
        ("a.jsonl", json_lines),
        ("a.NDJSON", json_lines),
        ("values.json", json_values),
        ("values.jsonl", json_values),
        ("list.jsonl", json_list),
        ("lists.json", two_json_lists),
        ("columns.json", json_lists_as_columns),
        ("numbered.json", json_numbered_columns),
        ("rows.json", json_numbered_rows),
        ("data.json", json_data),
        ("a.csv", comma_separated),
        ("a.tsv", comma_separated),
        ("a.parquet", parquet),
        ("stream.arrow", arrow_stream),
        ("file.arrow", arrow_file),
    ],
)
def test_every_kind_of_file_gives_its_rows(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    path = tmp_path / name
    write(path)
    empty_cell = None if path.suffix in (".csv", ".tsv") else ""
    found = list(read_rows(path, name))
    assert [row for row, _ in found] == [row | {"chosen": row["chosen"] or empty_cell} for row in ROWS]
    assert all(0 <= done <= 1 for _, done in found)


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".zst", None)]
)
def test_compressed_files(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes] | None) -> None:
    data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(data) if compress else pa.Codec("zstd").compress(data, asbytes=True))
    assert rows_of(path) == ROWS
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=path.name):
        rows_of(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(JSON, max_size=6), indent=st.none() | st.integers(0, 3), filler=st.integers(0, 40))
def test_any_json_list_is_read_across_block_boundaries(
    tmp_path: Path, rows: list[Any], indent: int | None, filler: int
) -> None:
    path = tmp_path / "a.json"
    first = "z" * (2**20 - 20 - filler)  # the rows after it straddle the end of the first block
    path.write_text(json.dumps([first, *rows, 12345678901234], indent=indent))
    assert rows_of(path) == [first, *rows, 12345678901234]


@pytest.mark.parametrize("row", ["é" * (3 * 2**20), "\\u00e9\\\\" * 200_000, [0.5] * 300_000])
def test_items_longer_than_a_block(tmp_path: Path, row: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([row, 1, row]))
    assert rows_of(path) == [row, 1, row]


@pytest.mark.parametrize(
    "text", ['[{"a": 1}, {"a": 2', '[{"a": 1} {"a": 2}]', '[{"a": nope}]', "[1, 2", "[1,]"]
)
def test_a_damaged_json_list_is_an_error_not_fewer_rows(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"a\.json is damaged in the item at character \d+"):
        rows_of(path)


def test_broken_lines_are_rows_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n\xff\xfe\n' + b"[" * 100_000 + b"\n" + b"9" * 5000 + b'\n{"a": 2}')
    found = rows_of(path)
    assert [f for f in found if not isinstance(f, Unreadable)] == [{"a": 1}, {"a": 2}]
    assert [f.reason for f in found if isinstance(f, Unreadable)] == [
        "bad_json",
        "not_utf8",
        "bad_json",
        "bad_json",
    ]
    sheet = tmp_path / "a.csv"
    sheet.write_text("prompt,chosen\na,b\nc\nd,e,f\n")
    assert [getattr(row, "reason", row) for row in rows_of(sheet)] == [
        {"prompt": "a", "chosen": "b"},
        "bad_csv",
        "bad_csv",
    ]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_files_of_another_kind_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"not what it is called" * 10)
    with pytest.raises(DataError, match=name):
        rows_of(path)


def test_other_encodings_are_named(tmp_path: Path) -> None:
    for name in ("a.csv", "a.json"):
        path = tmp_path / name
        path.write_bytes('["prompt ä"]\n"ö"'.encode("latin-1"))
        with pytest.raises(DataError, match=f"{name} is not UTF-8"):
            rows_of(path)


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for name, text in {
        "a.json": "",
        "b.json": " [ ] ",
        "c.jsonl": "\n\n",
        "d.csv": "prompt\n",
        "e.csv": "",
    }.items():
        (tmp_path / name).write_text(text)
        assert rows_of(tmp_path / name) == []


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?", "completions": [{"response": "a"}, {"response": "b"}]},
        {"messages": [{"role": "user", "content": "Hi?"}]},
        {"dialogue": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi!"}]},
        {"chosen": {"role": "assistant", "content": "a"}, "rejected": {"role": "assistant", "content": "b"}},
        {"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]},
        {"prompt": {"0": "a", "1": "b"}, "chosen": {"0": "c"}},
    ],
)
def test_one_object_that_is_no_table_is_one_row(tmp_path: Path, row: dict[str, Any]) -> None:
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps(row, indent=indent))
        assert rows_of(tmp_path / "a.json") == [row]


def test_what_stands_beside_a_list_of_rows_is_said_of_each(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"system": "Be brief.", "data": ROWS[:2]}))
    assert rows_of(tmp_path / "a.json") == [{"system": "Be brief."} | row for row in ROWS[:2]]


def test_a_broken_first_line_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": {"b": 1,\n{"a": 1}\n{"a": 2}\n')
    first, *others = rows_of(tmp_path / "a.jsonl")
    assert isinstance(first, Unreadable)
    assert others == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.csv"])
def test_a_pointer_of_git_lfs_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    with pytest.raises(DataError, match="is a pointer of Git LFS and not the file itself; run git lfs pull"):
        list(read_rows(tmp_path / name, name))
