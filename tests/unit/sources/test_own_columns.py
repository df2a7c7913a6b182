"""Data of one's own: names of columns and roles, text files, and names of sources."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from kubealign_components.clean_pmp.stage import CleanPmpConfig, PmpSource
from kubealign_components.clean_pmp.stage import run as clean_pmp
from kubealign_components.data.dataset import Dataset
from kubealign_components.errors import ConfigError
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig, run


def imported(folder: Path, *sources: dict[str, Any]) -> list[dict[str, Any]]:
    output = str(folder / f"out{len(list(folder.glob('out*')))}")
    run(ImportConfig(sources=tuple(SourceConfig(**source) for source in sources)), output=output)
    return list(Dataset.open(output).iter_rows())


def lines(path: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"uri": str(path)}


def told(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in json.loads(row["messages"])]


def test_columns_with_names_of_ones_own(tmp_path: Path) -> None:
    row = {"frage": "Hi?", "gut": "Good.", "schlecht": "Bad.", "rolle": "Be brief.", "punkte": 3, "prompt": 7}
    source = lines(tmp_path / "a.jsonl", row)
    source["columns"] = {
        "frage": "prompt",
        "gut": "chosen",
        "schlecht": "rejected",
        "rolle": "system",
        "punkte": "score_chosen",
        "prompt": "metadata",
    }
    [found] = imported(tmp_path, source)
    assert told(found) == [("system", "Be brief."), ("user", "Hi?")]
    assert [(c["label"], c["score"]) for c in found["completions"]] == [("chosen", 3.0), ("rejected", None)]
    assert json.loads(found["metadata"]) == {"source_prompt": 7}
    config = CleanPmpConfig(sources=(PmpSource(**source),), validation_fraction=0.0)
    assert clean_pmp(config, output=str(tmp_path / "pmp")).rows_out == 1


@pytest.mark.parametrize(
    ("value", "prompts"),
    [
        ({"frage": "Hi?", "antworten": [{"text": "Good."}, {"text": "Bad."}]}, ["Hi?"]),
        ({"1": {"role": "user", "content": "Hi?"}, "antworten": ["Good.", "Bad."]}, ["Hi?"]),
        ({"1": [{"role": "user", "content": "Hi?"}], "antworten": [{"text": "Good."}]}, ["Hi?"]),
        ({"frage": ["Hi?", "Ho?"], "antworten": [["Good.", "Bad."], ["So."]]}, ["Hi?", "Ho?"]),
        ({"frage": {"0": "Hi?", "1": "Ho?"}, "antworten": {"0": ["Good."], "1": ["So."]}}, ["Hi?", "Ho?"]),
        ({"0": {"frage": "Hi?", "antworten": ["Good."]}}, ["Hi?"]),
        (
            {
                "regel": "Be brief.",
                "data": [{"frage": f"{word}?", "antworten": ["So."]} for word in ("Hi", "Ho")],
            },
            ["Hi?", "Ho?"],
        ),
    ],
)
def test_one_row_a_file_and_tables_of_ones_own_columns(
    tmp_path: Path, value: dict[str, Any], prompts: list[str]
) -> None:
    columns = {"frage": "prompt", "antworten": "completions", "1": "prompt", "regel": "system"}
    known = {name: columns[name] for name in columns if f'"{name}"' in json.dumps(value)}
    if "frage" in known:
        known.pop("1", None)
    source = lines(tmp_path / "a" / "a.json", value) | {"uri": str(tmp_path / "a"), "columns": known}
    rows = imported(tmp_path, source)
    assert sorted(told(row)[-1][1] for row in rows) == prompts
    assert all(row["completions"] for row in rows)


def test_roles_with_names_of_ones_own(tmp_path: Path) -> None:
    turns = [{"role": "Patient", "content": "Hi?"}, {"role": "Doctor", "content": "Good."}]
    source = lines(tmp_path / "a.jsonl", {"dialogue": turns})
    source |= {"columns": {"dialogue": "messages"}, "roles": {"Patient": "user", "doctor": "assistant"}}
    [found] = imported(tmp_path, source)
    assert told(found) == [("user", "Hi?")]
    assert len(found["completions"]) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"frage": "promt"}}, r"sources\.columns\.frage='promt': expected one of answer"),
        (
            {"columns": {"nope": "prompt"}},
            r"sources\.a\.columns='nope': expected a column; .*columns frage, prompt",
        ),
        ({"columns": {"frage": "prompt"}}, r"sources\.a\.columns='frage': expected no second prompt"),
        ({"columns": {"frage": "prompt", "prompt": "prompt"}}, "one column for each of prompt"),
        ({"roles": {"Doctor": "physician"}}, r"sources\.roles\.Doctor='physician': expected one of"),
        ({"text": "words"}, r"sources\.text='words'"),
    ],
)
def test_mappings_that_do_not_fit_are_named(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    source = lines(tmp_path / "a.jsonl", {"frage": "Hi?", "prompt": "Ho?"})
    with pytest.raises(ConfigError, match=message):
        imported(tmp_path, source | settings)


def test_text_files(tmp_path: Path) -> None:
    text = "\ufeffName a fruit.\r\n\r\n  Name a tree. \n"
    (tmp_path / "a.txt").write_text(text, newline="")
    with gzip.open(tmp_path / "b.txt.gz", "wt", newline="") as file:
        file.write(text)
    with lzma.open(tmp_path / "c.txt.xz", "wt", newline="") as file:
        file.write(text)
    for name in ("a.txt", "b.txt.gz", "c.txt.xz"):
        rows = imported(tmp_path, {"uri": str(tmp_path / name)})
        assert sorted(told(row)[0][1] for row in rows) == ["Name a fruit.", "Name a tree."]
    [whole] = imported(tmp_path, {"uri": str(tmp_path / "a.txt"), "text": "file"})
    assert told(whole) == [("user", "Name a fruit.\r\n\r\n  Name a tree.")]


def test_a_licence_beside_the_data_is_no_data(tmp_path: Path) -> None:
    lines(tmp_path / "in" / "a.jsonl", {"prompt": "Hi?"})
    (tmp_path / "in" / "LICENSE.txt").write_text("Take it.\n")
    assert len(imported(tmp_path, {"uri": str(tmp_path / "in")})) == 1


def test_sources_get_names_of_their_own(tmp_path: Path) -> None:
    sources = [
        lines(tmp_path / "x" / "train.jsonl", {"prompt": "a"}),
        lines(tmp_path / "y" / "train.jsonl", {"prompt": "b"}),
        lines(tmp_path / "y" / "more.train.jsonl", {"prompt": "c"}) | {"name": "mine"},
    ]
    rows = imported(tmp_path, *sources)
    assert sorted(row["source"] for row in rows) == ["mine", "train", "y-train"]
    with pytest.raises(ConfigError, match="a different name for every source"):
        ImportConfig(sources=(SourceConfig(uri="a", name="x"), SourceConfig(uri="b", name="x")))
    again = ImportConfig(
        sources=(SourceConfig(uri="s3://b/data.jsonl"), SourceConfig(uri="s3://b/data.jsonl"))
    )
    assert len({source.name for source in again.sources}) == 2
