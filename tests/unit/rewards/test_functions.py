"""What each shipped reward function gives for which text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubealign_components.engines.rewards import RewardInput
from kubealign_components.errors import ConfigError
from kubealign_components.rewards.functions import brevity, exact_answer, format_match, target_length


def item(text: str, *answers: str, **columns: Any) -> RewardInput:
    return RewardInput(
        messages=[{"role": "user", "content": "?"}],
        completion=[{"role": "assistant", "content": text}],
        text=text,
        answers=list(answers),
        **columns,
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 42.", "42"),
        ("First 3, then 4. That makes 42", "42"),
        ("In total $1,000.", "1000"),
        ("It weighs 3.0 kg", "3"),
        ("#### 1234567", "1,234,567"),
        ("Answer: 50%", "50"),
        ("So she has 12 apples left.", "12 apples"),
        ("12 of them", "12 star-shaped stones"),
        ("The answer is 3 + 4 = 7. I hope that helps with your 2 questions!", "7"),
        ("The answer is 42 km for 3 people", "42"),
        ("**Answer:**\n\n42", "42"),
        (r"Thus \boxed{-5} is the result of step 3", "-5"),
        ("x = −5", "-5"),
        ("10-5", "5"),
        ("3/4", "0.75"),
        ("1e3", "1000"),
        ("Paris", "paris"),
        ("The answer is **Paris**. It lies on the Seine.", "Paris"),
        ("I think of it as follows.\nThe Paris", "paris"),
        ("Answer: (B)", "B"),
        ("The answer is A.", "a"),
        ("Answer: New York, USA", "new york usa"),
    ],
)
def test_exact_answer_takes(text: str, answer: str) -> None:
    assert exact_answer(item(text, answer)) == 1.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 42.", "43"),
        ("42 or 43", "42"),
        ("", "42"),
        ("", "Paris"),
        ("no number", "42"),
        ("Paris is not the answer", "Paris"),
        ("The answer is Paris or London", "Paris"),
        ("1/0", "1"),
        ("4.20", "42"),
        ("...", ""),
        ("142", "42"),
    ],
)
def test_exact_answer_refuses(text: str, answer: str) -> None:
    assert exact_answer(item(text, answer)) == 0.0


def test_exact_answer_takes_any_of_several_and_needs_one() -> None:
    assert exact_answer(item("It is 7", "six", "7")) == 1.0
    assert exact_answer(item("It is 7"), missing=0.5) == 0.5
    with pytest.raises(ValueError, match="no answers"):
        exact_answer(item("It is 7"))


@given(st.integers(-(10**12), 10**12))
def test_exact_answer_reads_any_way_to_write_a_number(number: int) -> None:
    for text in (f"{number}", f"{number:,}", f"{number}.0", f"The answer is {number:,}.", f"so {number} km."):
        assert exact_answer(item(text, str(number))) == 1.0
        assert exact_answer(item(text, str(number + 1))) == 0.0


def test_brevity_is_graded_and_gives_nothing_for_nothing() -> None:
    assert brevity(item("x" * 256)) == 0.5
    assert brevity(item("anything", num_tokens=64), unit="tokens", scale=64) == 0.5
    assert brevity(item(" \n")) == 0.0
    with pytest.raises(ConfigError, match="unit='words'"):
        brevity(item("x"), unit="words")
    with pytest.raises(ConfigError, match="scale=0"):
        brevity(item("x"), scale=0)


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_brevity_ties_only_at_equal_lengths(first: int, second: int) -> None:
    one, other = brevity(item("x" * first)), brevity(item("x" * second))
    assert (one > other) == (first < second)
    assert 0 < other < 1


def test_target_length_is_best_at_the_target() -> None:
    assert target_length(item("x" * 200)) == 0.5
    assert target_length(item("x" * 200, finish_reason="length")) == 0.0
    assert target_length(item("x" * 100)) == target_length(item("x" * 300)) == 0.0
    assert target_length(item("", num_tokens=0), unit="tokens", target=10) == -0.5
    with pytest.raises(ConfigError, match="target=0"):
        target_length(item("x"), target=0)


@pytest.mark.parametrize(
    ("text", "settings", "reward"),
    [
        ('{"a": 1}', {}, 1.0),
        ('```json\n{"a": 1}\n```', {}, 1.0),
        ('{"a": 1}', {"keys": ["a"]}, 1.0),
        ('{"a": 1}', {"keys": ["a", "b"]}, 0.0),
        ("[1]", {"keys": ["a"]}, 0.0),
        ('Here: {"a": 1}', {}, 0.0),
        ("[" * 100_000, {}, 0.0),
        ("Some thought.\nAnswer: 42", {"kind": "answer_line"}, 1.0),
        ("**Answer:** 42", {"kind": "answer_line"}, 1.0),
        ("Answer: 42\nand more", {"kind": "answer_line"}, 0.0),
        ("Answer:", {"kind": "answer_line"}, 0.0),
        ("", {"kind": "answer_line"}, 0.0),
        ("a\nb", {"kind": "regex", "pattern": "a.b"}, 1.0),
        ("a\nbc", {"kind": "regex", "pattern": "a.b"}, 0.0),
    ],
)
def test_format_match(text: str, settings: dict[str, Any], reward: float) -> None:
    assert format_match(item(text), **settings) == reward


@pytest.mark.parametrize("kind", ["json", "answer_line", "regex"])
def test_a_completion_that_was_cut_has_no_form_where_it_must_be_finished(kind: str) -> None:
    texts = {"json": "[1]", "answer_line": "Answer: 4", "regex": "ab"}
    for reason, finished, reward in [("length", True, 0.0), ("stop", True, 1.0), ("length", False, 1.0)]:
        given = item(texts[kind], finish_reason=reason)
        assert format_match(given, kind=kind, pattern="ab", finished=finished) == reward


def test_format_match_reads_the_pattern_of_the_row() -> None:
    assert format_match(item("ab", metadata={"pattern": "[ab]+"}), kind="regex") == 1.0
    with pytest.raises(ValueError, match="no pattern"):
        format_match(item("ab"), kind="regex")
    with pytest.raises(ConfigError, match="kind='xml'"):
        format_match(item("ab"), kind="xml")


@pytest.mark.parametrize(
    ("function", "settings"),
    [
        (brevity, {"scale": math.inf}),
        (target_length, {"target": math.inf}),
        (target_length, {"target": math.nan}),
        (target_length, {"finished": math.inf}),
        (format_match, {"keys": [["a"]]}),
        (format_match, {"keys": "a"}),
    ],
)
def test_settings_that_no_completion_could_be_rewarded_by_are_refused(
    function: Callable[..., float], settings: dict[str, Any]
) -> None:
    [(name, _)] = settings.items()
    with pytest.raises(ConfigError, match=f"^{name}="):
        function(item("{}"), **settings)
