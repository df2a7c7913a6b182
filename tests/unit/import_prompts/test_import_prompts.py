"""The stage: what comes in comes out or is counted, whatever it is and in whatever order."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kfp import dsl

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import PROMPTS, prompt_id
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError, DataError, NotFound
from kubealign_components.import_prompts.component import import_prompts
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig, run
from kubealign_components.sources.row_formats import FORMATS

Import = Callable[..., tuple[Dataset, Stats]]

# Column names that mean something to a format, so that garbage gets past detection.
NAMES = [
    *("prompt", "chosen", "rejected", "messages", "conversations", "instruction", "input", "output"),
    *("completions", "candidate_0", "candidate_1", "choice", "initial_prompt", "conversation_branches"),
    *("system_prompt", "tools", "answer", "label", "score", "history", "system", "role", "content", "from"),
    *("value", "parts", "type", "name", "args", "arguments", "function", "tool_calls", "text", "a"),
]
WORDS = [
    "user",
    "assistant",
    "system",
    "human",
    "gpt",
    "function_call",
    "tool",
    "response",
    "function-call",
    "{}",
    "",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=8)
    | st.sampled_from(WORDS)
)
GARBAGE = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=25,
)


USER = {"role": "user", "content": "Hi?"}
CALL = {"id": "1", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
PARTS = [
    {"type": "function-call", "name": "add", "args": "{}"},
    {"type": "function-output", "content": "2"},
    {"type": "response", "content": "2"},
    {"type": "verifiable-responses", "answers": ["2"]},
]
SOUND = [
    {"prompt": "Hi?", "chosen": "A", "rejected": "B", "score_chosen": 1.0, "answer": "A"},
    {
        "chosen": [USER, {"role": "assistant", "content": "A"}],
        "rejected": [USER, {"role": "gpt", "content": "B"}],
    },
    {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}], "tools": TOOLS, "label": True},
    {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "function_call", "value": "{}"}]},
    {"instruction": "Sort", "input": "b", "output": "a", "history": [["Hi?", "A"]], "system": "Short."},
    {"prompt": [USER], "completions": [{"text": "A", "score": 1, "model": "m"}, {"response": "B"}]},
    {"input_text": "Hi?", "candidate_0": "A", "candidate_1": "B", "choice": 1},
    {
        "system_prompt": {"content": "Short."},
        "initial_prompt": {"content": "1+1?"},
        "available_functions": TOOLS,
        "conversation_branches": [{"messages": [{"role": "assistant", "parts": PARTS}]}] * 2,
    },
]


@st.composite
def spoilt(draw: st.DrawFn) -> Any:
    """A sound row of some format, with garbage somewhere in it."""

    def descend(value: Any) -> Any:
        keys = (
            list(value)
            if isinstance(value, dict)
            else list(range(len(value)))
            if isinstance(value, list)
            else []
        )
        if not keys or draw(st.integers(0, 3)) == 0:
            return draw(GARBAGE)
        key = draw(st.sampled_from(keys))
        copy = value.copy()
        copy[key] = descend(value[key])
        return copy

    return descend(draw(st.sampled_from(SOUND)))


ROW = spoilt() | GARBAGE | st.dictionaries(st.sampled_from(NAMES), GARBAGE, max_size=6)


def pairs(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Question {i}?", "chosen": f"Yes {i}.", "rejected": "No."}
        for i in range(start, start + count)
    ]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """``imported(rows, …)`` imports each list of rows as a source of its own."""
    made = 0

    def make(
        *sources: Sequence[Any], each: Sequence[dict[str, Any]] = (), **options: Any
    ) -> tuple[Dataset, Stats]:
        nonlocal made
        made += 1
        configs = []
        for number, rows in enumerate(sources):
            path = tmp_path / f"{made}-{number}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            own = {"name": f"source{number}", "uri": str(path)} | (dict(each[number]) if each else {})
            configs.append(SourceConfig(**own))
        output = str(tmp_path / f"out-{made}")
        stats = run(ImportConfig(sources=tuple(configs), **options), output=output)
        return Dataset.open(output, PROMPTS, allow_empty=True), stats

    return make


def by_id(dataset: Dataset) -> dict[str, dict[str, Any]]:
    return {row["prompt_id"]: row for row in dataset.iter_rows()}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROW, min_size=1, max_size=8),
    format=st.sampled_from(["auto", *FORMATS]),
    max_rows=st.integers(0, 2),
)
def test_whatever_comes_in_comes_out_or_is_counted(
    imported: Import, rows: list[Any], format: str, max_rows: int
) -> None:
    try:
        dataset, stats = imported(
            rows, pairs(2), each=[{"format": format}, {}], max_bad_fraction=1.0, max_rows=max_rows
        )
    except ConfigError as error:
        assert format == "auto" and "known format" in str(error)
        return
    assert stats.rows_in == len(rows) + 2 == stats.rows_out + stats.dropped.total()
    assert dataset.rows == stats.rows_out == (min(max_rows, 2) if max_rows else dataset.rows)
    for row in dataset.iter_rows():
        tools = json.loads(row["tools"]) if row["tools"] else None
        assert row["prompt_id"] == prompt_id(json.loads(row["messages"]), tools)
        assert len({c["completion_id"] for c in row["completions"]}) == len(row["completions"])
        assert not any(c["reference"] for c in row["completions"])


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 999), max_rows=st.integers(0, 12))
def test_the_order_of_rows_changes_nothing(imported: Import, seed: int, max_rows: int) -> None:
    rows = [*pairs(12), *pairs(3), {"prompt": "Question 1?", "chosen": "Perhaps.", "rejected": "No."}]
    shuffled = random.Random(seed).sample(rows, len(rows))
    first, _ = imported(rows, max_rows=max_rows)
    second, _ = imported(shuffled, max_rows=max_rows)
    assert first.table(["prompt_id", "messages"]).equals(second.table(["prompt_id", "messages"]))
    for one, other in zip(first.iter_rows(), second.iter_rows()):
        assert {c["completion_id"] for c in one["completions"]} == {
            c["completion_id"] for c in other["completions"]
        }


def test_duplicates_are_merged_and_the_first_source_names_them(imported: Import) -> None:
    first = [{"prompt": "Hi?", "chosen": "A", "rejected": "B", "answer": "1", "kind": "x"}]
    second = [
        {
            "prompt": "Hi?",
            "completions": [{"text": "A", "score": 3, "model": "m"}, {"text": "C"}],
            "answer": "2",
        },
        {"prompt": "Other?", "completions": ["A"]},
    ]
    third = [{"prompt": "Hi?", "chosen": "B", "rejected": "C"}]
    dataset, stats = imported(first, second, third, each=[{"weight": 2.0}, {}, {}])
    rows = {json.loads(row["messages"])[0]["content"]: row for row in dataset.iter_rows()}
    merged = rows["Hi?"]
    assert (merged["source"], merged["source_weight"], merged["answers"]) == ("source0", 2.0, ["1", "2"])
    assert json.loads(merged["metadata"]) == {"kind": "x"}
    told = [
        (json.loads(c["messages"])[0]["content"], c["label"], c["score"], c["model"])
        for c in merged["completions"]
    ]
    assert told == [
        ("A", "chosen", 3.0, "m"),
        ("B", None, None, "offline"),
        ("C", "rejected", None, "offline"),
    ]
    assert rows["Other?"]["source"] == "source1"
    assert stats.dropped == {"duplicate_prompt": 2}
    assert stats.counts["completions_chosen_and_rejected"] == 1
    assert [(c["wins"], c["losses"]) for c in merged["completions"]] == [([0], []), ([1], [0]), ([], [1])]
    assert stats.counts["completions_duplicate"] == 3


def test_overlapping_comparisons_are_all_kept_and_nobody_else_s_are_made(imported: Import) -> None:
    pairs = ["AB", "BC", "AB", "DE", "AD", "FG", "GF"]
    rows = [{"prompt": "Hi?", "chosen": f"{a}.", "rejected": f"{b}."} for a, b in pairs]
    dataset, stats = imported(rows[:4], rows[4:])
    [row] = dataset.iter_rows()
    texts = [json.loads(c["messages"])[0]["content"][0] for c in row["completions"]]
    winners = {n: text for text, c in zip(texts, row["completions"]) for n in c["wins"]}
    losers = {n: text for text, c in zip(texts, row["completions"]) for n in c["losses"]}
    assert sorted(winners[n] + losers[n] for n in winners) == ["AB", "AD", "BC", "DE"]
    assert sorted(winners) == sorted(losers) == [0, 1, 2, 3]
    assert stats.counts["comparisons_contradicted"] == 2
    labels = dict(zip(texts, (c["label"] for c in row["completions"])))
    assert labels["A"] == "chosen" and labels["C"] == "rejected" and labels["B"] is labels["D"] is None


def test_a_suffix_stands_behind_the_last_user_turn_and_makes_another_prompt(imported: Import) -> None:
    talk = [USER, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "1+1?\n"}]
    tool = {"role": "tool", "content": "2"}
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    chats: list[dict[str, Any]] = [{"messages": talk}, {"messages": [*talk, call, tool]}]
    plain, _ = imported(chats)
    asked, _ = imported(chats, each=[{"prompt_suffix": "Say a number."}])
    contents = [[m["content"] for m in json.loads(row["messages"])] for row in asked.iter_rows()]
    assert sorted(contents) == [
        ["Hi?", "Hello.", "1+1?\n\nSay a number."],
        ["Hi?", "Hello.", "1+1?\n\nSay a number.", "", "2"],
    ]
    assert not set(by_id(plain)) & set(by_id(asked))
    assert (
        asked.manifest.recipe[asked.manifest.fingerprint]["params"]["sources"][0]["prompt_suffix"]
        == "Say a number."
    )


def test_tools_make_another_prompt(imported: Import) -> None:
    tool = {"name": "add", "parameters": {"type": "object", "properties": {}}}
    turns = [{"role": "user", "content": "1+1?"}]
    dataset, stats = imported([{"messages": turns}, {"messages": turns, "tools": [tool]}])
    assert stats.rows_out == 2
    assert sorted(row["tools"] is None for row in dataset.iter_rows()) == [False, True]


def test_max_rows_is_a_seeded_sample_of_each_source_and_of_all(imported: Import) -> None:
    each = [{"max_rows": 10}, {"max_rows": 5}]
    dataset, stats = imported(pairs(40), pairs(40, 30), each=each, max_rows=12)
    assert stats.dropped == {"duplicate_prompt": 10, "over_max_rows": 58}
    names = [row["source"] for row in dataset.iter_rows()]
    assert len(names) == 12
    assert names.count("source0") <= 10
    assert names.count("source1") <= 5
    fewer, _ = imported(pairs(40), pairs(40, 30), each=each, max_rows=6)
    assert set(by_id(fewer)) < set(by_id(dataset))
    other, _ = imported(pairs(40), pairs(40, 30), each=each, max_rows=12, seed=1)
    assert set(by_id(other)) != set(by_id(dataset))
    assert other.manifest.fingerprint != dataset.manifest.fingerprint


def test_too_many_malformed_rows_fail_with_the_first_of_them(imported: Import, tmp_path: Path) -> None:
    rows = [*pairs(97), {"prompt": "Hi?", "chosen": "A" * 999, "rejected": ""}, {"prompt": 7}, "what"]
    with pytest.raises(DataError) as failure:
        imported(rows)
    message = str(failure.value)
    assert "'source0' read as preference: 3 of 100 rows are malformed" in message
    assert "max_bad_fraction allows 0.01" in message
    assert "1-0.jsonl row 98 (empty_completion): {'chosen': 'AAA" in message
    assert str(tmp_path) not in message
    assert len(message) < 1500
    with pytest.raises(NotFound):
        Dataset.open(str(tmp_path / "out-1"))
    dataset, stats = imported(rows, max_bad_fraction=0.03)
    assert stats.dropped == {"empty_completion": 1, "no_pair": 1, "not_an_object": 1}
    assert [e["row"] for e in dataset.manifest.extra["malformed"]] == [98, 99, 100]


def test_malformed_sources_do_not_hide_behind_large_ones(imported: Import) -> None:
    with pytest.raises(DataError, match="'source1' read as preference: 1 of 2 rows"):
        imported(pairs(1000), [*pairs(1), {"prompt": "Hi?"}])


def test_examples_are_few_and_can_be_stored(imported: Import) -> None:
    rows = [*pairs(1), *[{"prompt": "\ud800", "chosen": "A", "rejected": "B"}] * 9]
    dataset, stats = imported(rows, max_bad_fraction=0.9)
    assert stats.dropped == {"not_json": 9}
    assert len(dataset.manifest.extra["malformed"]) == 5


def test_the_recipe_is_about_content_not_places(imported: Import, tmp_path: Path) -> None:
    first, _ = imported(pairs(3))
    moved, _ = imported(pairs(3), max_bad_fraction=0.5, seed=9)
    assert first.manifest.fingerprint == moved.manifest.fingerprint
    assert str(tmp_path) not in json.dumps(first.manifest.recipe)
    assert first.manifest.slug == "source0"
    [source] = first.manifest.recipe[first.manifest.fingerprint]["params"]["sources"]
    assert source["name"] == "source0"
    assert len(source["content"]["sha256"]) == 64
    others = [
        imported(pairs(4))[0],
        imported(pairs(3), each=[{"weight": 2.0}])[0],
        imported(pairs(3), each=[{"name": "renamed"}])[0],
        imported(pairs(3), max_rows=3)[0],
    ]
    assert len({d.manifest.fingerprint for d in [first, *others]}) == 5


def test_a_saved_dataset_reads_like_its_json(imported: Import, tmp_path: Path) -> None:
    chats = [
        {"messages": [{"role": "user", "content": f"Q{i}"}, {"role": "assistant", "content": "A"}], "n": i}
        for i in range(300)
    ]
    datasets.Dataset.from_list(chats).save_to_disk(tmp_path / "saved")
    config = ImportConfig(sources=(SourceConfig(name="source0", uri=str(tmp_path / "saved")),))
    run(config, output=str(tmp_path / "from-saved"))
    expected, _ = imported(chats)
    assert Dataset.open(str(tmp_path / "from-saved")).table().equals(expected.table())


def test_settings_are_checked_by_name(tmp_path: Path) -> None:
    source = SourceConfig(name="a", uri="a.json")
    with pytest.raises(ConfigError, match=r"sources=\['a'\]: expected a different name"):
        ImportConfig(sources=(source, source))
    for wrong, message in (
        ({"weight": 0.0}, "sources.weight=0.0"),
        ({"format": "xml"}, "sources.format='xml': expected one of auto, candidates"),
        ({"max_rows": -1}, "sources.max_rows=-1"),
        ({"name": " "}, "sources.name=' '"),
    ):
        with pytest.raises(ConfigError, match=message):
            SourceConfig(**({"name": "a", "uri": "a.json"} | wrong))
    with pytest.raises(ConfigError, match="max_bad_fraction=2"):
        ImportConfig(sources=(source,), max_bad_fraction=2.0)
    with pytest.raises(ConfigError, match=r"sources\.a\.uri=.*there is nothing at this place"):
        run(ImportConfig(sources=(source,)), output=str(tmp_path / "out"))
    (tmp_path / "empty.jsonl").write_text("\n")
    empty = SourceConfig(name="a", uri=str(tmp_path / "empty.jsonl"))
    with pytest.raises(ConfigError, match=r"sources\.a\.uri=.*expected rows"):
        run(ImportConfig(sources=(empty,)), output=str(tmp_path / "out"))


def test_an_unknown_format_says_what_it_found(imported: Import) -> None:
    with pytest.raises(
        ConfigError,
        match=r"sources\.source0\.format='auto'.*the columns x, y.*preference: chosen and rejected",
    ):
        imported([{"x": 1}, {"y": 2}])


def test_the_component_publishes_dataset_and_metrics(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(pairs(5)))
    dataset = dsl.Dataset(name="dataset", uri=str(tmp_path / "out"))
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "metrics"))
    report = dsl.HTML(name="report", uri=str(tmp_path / "report.html"))
    import_prompts.python_func(
        dataset=dataset,
        metrics=metrics,
        report=report,
        sources=[{"name": "a", "uri": str(tmp_path / "a.json"), "max_rows": 4.0}],
        options={"seed": 3},
    )
    assert Path(report.path).read_text().startswith("<!doctype html>")
    assert dataset.metadata["schema"] == PROMPTS
    assert dataset.metadata["rows"] == 4
    assert metrics.metadata["dropped_over_max_rows"] == 1


@pytest.fixture(scope="session")
def llamafactory() -> Path:
    """LLaMA-Factory's demo files, when they have been fetched."""
    cache = Path(os.environ.get("KUBEALIGN_CACHE") or Path.home() / ".cache" / "kubealign")
    found = [
        folder for folder in (cache / "llamafactory", cache / "data" / "llamafactory") if folder.is_dir()
    ]
    if not found:
        pytest.skip(f"no LLaMA-Factory demo data in {cache}; `make demo` fetches it")
    return found[0]


