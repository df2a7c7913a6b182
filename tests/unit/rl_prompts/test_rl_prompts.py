"""rl_prompts: every kind of source by what it keeps, and every row kept or counted."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp import dsl

from kubealign import quickstart
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import PROMPTS
from kubealign_components.data.stats import Stats
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as filter_prompts
from kubealign_components.rl_prompts.cleaning import clean
from kubealign_components.rl_prompts.component import rl_prompts
from kubealign_components.rl_prompts.kinds import KINDS, last_boxed
from kubealign_components.rl_prompts.stage import RlPromptsConfig, RlSource, run
from kubealign_components.sources.messages import Reading
from kubealign_components.sources.source import Unwanted
from kubealign_components.sources.values import Malformed
from support.source_files import write_withdrawal
from support.tiny import prompt_row

Row = dict[str, Any]
Gathered = Callable[..., tuple[list[Row], Stats, Dataset]]


@pytest.fixture
def gathered(tmp_path: Path, tiny_model: Path) -> Gathered:
    """``gathered((kind, rows), …, **settings)``: one source a pair; a mapping adds settings of a source."""
    made = 0

    def make(*sources: Any, prompts: Dataset | None = None, **given: Any) -> tuple[list[Row], Stats, Dataset]:
        nonlocal made
        made += 1
        folder = tmp_path / str(made)
        folder.mkdir()
        found = []
        for i, (kind, rows, *more) in enumerate(sources):
            (folder / f"{i}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            own = {"name": f"{kind}{i}", "uri": str(folder / f"{i}.jsonl"), "kind": kind}
            found.append(RlSource(**own, **(more[0] if more else {})))
        config = RlPromptsConfig(policy=str(tiny_model), sources=tuple(found), **given)
        stats = run(config, prompts=prompts, output=str(folder / "out"))
        dataset = Dataset.open(str(folder / "out"), PROMPTS, allow_empty=True)
        rows = [row | {"metadata": json.loads(row["metadata"])} for row in dataset.iter_rows()]
        return rows, stats, dataset

    return make


def text(row: Row) -> str:
    return str(json.loads(row["messages"])[-1]["content"])


def texts(rows: list[Row]) -> set[str]:
    return {text(row) for row in rows}


def orca(bucket: str, question: str) -> Row:
    return {"id": f"{bucket}.123", "system_prompt": "", "question": question, "response": "…"}


def dolly(instruction: str, category: str = "open_qa", context: str = "") -> Row:
    return {"instruction": instruction, "category": category, "context": context, "response": "…"}


def share(first: str, role: str = "human", turns: int = 2) -> Row:
    return {"conversations": [{"from": role, "value": first}, *[{"from": "gpt", "value": "…"}] * (turns - 1)]}


def math_row(problem: str, solution: str = r"So \boxed{4}.") -> Row:
    return {"problem": problem, "solution": solution, "level": "Level 1", "type": "Algebra"}


def test_every_kind_has_its_question_type_and_length_bonus(gathered: Gathered) -> None:
    rows, stats, _ = gathered(
        ("dolly", [dolly("Name a colour.")]),
        ("sharegpt", [share("Write a poem.")]),
        ("openorca", [orca("cot", "Why is it so?")]),
        ("math", [math_row("What is 2+2?")]),
        ("any", [{"prompt": "Insult me."}], {"question_type": "red-teaming", "length_bonus": 0.25}),
    )
    assert {text(row): row["metadata"] for row in rows} == {
        "Name a colour.": {"category": "open_qa", "question_type": "general", "length_bonus": 1.0},
        "Write a poem.": {"question_type": "general", "length_bonus": 1.0},
        "Why is it so?": {"bucket": "cot", "question_type": "reasoning", "length_bonus": -0.4},
        "What is 2+2?": {
            "level": "Level 1",
            "type": "Algebra",
            "question_type": "reasoning",
            "length_bonus": -0.4,
        },
        "Insult me.": {"question_type": "red-teaming", "length_bonus": 0.25},
    }
    assert {row["source"]: row["answers"] for row in rows}["math3"] == ["4"]
    assert {tuple(row["completions"]) for row in rows} == {()}
    assert (stats.rows_in, stats.rows_out) == (5, 5)


def test_length_bonuses_by_question_type_can_be_set(gathered: Gathered) -> None:
    sources = [("dolly", [dolly("Name a colour.")]), ("math", [math_row("What is 2+2?")])]
    rows, _, _ = gathered(*sources, length_bonus={"general": 0.5})
    assert {row["metadata"]["length_bonus"] for row in rows} == {0.5, -0.4}


def test_openorca_is_capped_by_bucket_with_a_seeded_sample(gathered: Gathered) -> None:
    rows = [orca(bucket, f"Question {i} of {bucket}?") for bucket in ("niv", "flan", "t0") for i in range(20)]
    rows += [orca("cot", "Question of cot?")]
    made, stats, _ = gathered(("openorca", rows, {"max_per_bucket": 5}))
    assert Counter(row["metadata"]["bucket"] for row in made) == Counter(niv=5, flan=5, t0=5, cot=1)
    assert stats.dropped == Counter(over_limit=45)
    shuffled = random.Random(0).sample(rows, len(rows))
    assert gathered(("openorca", shuffled, {"max_per_bucket": 5}))[0] == made
    other, _, _ = gathered(("openorca", rows, {"max_per_bucket": 5}), seed=1)
    assert texts(other) != texts(made)
    assert len(gathered(("openorca", rows))[0]) == 61


def test_a_question_in_two_buckets_counts_in_the_first(gathered: Gathered) -> None:
    rows = [orca("cot", "Why?"), orca("t0", "Why?"), orca("niv", "Why?")]
    (row,), stats, _ = gathered(("openorca", rows))
    assert row["metadata"]["bucket"] == "niv"
    assert stats.dropped == Counter(duplicate_prompt=2)


def test_inference_questions_of_openorca_are_dropped(gathered: Gathered) -> None:
    rows = [
        orca("flan", "Premise: It rains. Hypothesis: It is wet."),
        orca("flan", "Yes, no, or IT IS NOT POSSIBLE TO TELL?"),
        orca("flan", "Whose premises are these?"),
    ]
    made, stats, _ = gathered(("openorca", rows))
    assert texts(made) == {"Whose premises are these?"}
    assert stats.dropped == Counter(nli=2)


def test_an_unknown_bucket_is_malformed(gathered: Gathered) -> None:
    with pytest.raises(DataError, match="1 unknown_bucket"):
        gathered(("openorca", [orca("cot", "Why?"), orca("new", "Why not?")]))
    made, stats, _ = gathered(("openorca", [orca("cot", "Why?"), {"question": "?"}]), max_bad_fraction=0.5)
    assert (len(made), stats.dropped) == (1, Counter(unknown_bucket=1))


def test_sharegpt_gives_first_human_turns(gathered: Gathered) -> None:
    rows = [
        share("A human asks."),
        share("Nobody answered.", turns=1),
        share("The model begins.", role="gpt"),
        share("1 / 2\n\n"),
        {"items": [{"from": "human", "markdown": "From *markdown*."}, {"from": "gpt", "markdown": "…"}]},
        {"conversations": json.dumps(share("As JSON text.")["conversations"])},
    ]
    made, stats, _ = gathered(("sharegpt", rows))
    assert texts(made) == {"A human asks.", "From *markdown*.", "As JSON text."}
    assert stats.dropped == Counter(single_turn=1, first_turn_not_human=1, empty=1)
    assert stats.counts["cleaned_page_mark"] == 1


@pytest.mark.parametrize(
    ("copied", "left", "what"),
    [
        ("1 / 1What is rain?", "What is rain?", "page_mark"),
        ("2 / 3\nWhat is rain?", "What is rain?", "page_mark"),
        ("What is rain?\n1 / 1", "What is rain?", "page_mark"),
        ("What is rain?\n지금 번역하기\n비란 무엇입니까?", "What is rain?", "translation_widget"),
        ("What is rain?지금 번역하기", "What is rain?", "translation_widget"),
        ("What is rain?\nTranslate now\nWas ist Regen?", "What is rain?", "translation_widget"),
        ("What is rain?\nLanguage: German", "What is rain?", "language_tag"),
        ("Share Prompt\nWhat is rain?", "What is rain?", "share_button"),
        ("What is rain?\nShare Prompt", "What is rain?", "share_button"),
        ("Welcome to the new Bing, your copilot\nWhat is rain?", "What is rain?", "bing_banner"),
    ],
)
def test_what_pages_leave_behind_is_taken_out(copied: str, left: str, what: str) -> None:
    counts: Counter[str] = Counter()
    assert clean(copied, counts) == left
    assert counts == Counter({f"cleaned_{what}": 1})


@pytest.mark.parametrize(
    "prompt",
    [
        "What is 3 / 4",
        "3 / 4 of my class are late. Why?",
        "3 / 4 + 1 / 4 = ?",
        "1/2cup of sugar in grams?",
        "Translate now and then to German.",
        "Write a poem.\nLanguage: simple",
        "Share prompts with me.",
        "Is Bing better?",
    ],
)
def test_what_only_looks_like_it_stays(prompt: str) -> None:
    counts: Counter[str] = Counter()
    assert clean(prompt, counts) == prompt
    assert not counts


@given(st.text("1 /2\nab", max_size=20))
def test_cleaning_twice_is_cleaning_once(copied: str) -> None:
    once = clean(copied, Counter())
    assert clean(once, Counter()) == once


def test_marks_behind_marks_are_all_taken_out() -> None:
    counts: Counter[str] = Counter()
    assert clean("1 / 3\n2 / 3What?\nLanguage: Thai\nShare Prompt\n3 / 3", counts) == "What?"
    assert counts.total() == 5


def test_dolly_keeps_questions_that_stand_alone(gathered: Gathered) -> None:
    rows = [
        dolly("Name a colour.", "brainstorming"),
        dolly("Summarise this.", "summarization", "A text."),
        dolly("Who is he?", "open_qa", "He is Max."),
    ]
    made, stats, _ = gathered(("dolly", rows))
    assert texts(made) == {"Name a colour."}
    assert stats.dropped == Counter(other_category=1, has_context=1)


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"First \boxed{1}, so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed {12}", "12"),
        (r"\boxed{never closed", None),
        ("Four.", None),
    ],
)
def test_the_answer_of_a_problem_is_what_is_boxed_last(solution: str, answer: str | None) -> None:
    assert last_boxed(solution) == answer
    question = KINDS["math"].read(math_row("What?", solution), Counter())
    assert question.answers == ([answer] if answer else [])


def test_an_answer_column_goes_before_the_box() -> None:
    question = KINDS["math"].read(math_row("What?") | {"answer": 7}, Counter())
    assert question.answers == ["7"]


def test_prompts_are_2_to_256_tokens_of_the_policys_tokenizer(gathered: Gathered) -> None:
    # The tiny model's tokens are bytes.
    rows = [dolly(prompt) for prompt in ("a", "ab", "c" * 256, "d" * 257, "é" * 129)]
    made, stats, _ = gathered(("dolly", rows))
    assert texts(made) == {"ab", "c" * 256}
    assert stats.dropped == Counter(too_few_tokens=1, too_many_tokens=2)
    assert texts(gathered(("dolly", rows), min_tokens=1, max_tokens=2)[0]) == {"a", "ab"}


def test_of_a_prompt_that_several_have_the_first_source_counts(
    gathered: Gathered, make_dataset: Callable[..., Dataset]
) -> None:
    known = make_dataset([prompt_row("Both.", ["A completion."], source="oasst")])
    first, second = (
        ("dolly", [dolly("Both."), dolly("Two.")]),
        ("math", [math_row("Both."), math_row("Two.")]),
    )
    rows, stats, _ = gathered(first, second)
    assert {text(r): r["source"] for r in rows} == {"Both.": "dolly0", "Two.": "dolly0"}
    assert stats.dropped == Counter(duplicate_prompt=2)
    rows, _, _ = gathered(second, first)
    assert {r["metadata"]["question_type"] for r in rows} == {"reasoning"}
    rows, stats, _ = gathered(second, first, prompts=known)
    assert {text(r): r["source"] for r in rows} == {"Both.": "oasst", "Two.": "math0"}
    assert (stats.rows_in, stats.rows_out) == (5, 2)


def test_a_dataset_of_prompts_alone_is_enough(
    gathered: Gathered, make_dataset: Callable[..., Dataset]
) -> None:
    known = make_dataset(
        [prompt_row("One.", ["A completion."], metadata='{"lang":"en"}'), prompt_row("x" * 300)]
    )
    (row,), stats, dataset = gathered(prompts=known)
    assert row["metadata"] == {"lang": "en", "question_type": "general", "length_bonus": 1.0}
    assert row["completions"] == []
    assert stats.dropped == Counter(too_many_tokens=1)
    assert dataset.manifest.provenance.step["inputs"] == {"prompts": known.manifest.fingerprint}


def test_nothing_to_read_is_an_error(gathered: Gathered) -> None:
    with pytest.raises(ConfigError, match="at least one source, or a dataset of prompts"):
        gathered()


def test_the_order_of_rows_does_not_matter(gathered: Gathered) -> None:
    rows = [dolly(f"Question {i}?") for i in range(50)]
    shuffled = random.Random(0).sample(rows, 50)
    one, stats, _ = gathered(("dolly", rows), max_rows=20)
    assert (len(one), stats.dropped) == (20, Counter(over_limit=30))
    assert gathered(("dolly", shuffled), max_rows=20)[0] == one


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(KINDS)),
    st.dictionaries(
        st.sampled_from(
            ["id", "question", "conversations", "instruction", "category", "problem", "solution", "answer"]
        ),
        st.none() | st.integers() | st.text(max_size=4) | st.lists(st.dictionaries(st.text(), st.text())),
    ),
)
def test_no_row_is_more_than_malformed(kind: str, row: Row) -> None:
    try:
        KINDS[kind].read(row, Reading())
    except (Malformed, Unwanted) as refused:
        assert refused.reason


def test_the_rows_are_what_filter_takes(tmp_path: Path, tiny_model: Path, gathered: Gathered) -> None:
    _, _, dataset = gathered(("dolly", [dolly("Name a colour.")]), ("math", [math_row("What is 2+2?")]))
    filter_prompts(FilterConfig(policy=str(tiny_model)), prompts=dataset, output=str(tmp_path / "tokens"))
    rows = list(Dataset.open(str(tmp_path / "tokens")).iter_rows())
    assert {json.loads(row["metadata"])["question_type"] for row in rows} == {"general", "reasoning"}


def test_real_instructions_under_a_real_tokenizer(tmp_path: Path, smollm2: Path) -> None:
    path = quickstart.preferences() / "alpaca_en_demo.json"
    source = RlSource(name="alpaca", uri=str(path), kind="any")
    config = RlPromptsConfig(policy=str(smollm2), sources=(source,), max_tokens=32)
    stats = run(config, output=str(tmp_path / "out"))
    assert stats.rows_in == 999
    assert stats.rows_out > 500
    assert stats.dropped["too_many_tokens"] > 50


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_tokens": 0}, "min_tokens=0"),
        ({"min_tokens": 9, "max_tokens": 8}, "max_tokens=8"),
        ({"length_bonus": {"chat": 1.0}}, "length_bonus='chat'"),
        ({"length_bonus": {"general": float("inf")}}, r"length_bonus\.general=inf"),
        ({"max_rows": -1}, "max_rows=-1"),
    ],
)
def test_settings_that_cannot_be_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RlPromptsConfig(policy="p", **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "orca"}, r"sources\.kind='orca'.*openorca"),
        ({"question_type": "hard"}, r"sources\.question_type='hard'"),
        ({"max_per_bucket": -1}, r"sources\.max_per_bucket=-1"),
        ({"length_bonus": float("nan")}, r"sources\.length_bonus=nan"),
    ],
)
def test_sources_that_cannot_be_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RlSource(**{"name": "a", "uri": "a.jsonl", "kind": "any"} | given)


def test_the_component_takes_prompts_or_none(
    tmp_path: Path, tiny_model: Path, make_dataset: Callable[..., Dataset]
) -> None:
    known = make_dataset([prompt_row("One.")])
    artifact = dsl.Dataset(name="prompts", uri=known.uri, metadata={"schema": PROMPTS})
    (tmp_path / "a.json").write_text(json.dumps([dolly("Two.")]))
    sources = [{"name": "a", "uri": str(tmp_path / "a.json"), "kind": "dolly", "max_per_bucket": 4.0}]
    for number, prompts in enumerate([artifact, None]):
        dataset = dsl.Dataset(name="dataset", uri=str(tmp_path / f"out{number}"))
        metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / f"metrics{number}"))
        report = dsl.HTML(name="report", uri=str(tmp_path / "report.html"))
        rl_prompts.python_func(
            dataset=dataset,
            metrics=metrics,
            report=report,
            policy=str(tiny_model),
            prompts=prompts,
            sources=sources,
        )
        assert Path(report.path).read_text().startswith("<!doctype html>")
        assert dataset.metadata["schema"] == PROMPTS
        assert metrics.metadata["rows_out"] == 2 - number


def test_what_was_taken_back_is_left_out(
    gathered: Gathered, tmp_path: Path, make_dataset: Callable[..., Dataset]
) -> None:
    """Of a dataset of prompts as well, by the names that its own rows have."""
    prompts = make_dataset([prompt_row("From a tree?", source="trees"), prompt_row("Another tree?")])
    given = [
        ("dolly", [dolly("Mine?"), dolly("Both?")]),
        ("any", [{"prompt": "Both?"}, {"prompt": "Theirs?"}]),
    ]
    before, _, dataset = gathered(*given, prompts=prompts)
    everything = {"From a tree?", "Another tree?", "Mine?", "Both?", "Theirs?"}
    assert texts(before) == everything
    gone = next(row["prompt_id"] for row in before if text(row) == "Both?")
    work = str(tmp_path / "work")
    for taken, lost, count in (
        ({"prompts": [gone]}, {"Both?"}, 2),
        ({"sources": ["dolly0"]}, {"Mine?"}, 2),
        ({"sources": ["trees"]}, {"From a tree?"}, 1),
    ):
        withdrawn = write_withdrawal(tmp_path / "w.json", **taken)
        rows, stats, after = gathered(*given, prompts=prompts, withdrawn=withdrawn, work=work)
        assert texts(rows) == everything - lost
        assert stats.dropped["withdrawn"] == count
        assert after.manifest.fingerprint != dataset.manifest.fingerprint
    about_others = write_withdrawal(tmp_path / "w.json", prompts=["0" * 32], sources=["nobody"])
    _, _, same = gathered(*given, prompts=prompts, withdrawn=about_others, work=work)
    assert same.manifest.fingerprint == dataset.manifest.fingerprint
