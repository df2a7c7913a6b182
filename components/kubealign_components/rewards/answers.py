r"""Whether a text gives an answer: the same reading of both sides, in bounded time.

An answer stands after the reasoning, in the last ``\boxed{…}``, behind the last ``####``, ``<answer>`` or
"answer is", in one of several languages; without such a mark a number is the text's last one, a verdict (yes,
no) begins a sentence, and other answers are its last line or all of it. Numbers are compared by value, those
with a base (``1011_2``) by value and base, options by their letter, mathematics by math-verify, all
else by its words.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import dropwhile
from operator import not_

from kubealign_components.data.answers import last_boxed
from kubealign_components.rewards.math_answers import equal_mathematics, is_mathematics

MAX_TEXT = 100_000
"""Characters of a text, from its end, in which its answer is looked for."""
MAX_ANSWER = 2_000
"""Characters of an answer that is compared by more than its words."""
MAX_DIGITS = 400
"""Digits of a number that is compared by value; longer ones are compared as they are written."""
MAX_EXPONENT = 400
"""Largest power of ten of such a number."""

_SPACES = " \u00a0\u2009\u202f"
_WHOLE = rf"\d{{1,3}}(?:[,{_SPACES}]\d{{3}}(?!\d))+|\d+"
_NO_SUBSCRIPT = r"(?<![^\W_])(?<![^\W_]_)"
"""Behind no letter or digit, nor one with an underscore; other underscores are Markdown's."""
_SIGN = rf"(?:{_NO_SUBSCRIPT}(?<![.)])[-−–+])?"
_NUMBER = rf"{_SIGN}(?:(?:{_WHOLE})(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?(?:\s?/\s?\d+(?:\.\d+)?)?"
_NUMBER_IN_TEXT = re.compile(rf"(?<![\d.])(?:{_NUMBER})")
_NUMERIC_ANSWER = re.compile(rf"[$€£¥=~≈\s]*({_NUMBER})(\s*[%°$€£¥./²³^a-zA-Z(),'’\s-]*)")
# "2x" and "3 pi" are no numbers with a unit.
_VARIABLE = re.compile(r"\s*(?:[xyznkabctpqrie]|pi|π)(?![a-zA-Z])|\s*\^")
_MARK = re.compile(
    r"answer\s*(?:is(?!\s+not\b)|:|=)[\s:]*\**|<answer>|####"
    r"|\b(?:antwort|r[ée]ponse|respuesta|resposta|risposta|ответ)"
    r"(?:\s*[:=]|\s+(?:ist|lautet|est|es|é|è)\b(?!\s+(?:nicht|pas|no|non|não)\b))[\s:]*\**"
    r"|(?:答案|答え|正解|정답|답)\s*(?:应该是|是|为|為|は|은|[:：])(?!\s*(?:不|否))[\s:：]*\**"
    r"|\\(?:f?boxed|fbox)\s*(?=[{\S])|\bf?boxed(?=\{)",
    re.IGNORECASE,
)
_OPTION = re.compile(r"[*_\s(\[]*([A-Z])[)\].:]*[*_.]*", re.IGNORECASE)
_GIVEN_OPTION = re.compile(
    r"(?:[*_\s]*(?:[Oo]ption|[Cc]hoice)\b)?[*_\s]*(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Z])(?=[).:,*]|\s+(?:because|since|as|which|is)\b|\s*$))"
)
_BRACKETED = re.compile(r"\(([A-Z])\)|\*\*\(?([A-Z])[).]?\*\*")
_LISTED_OPTION = re.compile(r"\s*([A-Z])[).:]\s")
_VERDICTS = ("yes", "no", "true", "false")
# Marks of a list, quotation or heading may stand around it; negations, strokes and unticked boxes may not.
_SPOKEN_VERDICT = re.compile(
    rf"(?:[^\w\[¬~≠☐]|_|\[(?!\s*\]))*({'|'.join(_VERDICTS)})"
    r"(?:[*_\"”)\]}`'’»>$]*\s*(?:[,;:—–-]|(?:because|since|as)\b)|[\W_]*\Z)",
    re.IGNORECASE,
)
_BASED = re.compile(
    rf"{_NO_SUBSCRIPT}(?<!\.)(\d[0-9A-Fa-f]*|[A-F]+\d[0-9A-F]*"
    r"|[0-9A-Fa-f]{2,}(?=\s*_\s*(?:\{\s*)?16(?!\d)))\s*_\s*"
    r"(?:\{\s*(\d{1,2})\s*\}|(\d{1,2})(?!_*[^\W_]))"
)
"""A number in a base, such as 1011_2."""
_EMPHASIS = re.compile(r"(?:\A|[\s*(\"“])_{1,3}\Z")
"""Markdown's underscores before what they emphasise."""
_POWER = r"\^\s*(?:\{\s*([-−–+]?\d{1,4})\s*\}|([-−–+]?\d{1,4}))"
_SCIENTIFIC = re.compile(rf"(?<![\w.])(\d+(?:\.\d+)?)\s*(?:\\times|\\cdot|×|·|\*|x)\s*10\s*{_POWER}")
_MACRO_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
# A fraction of numbers that is the whole value or, behind a whole number, the rest of one.
_SIMPLE_FRACTION = re.compile(
    r"(?<![\w.)}^])(?:(\d{1,9})\s*)?\\[cdt]?frac\s*"
    r"(?:\{\s*(-?\d+(?:\.\d+)?)\s*\}\s*\{\s*(\d+(?:\.\d+)?)\s*\}|(\d)\s*(\d))(?!\s*[\w\\(^{])"
)
_MIXED = re.compile(r"(?<![\d.,/])(\d{1,9})[ \u00a0](\d{1,9})\s?/\s?(\d{1,9})(?!\d|[./]\d)")
_LAYOUT = re.compile(r"(?<!\\)(?:\\(?:(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])|[!,;: ])|~)")
_SPACED_COMMA = re.compile(r",\\!\s*(?=\d)")
"""How MATH writes the commas of 11,111."""
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree")