@pytest.mark.parametrize(
    ("name", "prompts", "completions", "labels"),
    [
        ("dpo_en_demo", 295, 590, {"chosen", "rejected"}),
        ("kto_en_demo", 297, 300, {"chosen", "rejected"}),
        ("alpaca_en_demo", 985, 985, {None}),
        ("glaive_toolcall_en_demo", 264, 265, {None}),
    ],
)
def test_real_data(
    llamafactory: Path, tmp_path: Path, name: str, prompts: int, completions: int, labels: set[str | None]
) -> None:
    path = llamafactory / f"{name}.json"
    stats = run(
        ImportConfig(sources=(SourceConfig(name=name, uri=str(path)),), max_bad_fraction=0.0),
        output=str(tmp_path / "out"),
    )
    dataset = Dataset.open(str(tmp_path / "out"))
    source = json.loads(path.read_text())
    assert stats.rows_in == len(source)
    assert (dataset.rows, stats.counts["completions"]) == (prompts, completions)
    assert {c["label"] for row in dataset.iter_rows() for c in row["completions"]} == labels
    with_tools = {json.dumps(row["tools"]) for row in source if json.loads(row.get("tools") or "[]")}
    assert len({row["tools"] for row in dataset.iter_rows() if row["tools"]}) == len(with_tools)
    turns = [len(json.loads(row["messages"])) for row in dataset.iter_rows()]
    assert (max(turns) > 2) == (name != "alpaca_en_demo")


def test_arrow_and_json_agree_on_nested_rows(imported: Import, tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": f"Q{i}"}], "chosen": [{"role": "assistant", "content": "A"}],
         "rejected": [{"role": "assistant", "content": "B"}], "score_chosen": i / 2}
        for i in range(10)
    ]  # fmt: skip
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    config = ImportConfig(sources=(SourceConfig(name="source0", uri=str(tmp_path / "a.parquet")),))
    run(config, output=str(tmp_path / "from-parquet"))
    expected, _ = imported(rows)
    assert Dataset.open(str(tmp_path / "from-parquet")).table().equals(expected.table())
