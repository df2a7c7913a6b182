"""clean_prompts: trees in every form they are published in, and every prompt kept or counted."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp import dsl

from kubealign_components.clean_prompts.component import clean_prompts
from kubealign_components.clean_prompts.stage import CleanPromptsConfig, TreeSource, run
from kubealign_components.clean_prompts.trees import Trees, read_messages
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import PROMPTS, prompt_id
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError, DataError, StoreError
from kubealign_components.sources.values import Malformed
from support.source_files import write_withdrawal

Row = dict[str, Any]
Cleaned = Callable[..., tuple[list[Row], Stats, Dataset]]


def message(name: str, parent: str | None, text: str = "Text.", role: str = "", **columns: Any) -> Row:
    role = role or ("prompter" if parent is None else "assistant")
    return {"message_id": name, "parent_id": parent, "text": text, "role": role, "lang": "en", **columns}


def answered(name: str, text: str, **columns: Any) -> list[Row]:
    """A prompt with one answer."""
    return [message(name, None, text, **columns), message(f"{name}-reply", name)]


def write(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def cleaned(tmp_path: Path) -> Cleaned:
    """``cleaned(rows, …, **settings)``: one source a list of rows."""
    made = 0

    def make(*sources: list[Row], **given: Any) -> tuple[list[Row], Stats, Dataset]:
        nonlocal made
        made += 1
        folder = tmp_path / str(made)
        folder.mkdir()
        found = tuple(
            TreeSource(name=f"source{i}", uri=write(folder / f"{i}.jsonl", rows))
            for i, rows in enumerate(sources)
        )
        stats = run(CleanPromptsConfig(sources=found, **given), output=str(folder / "out"))
        dataset = Dataset.open(str(folder / "out"), PROMPTS, allow_empty=True)
        return list(dataset.iter_rows()), stats, dataset

    return make


def texts(rows: list[Row]) -> set[str]:
    return {json.loads(row["messages"])[0]["content"] for row in rows}


def test_a_root_with_an_answer_is_a_prompt_and_its_first_turn_alone(cleaned: Cleaned) -> None:
    tree = [
        message("root", None, "  What is a leap year? "),
        message("a", "root", "A year of 366 days."),
        message("b", "root", "Every fourth year."),
        message("c", "a", "And 1900?", role="prompter"),
    ]
    (row,), stats, _ = cleaned(tree)
    assert json.loads(row["messages"]) == [{"role": "user", "content": "What is a leap year?"}]
    assert row["prompt_id"] == prompt_id(json.loads(row["messages"]), None)
    assert json.loads(row["metadata"]) == {"lang": "en", "message_id": "root"}
    assert (row["source"], row["completions"], row["answers"]) == ("source0", [], [])
    assert (stats.rows_in, stats.rows_out, stats.counts["messages"]) == (1, 1, 4)


def test_every_filter_counts_what_it_drops(cleaned: Cleaned) -> None:
    rows = [
        *answered("good", "A good prompt."),
        *answered("same", " A good prompt.\n"),
        message("alone", None, "Nobody answered."),
        *answered("short", "Hi"),
        *answered("long", "word " * 30),
        *answered("gone", "A deleted prompt.", deleted=True),
        *answered("bot", "I start.", role="assistant"),
        *answered("german", "Wie spät ist es?", lang="de"),
        *answered("unclear", "12345", lang=None),
        *answered("brazil", "Que horas são agora?", lang="pt-BR"),
    ]
    made, stats, _ = cleaned(rows, languages=("en", "pt"), min_characters=5, max_characters=100)
    assert texts(made) == {"A good prompt.", "Que horas são agora?"}
    assert stats.dropped == Counter(
        duplicate_prompt=1,
        too_few_turns=1,
        too_short=1,
        too_long=1,
        deleted=1,
        not_from_user=1,
        other_language=1,
        unknown_language=1,
    )
    assert (stats.rows_in, stats.rows_out) == (10, 2)


def test_filters_are_off_unless_asked_for(cleaned: Cleaned) -> None:
    rows = [
        *answered("a", "x"),
        *answered("b", "Wie spät ist es?", lang="de"),
        message("c", None, "Nobody answered."),
        *answered("d", "A deleted prompt.", deleted=True),
    ]
    made, stats, _ = cleaned(rows, min_turns=1, keep_deleted=True)
    assert len(made) == 4
    assert not stats.dropped


def test_a_language_that_the_source_does_not_say_is_identified(cleaned: Cleaned) -> None:
    french = "Le musée est ouvert tous les jours de la semaine sauf le lundi."
    english = "The museum is open every day of the week except on Mondays."
    rows = [*answered("f", french, lang=None), *answered("e", english, lang=None)]
    made, stats, _ = cleaned(rows, languages=("fr",))
    assert texts(made) == {french}
    assert json.loads(made[0]["metadata"])["lang"] == "fr"
    assert stats.dropped == Counter(other_language=1)


def test_turns_are_counted_along_the_longest_path(cleaned: Cleaned) -> None:
    wide = [message("wide", None, "Wide."), *(message(f"w{i}", "wide") for i in range(5))]
    deep = [message("deep", None, "Deep."), message("d0", "deep"), message("d1", "deep")]
    deep += [message("d2", "d1"), message("d3", "d2")]
    assert texts(cleaned(wide + deep, min_turns=3)[0]) == {"Deep."}
    assert texts(cleaned(wide + deep, min_turns=4)[0]) == {"Deep."}
    assert texts(cleaned(wide + deep, min_turns=5)[0]) == set()
    assert texts(cleaned(wide + deep, min_turns=2)[0]) == {"Wide.", "Deep."}


def test_orphans_and_repeated_messages_are_counted(cleaned: Cleaned) -> None:
    rows = [*answered("a", "Prompt."), *answered("a", "Prompt."), message("lost", "nowhere")]
    made, stats, _ = cleaned(rows)
    assert texts(made) == {"Prompt."}
    assert (stats.counts["messages_duplicate"], stats.counts["messages_orphan"]) == (2, 1)
    assert (stats.rows_in, stats.rows_out) == (1, 1)


def test_sources_have_message_ids_of_their_own(cleaned: Cleaned) -> None:
    made, stats, _ = cleaned([message("a", None, "Unanswered.")], [message("b", "a")])
    assert (texts(made), stats.dropped) == (set(), Counter(too_few_turns=1))
    made, _, _ = cleaned(answered("a", "One."), answered("a", "Two."))
    assert texts(made) == {"One.", "Two."}


def nested(rows: list[Row], name: str) -> Row:
    """The message ``name`` with its replies in it."""
    own = next(row for row in rows if row["message_id"] == name)
    replies = [nested(rows, row["message_id"]) for row in rows if row["parent_id"] == name]
    return {k: v for k, v in own.items() if k != "parent_id"} | {"replies": replies}


TREES = [
    *answered("a", "First prompt."),
    message("b", None, "Second prompt."),
    message("b1", "b"),
    message("b2", "b1", role="prompter"),
    message("c", None, "Unanswered."),
]


@pytest.mark.parametrize("form", ["parquet", "jsonl.gz", "nested", "prompt"])
def test_every_form_gives_the_same_prompts(tmp_path: Path, cleaned: Cleaned, form: str) -> None:
    flat, _, _ = cleaned(TREES)
    path = tmp_path / f"trees.{form if '.' in form or form == 'parquet' else 'jsonl'}"
    roots = [row["message_id"] for row in TREES if row["parent_id"] is None]
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(TREES), path)
    elif form == "jsonl.gz":
        with pa.CompressedOutputStream(str(path), "gzip") as file:
            file.write("".join(json.dumps(row) + "\n" for row in TREES).encode())
    else:
        trees = [nested(TREES, root) for root in roots]
        rows = (
            trees if form == "nested" else [{"message_tree_id": t["message_id"], "prompt": t} for t in trees]
        )
        write(path, rows)
    config = CleanPromptsConfig(sources=(TreeSource(name="source0", uri=str(path)),))
    run(config, output=str(tmp_path / "out"))
    assert list(Dataset.open(str(tmp_path / "out")).iter_rows()) == flat


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["a", "bb", "ccc"])), max_size=30),
    st.randoms(use_true_random=False),
    st.integers(1, 4),
)
def test_trees_are_those_of_the_obvious_walk_in_any_order(
    parents: list[tuple[int, str]], rng: random.Random, turns: int
) -> None:
    # Message i replies to an earlier one, or is a root when the number points at itself or beyond.
    rows = [message(str(i), str(p) if p < i else None, text) for i, (p, text) in enumerate(parents)]
    depth = {row["message_id"]: 0 for row in rows}
    for row in reversed(rows):
        own = depth[row["message_id"]] = depth[row["message_id"]] + 1
        if row["parent_id"] is not None:
            depth[row["parent_id"]] = max(depth[row["parent_id"]], own)
    with Trees() as trees:
        for number, row in enumerate(rng.sample(rows, len(rows))):
            for read in read_messages(row):
                assert trees.add(0, number, read)
        trees.link()
        assert trees.orphans() == 0
        found = {root.message.id: root.turns for root in trees.roots(turns)}
    assert found == {r["message_id"]: min(turns, depth[r["message_id"]]) for r in rows if not r["parent_id"]}


def test_the_order_of_messages_does_not_matter(cleaned: Cleaned) -> None:
    rows = [row for i in range(30) for row in answered(f"m{i}", f"Prompt {i}.")]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert cleaned(rows)[0] == cleaned(shuffled)[0]


def test_max_rows_is_a_seeded_sample(cleaned: Cleaned) -> None:
    rows = [row for i in range(40) for row in answered(f"m{i}", f"Prompt {i}.")]
    one, stats, _ = cleaned(rows, max_rows=10)
    assert (len(one), stats.dropped) == (10, Counter(over_max_rows=30))
    assert texts(one) == texts(cleaned(rows, max_rows=10)[0]) != texts(cleaned(rows, max_rows=10, seed=1)[0])
    assert texts(one) < texts(cleaned(rows, max_rows=20)[0])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (7, "not_an_object"),
        ({"text": "No id."}, "no_message_id"),
        (message("a", None) | {"text": None}, "no_text"),
        (message("a", None) | {"parent_id": 3}, "bad_parent"),
        (message("a", None) | {"replies": "none"}, "bad_replies"),
        (message("a", None) | {"replies": [1]}, "bad_replies"),
        (message("a", None) | {"text": "\ud800"}, "not_json"),
    ],
)
def test_bad_messages_are_refused_by_reason(row: Any, reason: str) -> None:
    with pytest.raises(Malformed) as refused:
        read_messages(row)
    assert refused.value.reason == reason


@settings(max_examples=100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["message_id", "parent_id", "text", "replies", "prompt", "role", "lang"]),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_no_row_is_more_than_malformed(row: Any) -> None:
    try:
        read_messages(row)
    except Malformed as refused:
        assert refused.reason


def test_too_many_malformed_rows_fail_with_examples(cleaned: Cleaned) -> None:
    rows = [*answered("a", "Prompt."), {"text": "No id."}]
    with pytest.raises(DataError, match=r"1 of 3 rows are malformed \(1 no_message_id\)"):
        cleaned(rows)
    made, stats, dataset = cleaned(rows, max_bad_fraction=0.5)
    assert (len(made), stats.rows_in, stats.dropped) == (1, 2, Counter(no_message_id=1))
    (example,) = dataset.manifest.extra["malformed"]
    assert (example["row"], example["reason"]) == (3, "no_message_id")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"languages": ("English",)}, r"languages='English': expected codes"),
        ({"min_characters": 0}, "min_characters=0"),
        ({"min_characters": 9, "max_characters": 3}, "max_characters=3"),
        ({"min_turns": 0}, "min_turns=0"),
        ({"sources": ()}, r"sources=\(\)"),
        ({"max_bad_fraction": 2.0}, r"max_bad_fraction=2\.0"),
    ],
)
def test_settings_that_cannot_be_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CleanPromptsConfig(**{"sources": (TreeSource(name="a", uri="a.jsonl"),)} | given)


def test_a_full_disk_says_where_room_is_needed() -> None:
    with pytest.raises(StoreError, match=r"kubealign-trees-.*TMPDIR"), Trees():
        raise sqlite3.OperationalError("database or disk is full")


def test_the_recipe_has_the_content_and_not_the_place(cleaned: Cleaned) -> None:
    prints = [
        cleaned(TREES, **given)[2].manifest.fingerprint for given in ({}, {"seed": 3}, {"min_turns": 3})
    ]
    assert prints[0] == prints[1] != prints[2]
    assert cleaned(TREES[:2])[2].manifest.fingerprint != prints[0]


def test_the_component(tmp_path: Path) -> None:
    dataset = dsl.Dataset(name="dataset", uri=str(tmp_path / "out"))
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "metrics"))
    report = dsl.HTML(name="report", uri=str(tmp_path / "report.html"))
    sources = [{"name": "oasst", "uri": write(tmp_path / "a.jsonl", TREES)}]
    clean_prompts.python_func(
        dataset=dataset,
        metrics=metrics,
        report=report,
        sources=sources,
        languages=["en"],
        options={"min_turns": 3.0},
    )
    assert Path(report.path).read_text().startswith("<!doctype html>")
    assert dataset.metadata["schema"] == PROMPTS
    assert (metrics.metadata["rows_out"], metrics.metadata["dropped_too_few_turns"]) == (1, 2)


def test_what_was_taken_back_is_left_out(cleaned: Cleaned, tmp_path: Path) -> None:
    """A prompt that two sources have is the other's when one is taken back."""
    first = [*answered("a", "Asked twice?"), message("b", None, "Who answers?"), *answered("c", "Mine?")]
    second = [*answered("a", "Asked twice?"), *answered("d", "Theirs?")]
    before, _, dataset = cleaned(first, second)
    assert texts(before) == {"Asked twice?", "Mine?", "Theirs?"}
    gone = prompt_id([{"role": "user", "content": "Mine?"}], None)
    work = str(tmp_path / "work")
    for taken, kept, count in (
        ({"prompts": [gone]}, {"Asked twice?", "Theirs?"}, 1),
        ({"sources": ["source1"]}, {"Asked twice?", "Mine?"}, 2),
        ({"sources": ["source0"]}, {"Asked twice?", "Theirs?"}, 2),
    ):
        withdrawn = write_withdrawal(tmp_path / "w.json", **taken)
        rows, stats, after = cleaned(first, second, withdrawn=withdrawn, work=work)
        assert texts(rows) == kept
        assert (stats.dropped["withdrawn"], stats.dropped["too_few_turns"]) == (count, 1)
        assert stats.rows_in == stats.rows_out + stats.dropped.total()
        assert after.manifest.fingerprint != dataset.manifest.fingerprint
    assert {row["source"] for row in rows} == {"source1"}
    about_others = write_withdrawal(tmp_path / "w.json", prompts=["0" * 32], sources=["nobody"])
    _, _, same = cleaned(first, second, withdrawn=about_others, work=work)
    assert same.manifest.fingerprint == dataset.manifest.fingerprint