def gives_answer(text: str, answer: str) -> bool:
    """Whether ``text`` gives ``answer``."""
    reference = plain(_reference(answer))
    said, marked = _said(_after_reasoning(text)[-MAX_TEXT:])
    said = plain(said)
    if len(reference) > MAX_ANSWER:
        return bool(reference) and reference in (said.strip(), text.strip())
    if (based := _BASED.fullmatch(reference)) is not None:
        given = _based(said, marked=marked)
        return given is not None and _base_and_digits(given) == _base_and_digits(based)
    if (verdict := _words(reference)) in _VERDICTS and not marked:
        return _verdict(said) == verdict
    if (option := _OPTION.fullmatch(reference)) is not None:
        return _option(said, marked=marked) == option[1].upper()
    if (number := _numeric(reference)) is not None:
        if _gives_number(said, number, marked=marked):
            return True
        return marked and _same_mathematics(said, reference, marked=True)
    if is_mathematics(reference):
        return _same_mathematics(said, reference, marked=marked)
    return (_words(reference) or reference) in _phrases(said, marked=marked)


def plain(text: str) -> str:
    r"""``text`` without what LaTeX writes around an answer: ``\text{…}``, spacing, dollars."""
    text = text.replace("\\$", "$").replace("\\%", "%").replace("{,}", ",")
    text = _SPACED_COMMA.sub(",", text)
    if "\\" in text:
        for pattern, by in ((_MACRO_TEXT, r"\1"), (_LAYOUT, " "), (_DEGREES, "°")):
            text = pattern.sub(by, text)
        text = _SIMPLE_FRACTION.sub(lambda m: _fraction(m[1], m[2] or m[4], m[3] or m[5]), text)
    text = _SCIENTIFIC.sub(lambda m: f"{m[1]}e{_ascii_minus(m[2] or m[3])}", text)
    text = _BASED.sub(_plain_base, text)
    text = _MIXED.sub(lambda m: _fraction(*m.groups()) if int(m[2]) < int(m[3]) else m[0], text)
    return text.strip().strip("$").strip()


