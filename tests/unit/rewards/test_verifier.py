r"""exact_answer on what people's data and models write: GSM8K, MATH, options, and texts without sense."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kubealign_components.data.answers import last_boxed, reference_answer
from kubealign_components.engines.rewards import Refused, RewardInput
from kubealign_components.errors import ConfigError
from kubealign_components.rewards.functions import exact_answer, format_match

EQUAL = [
    # numbers
    ("42", "42"), ("1,000", "1000"), ("1 000 000", "1000000"), ("1{,}000", "1000"), (r"1\,000", "1,000"),
    (".5", "0.5"), ("0.50", ".5"), ("1/2", "0.5"), (r"\frac{1}{2}", "0.5"), (r"\dfrac12", "1/2"),
    (r"\tfrac{3}{4}", "0.75"), ("-3", "−3"), ("+3", "3"), ("3.0", "3"), ("1e3", "1000"),
    (r"-\frac{1}{2}", "-0.5"),
    ("50%", "50"), (r"50\%", "0.5"), ("12 apples", "12"), ("$18", "18"), (r"\$18.00", "18"),
    ("18 dollars", "$18"),
    (r"12\text{ cm}", "12"), (r"5\ \text{miles}", "5 miles"), (r"90^\circ", "90"), ("x = 5", "5"),
    ("5", "x=5"),
    (r"3\times10^5", "300000"), ("6.02e23", r"6.02 \times 10^{23}"), (r"2\cdot 10^{-3}", "0.002"),
    ("4210_{5}", "4210_5"), ("4210_{10}", "4210"), ("1A_{16}", "1A_16"),
    ("1F_16", "1f_{16}"), ("0011_2", "11_2"), ("FF_{16}", "0ff_16"), ("a1_{16}", "A1_16"), ("000_2", "0_2"),
    ("12_2", "12_{2}"),
    (r"5 \mathrm{~m/s}", "5"), ("–5", "-5"),
    (r"\text{12}", "12"), ("3 hours", "3 h"), ("7 m/s", "7"),
    # options and words
    ("C", "(C)"), (r"\text{(C)}", "C"), (r"\text{C}", "(C)"), (r"\textbf{(B)}", "B"), ("B.", "B"),
    (r"\text{east}", "east"), ("Paris", "paris"), ("the cat", "cat"), (r"\text{Yes}", "yes"),
    # mathematics
    (r"\frac{\sqrt{3}}{2}", r"\frac{\sqrt3}{2}"), (r"2\sqrt{3}", r"\sqrt{12}"), (r"\pi", "π"),
    (r"3\pi", r"3 \pi"),
    ("(1,2)", "(1, 2)"), (r"\left(1, \frac{1}{2}\right)", "(1,0.5)"), ("[1,2)", r"[1, 2)"),
    (r"(-\infty, 3]", r"\left(-\infty,3\right]"), (r"\{1,2\}", r"\{2, 1\}"), ("x^2+1", "1+x^2"),
    ("2x+1", "1+2x"), (r"\frac{x}{2}", "x/2"), (r"x \in [1,2]", "[1,2]"),
    (r"3\sqrt{2}", r"3 \sqrt 2"), (r"\frac{1}{2}\sqrt{3}", r"\frac{\sqrt{3}}{2}"), ("2, 3", "3,2"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (r"1\frac{1}{2}", "1.5"), (r"1\frac12", r"\frac{3}{2}"), ("2 3/4", "11/4"),
    ("x<3", r"(-\infty,3)"), (r"1 \leq x \leq 3", "[1,3]"),
    (r"\pm 3", "3, -3"), (r"(5,\infty)", r"(5, +\infty)"), (r"17\text{ and }19", "19, 17"),
]  # fmt: skip
DIFFERENT = [
    ("42", "43"), ("1,000", "1"), ("1 000", "000"), (".5", "5"), (r"\frac{1}{2}", r"\frac{1}{3}"),
    ("-3", "3"),
    ("2x", "2"), (r"3\pi", "3"), ("x^2", "x^3"), ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("[1,2)", "[1,2]"),
    ("C", "D"), (r"\{1,2\}", r"\{1,3\}"), ("yes", "no"), (r"\sqrt{2}", "2"), ("10%", "0.2"), ("1/3", "0.3"),
    (r"1\frac{1}{2}", "5.5"), (r"1\frac{1}{2}", "0.5"), ("2 3/4", "3/4"), ("2, 3", "2, 4"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"), ("x<3", "[3,\\infty)"),
    ("4210_5", "4210"), ("2516_8", "2516_7"), ("1011_2", "11"), ("101_2", "100_2"),
    ("012_2", "12_2"), ("11_2", "3_8"), ("10_2", "1_2"), ("FF_16", "FE_16"),
    (r"3\times10^5", "3"),
    ("1e9", "1e8"), ("(A)", "(B)"), ("2^{10}", "2^{11}"), ("east", "west"),
]  # fmt: skip
FORMS = [
    "{}",
    r"So we get $\boxed{{{}}}$, and we are done.",
    "The final answer is \\boxed{{{}}}.",
    "#### {}",
    "Step 1 gives 99.\n#### {}\n",
    "The answer is {}.",
    "**Answer:** {}",
    "Answer: ${}$",
]


def reward(text: str, *answers: str) -> float:
    item = RewardInput(messages=[], completion=[], text=text, answers=list(answers))
    return exact_answer(item)


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_answers_are_equal_both_ways_and_in_every_form(one: str, other: str) -> None:
    for said, wanted in ((one, other), (other, one)):
        for form in FORMS:
            assert reward(form.format(said), wanted) == 1.0, (form.format(said), wanted)
        assert reward(f"\\boxed{{{said}}}", f"A solution of 7 steps.\n#### {wanted}") == 1.0
        assert reward(f"#### {said}", rf"Since 3 < 4, it is $\boxed{{{wanted}}}$.") == 1.0


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_answers_are_other_both_ways(one: str, other: str) -> None:
    for said, wanted in ((one, other), (other, one)):
        for form in FORMS:
            assert reward(form.format(said), wanted) == 0.0, (form.format(said), wanted)


@pytest.mark.parametrize(
    ("text", "answer", "wanted"),
    [
        ("The answer is (C) because it is the only even one.", "C", 1.0),
        ("I think (B) is wrong, so the answer is D.", "D", 1.0),
        ("I think (B) is wrong, so the answer is D.", "B", 0.0),
        ("Let me see.\n(B)", "B", 1.0),
        ("First \\boxed{3}, no: \\boxed{4}", "4", 1.0),
        ("First \\boxed{3}, no: \\boxed{4}", "3", 0.0),
        (r"\boxed{\frac{a}{b} \text{ with } \{a\}}", r"\frac{a}{b} \text{ with } \{a\}", 1.0),
        (r"\boxed{12", "12", 1.0),
        ("She pays 3 * 4 = 12 dollars", "12", 1.0),
        ("She pays 12 dollars for 3", "12", 0.0),
        ("<think>The answer is 3.</think> It is 42", "42", 1.0),
        ("<think>The answer is 42.</think> It is 3", "42", 0.0),
        ("<think>The answer is 42.</think>", "42", 1.0),
        ("It has 3 parts. <answer>42 km</answer> of 5", "42", 1.0),
        ("<answer>\\n(B)\\n</answer> Was it (C)?".replace("\\n", "\n"), "B", 1.0),
        ("The answer is not 5 but 6", "5", 0.0),
        ("The answer is not 5 but 6", "6", 1.0),
        (r"\boxed{11,\! 111,\! 100}", "11111100", 1.0),
        ("It is 11,111,100", r"11,\!111,\!100", 1.0),
        ("18", "Janet sells 16 - 3 - 4 = 9 eggs.\nShe makes 9 * 2 = $18.\n#### 18", 1.0),
        ("9", "Janet sells 16 - 3 - 4 = 9 eggs.\nShe makes 9 * 2 = $18.\n#### 18", 0.0),
        ("#### 1,234", "1 + 1233\n#### 1234", 1.0),
        ("12.", "12", 1.0),
        ("1.2.3", "3", 0.0),
        ("The answer is: **B**", "B", 1.0),
        ("The correct answer is option B.", "B", 1.0),
        ("Answer: Choice (B)", "A", 0.0),
        ("Answer: yes, because 2 < 3", "yes", 1.0),
        ("Answer: no, because yes is wrong", "yes", 0.0),
        ("so we get boxed{7}", "7", 1.0),
        (r"so we get \boxed{5!}", "120", 1.0),
        (r"so we get \boxed{\binom{5}{2}}", "10", 1.0),
        (r"so we get \fbox{7}", "7", 1.0),
        (r"so we get \boxed{1024}", "2^{10}", 1.0),
        ("No, because 2 < 3.", "no", 1.0),
        ("No, because 2 < 3.", "yes", 0.0),
        ("**Yes** — it is.", "yes", 1.0),
        ("True. All of them are.", "True", 1.0),
        ("Yes, at first sight. No, after all.", "yes", 0.0),
        ("Yes, at first sight. No, after all.", "no", 1.0),
        ("There is no answer", "no", 0.0),
        ("No one says yes", "no", 0.0),
        ("the result is 4210_5", "4210_5", 1.0),
        ("the result is 4210_5", "4210", 0.0),
        ("A. Paris", "A", 1.0),
        ("A. Paris\nB. London", "B", 0.0),
        ("(A) is wrong. So (B)", "A", 0.0),
        ("I think it is **D**", "D", 1.0),
        ("Die Antwort lautet: Paris. Oder?", "Paris", 1.0),
        ("Die Antwort ist nicht 5, sondern 6", "5", 0.0),
        ("La réponse est Paris.", "Paris", 1.0),
        ("答案是：是", "是", 1.0),
        ("最终答案是 3 个苹果和 5 个橙子", "3", 1.0),
        ("答えは４２です", "42", 1.0),
    ],
)
def test_where_answers_stand(text: str, answer: str, wanted: float) -> None:
    assert reward(text, answer) == wanted


@pytest.mark.parametrize("form", [
    "_{}_", "__{}__", "___{}___", "**_{}_**", "_So it is {}_", "__So it is {}__", "_The total is {}._",
    "The total is _{}_", "The total is __{}__.", "_Answer: {}_", "__Answer: {}__", "Answer: _{}_",
    "_Answer:_ __{}__", "#### _{}_", "It is (_{}_)",
])  # fmt: skip
@pytest.mark.parametrize("answer", ["42", "1,000", "-3", "1011_2", "1A_{16}"])
def test_emphasis_is_no_subscript(form: str, answer: str) -> None:
    assert reward(form.format(answer), answer) == 1.0
    assert reward(form.format(answer), "11") == 0.0


@pytest.mark.parametrize("text", ["a_42", "x_{42}", r"\log_42", "42_8", "42_{8}", "42_{n}", r"42_\pi"])
def test_a_subscript_or_base_is_part_of_an_expression(text: str) -> None:
    for form in ("{}", "_It is {}_"):
        assert reward(form.format(text), "42") == 0.0


@pytest.mark.parametrize("said", ["yes", "No", "True", "FALSE"])
@pytest.mark.parametrize("form", [
    "{}", "`{}`", "'{}'", "‘{}’", "«{}»", "- {}", "* {}.", "+ {}", "• {}", "> {}", "> **{}**", "# {}",
    "## {}!", "${}$", "$$\n{}\n$$", "[{}]", "→ {}", "= {}", "; {}", "- `{}`, because 2 < 3", "**{}** ✅",
    "({})", "__{}__",
])  # fmt: skip
def test_a_verdict_with_marks_around_it_is_one(said: str, form: str) -> None:
    for before in ("", "Let me see.\n\n", "No, wait.\nYes, perhaps.\nTrue or false?\n"):
        for wanted in ("yes", "no", "true", "false", f"{said}."):
            given = wanted.strip(".").lower() == said.lower()
            assert reward(before + form.format(said), wanted) == float(given), (before, wanted)


@pytest.mark.parametrize(
    "text",
    [
        "I said no such thing; yes",
        "It is not yes",
        "¬ yes",
        "~~yes~~",
        "- [ ] yes\n- [x] no",
        "- [x] no\n- [ ] yes",
        "yes/no",
        "yes and no",
        "'yes' is what she said",
        "yesterday",
    ],
)
def test_what_only_has_the_word_is_no_verdict(text: str) -> None:
    assert reward(text, "yes") == 0.0


def test_references_that_are_solutions() -> None:
    assert reference_answer("a\nb\n#### 7") == "7"
    assert reference_answer("#### A heading\n\nand its text") == "#### A heading\n\nand its text"
    assert reference_answer(r"So $\boxed{\frac{1}{2}}$.") == r"\frac{1}{2}"
    assert last_boxed(r"\boxed{a \{ b} and \fbox{c}") == r"a \{ b"
    assert last_boxed(r"\boxed 3") == "3"
    assert last_boxed(r"so \fbox{c}") == "c"
    assert last_boxed(r"\boxed{never closed") is None


@pytest.mark.parametrize(
    "text",
    [
        "1e9999999",
        "the answer is 1e99999999",
        "9" * 100_000,
        "1/" + "9" * 100_000,
        "the answer is " + "3" * 10_000,
        "\\boxed{" * 20_000,
        "\\boxed{" + "{" * 50_000,
        "answer is " * 20_000,
        "#### " * 20_000,
        "\n" * 100_000,
        "```" + "\n" * 50_000,
        "\\boxed{10^{10^{10^{10}}}}",
        "\\boxed{2^{99999999}}",
        "\\boxed{" + "\\sqrt{" * 40 + "2" + "}" * 40 + "}",
        "\\boxed{(99999999)!}",
        "\\boxed{\\sum_{n=1}^{10^9} n}",
        "1,000" * 20_000,
        "1 000 " * 20_000,
        "(" * 50_000 + ")" * 50_000,
        "\\frac" * 20_000,
        "\\text{" * 20_000,
        "-" * 100_000,
        " " * 100_000,
        "a " * 50_000,
        "1_" * 50_000,
        "1A" * 50_000,
        "* " * 50_000,
        "=" * 50_000,
    ],
)
def test_texts_without_sense_take_no_time(text: str) -> None:
    started = time.monotonic()
    for answer in (
        "42",
        "yes",
        "101_2",
        r"\frac{\sqrt{3}}{2}",
        "C",
        "Paris",
        "1e9999999",
        "9" * 5000,
        text[:3000],
    ):
        reward(text, answer)
    for kind in ("json", "answer_line"):
        format_match(RewardInput(messages=[], completion=[], text=text), kind=kind)
    assert time.monotonic() - started < 20


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.sampled_from("0123456789.,/eE+-\\{}()[]^_$%! =#\nabdefnorsxwi "), max_size=40),
    st.text(max_size=12),
)
@example("0/0", "0")
def test_any_text_has_a_reward_and_gives_itself(text: str, answer: str) -> None:
    assert reward(text, answer) in (0.0, 1.0)
    assert reward(answer, text) in (0.0, 1.0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 3))
def test_any_way_to_write_a_number_in_a_base(one: int, other: int, zeros: int) -> None:
    for form, base in (("b", 2), ("o", 8), ("x", 16), ("X", 16)):
        said = f"It is {'0' * zeros}{one:{form}}_{{{base}}}"
        assert reward(said, f"0{one:{form.lower()}}_{base}") == 1.0
        assert reward(said, f"0{other:{form}}_{base}") == float(one == other)


@given(st.integers(-(10**9), 10**9), st.integers(1, 999))
def test_any_way_to_write_a_fraction(top: int, bottom: int) -> None:
    for said in (f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}", rf"\dfrac{{{top}}}{{{bottom}}}"):
        assert reward(f"\\boxed{{{said}}}", f"{top}/{bottom}") == 1.0
        assert reward(f"\\boxed{{{said}}}", f"{top + 1}/{bottom}") == 0.0


def of_row(text: str, pattern: str) -> RewardInput:
    return RewardInput(messages=[], completion=[], text=text, metadata={"pattern": pattern})


def test_a_bad_pattern_counts_for_its_row_or_is_a_bad_setting() -> None:
    with pytest.raises(Refused, match="bad_pattern"):
        format_match(of_row("a", "("), kind="regex")
    with pytest.raises(Refused, match="slow_pattern"):
        format_match(of_row("a" * 60 + "!", "(a|a)+(a|a)+$"), kind="regex")
    with pytest.raises(ConfigError, match=r"pattern='\(': expected a regular expression"):
        format_match(of_row("a", "a"), kind="regex", pattern="(")
    assert format_match(of_row("a" * 40 + "!", "a+!"), kind="regex") == 1.0
    assert format_match(RewardInput(messages=[], completion=[], text='{"a": NaN}')) == 0.0