def _plain_base(number: re.Match[str]) -> str:
    """The number with its base bare behind it, and decimals without one."""
    base = number[2] or number[3]
    return number[1] if base == "10" and number[1].isdecimal() else f"{number[1]}_{base}"


def value_of(number: str) -> Fraction | None:
    """A number's exact value; None for a division by zero, and for one that is too long to count with."""
    if len(number) > MAX_DIGITS:
        return None
    for space in (",", *_SPACES):
        number = number.replace(space, "")
    top, _, bottom = _ascii_minus(number).partition("/")
    exponent = re.search(r"[eE]([+-]?\d+)", top)
    if exponent and abs(int(exponent[1])) > MAX_EXPONENT:
        return None
    divisor = Fraction(bottom or 1)
    return Fraction(top) / divisor if divisor else None


def _ascii_minus(number: str) -> str:
    return number.replace("−", "-").replace("–", "-")


def _fraction(whole: str | None, top: str, bottom: str) -> str:
    """``3/2`` of one and a half, ``top/bottom`` without a whole number before it."""
    if whole is None or not (top + bottom).isdecimal():
        return f"{whole or ''}{top}/{bottom}"
    return f"{int(whole) * int(bottom) + int(top)}/{bottom}"


def _reference(answer: str) -> str:
    """The answer of a reference that may be a whole solution: read as a text is, where it has a mark."""
    said, marked = _said(answer.strip()[-MAX_TEXT:])
    return said if marked else answer.strip()


def _said(text: str) -> tuple[str, bool]:
    """What the text gives as its answer, and whether a mark stands before it."""
    marks = list(_MARK.finditer(text))
    if not marks:
        return text, False
    last = marks[-1]
    if last[0].lstrip("\\").lower().startswith(("boxed", "fbox")):
        boxed = last_boxed("\\" + text[last.start() :].lstrip("\\"))
        if boxed is not None:
            return boxed, True
    return text[last.end() :].partition("</answer>")[0].lstrip("{"), True


def _after_reasoning(text: str) -> str:
    """What stands after the reasoning, where something does."""
    spoken = text.rpartition("</think>")[2]
    return spoken if spoken.strip() else text


def _numeric(answer: str) -> re.Match[str] | None:
    match = _NUMERIC_ANSWER.fullmatch(_right_side(answer))
    if match is None or _VARIABLE.match(match[2]) or value_of(match[1]) is None:
        return None
    return match


def _right_side(text: str) -> str:
    """``5`` of ``x = 5``."""
    left, equals, right = text.rpartition("=")
    return right.strip() if equals and re.fullmatch(r"\s*\\?\w{1,8}\s*", left) else text


def _gives_number(said: str, reference: re.Match[str], *, marked: bool) -> bool:
    given = _numbers(said, marked=marked)
    right = value_of(reference[1])
    if given is None or right is None:
        return False
    value, percent = given
    reference_percent = reference[2].lstrip().startswith("%")
    scaled = value / 100 if percent and not reference_percent else value * 100
    return value == right or (percent != reference_percent and scaled == right)


def _numbers(said: str, *, marked: bool) -> tuple[Fraction, bool] | None:
    """The number that is given as the answer, and whether it is in percent."""
    text = said
    if marked:
        # "3 + 4 = 7" gives 7, "42 km for 3 people" gives 42, and a mark may stand on its own line.
        result = _first_sentence(said).rpartition("=")[2]
        text = result if _NUMBER_IN_TEXT.search(result) else said
    numbers = list(_NUMBER_IN_TEXT.finditer(text))
    if not numbers:
        return None
    chosen = numbers[0] if marked else numbers[-1]
    after = text[chosen.end() : chosen.end() + 12]
    value = value_of(chosen[0])
    if value is None or _is_part(text[: chosen.start()], after) or _VARIABLE.match(after):
        return None
    return value, after.lstrip().startswith("%")


def _is_part(before: str, after: str) -> bool:
    """Whether the number between is part of an expression: in a macro's braces, above or below something."""
    emphasised = before.endswith("_") and _EMPHASIS.search(before)
    if before.endswith(("{", "^", "_", "\\")) and not emphasised:
        return True
    return after.startswith(("\\", "}")) or re.match(r"_[\d{\\]", after) is not None


def _based(said: str, *, marked: bool) -> re.Match[str] | None:
    """The number with a base that is given as the answer."""
    text = _first_sentence(said).rpartition("=")[2] if marked else said
    numbers = list(_BASED.finditer(text))
    return numbers[0 if marked else -1] if numbers else None


def _base_and_digits(number: re.Match[str]) -> tuple[int, tuple[int, ...]] | str:
    """What a number in a base is compared by: digits less zeros before them; as text if they are none of the
    base. Digits, because Python counts no longer ones than some thousand."""
    base, digits = int(number[2] or number[3]), [int(digit, 36) for digit in number[1]]
    if not 2 <= base <= 36 or max(digits) >= base:
        return number[0]
    return base, tuple(dropwhile(not_, digits))


def _verdict(said: str) -> str | None:
    """The last verdict that a sentence begins with, or is."""
    verdicts = [_SPOKEN_VERDICT.match(sentence) for sentence in re.split(r"[.!?\n]", said)]
    return next((match[1].lower() for match in reversed(verdicts) if match), None)


def _option(said: str, *, marked: bool) -> str | None:
    """The letter of the option that is chosen."""
    lines = [line for line in said.splitlines() if line.strip()]
    if not lines:
        return None
    line = lines[0] if marked else lines[-1]
    whole = _OPTION.fullmatch(line.strip())
    match = whole or (_GIVEN_OPTION.match(line) if marked else None)
    if match is not None:
        return next(letter for letter in match.groups() if letter).upper()
    bracketed = ["".join(letters) for letters in _BRACKETED.findall(line)]
    listed = _LISTED_OPTION.match(line) if len(lines) == 1 else None
    return bracketed[-1] if bracketed else listed and listed[1]


def _same_mathematics(said: str, reference: str, *, marked: bool) -> bool:
    # Without a mark the answer may be all of the text, or its last line.
    lines = [*_lines(said, marked=True), *([] if marked else _lines(said, marked=False))]
    candidates = {_squeezed(line): line for line in lines if len(line) <= MAX_ANSWER}
    if _squeezed(reference) in candidates:
        return True
    return any(
        equal_mathematics(line, reference)
        for line in candidates.values()
        if is_mathematics(line) or (is_mathematics(reference) and _numeric(line))
    )


def _lines(said: str, *, marked: bool) -> list[str]:
    """What may be the answer itself: the first line behind a mark, or its last, less its full stop."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return []
    line = lines[0] if marked else lines[-1]
    return [part.strip().rstrip(".").strip("$* ") for part in {line: 0, _first_sentence(line): 0}]


def _squeezed(text: str) -> str:
    return re.sub(r"[\s$]+", "", text).rstrip(".")


def _phrases(said: str, *, marked: bool) -> list[str]:
    lines = [line for line in said.splitlines() if line.strip()]
    if not lines:
        return []
    candidates = [lines[0], _first_sentence(said)] if marked else [said, lines[-1]]
    if marked:  # "yes, because" says yes
        candidates.append(re.split(r"[,;:]|\s(?:because|since|as)\s", lines[0], maxsplit=1)[0])
    return [_words(text) or text.strip() for text in candidates]


def _first_sentence(text: str) -> str:
    return re.split(r"\.\s|\n", text.strip(), maxsplit=1)[0]


def _words(text: str) -> str:
    """Lower-case words without articles and punctuation, one space between."""
    words = re.findall(r"\w+", text.lower())
    return " ".join(w for w in words if w not in ("a", "an", "the")) or " ".join(words)
