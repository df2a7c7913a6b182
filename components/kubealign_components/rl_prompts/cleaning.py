"""What web pages leave in copied prompts, and how to take it out."""

from __future__ import annotations

import re
from collections import Counter

_MARK = r"\d{1,3} / \d{1,3}"
_LANGUAGES = (
    "Arabic|Chinese|Czech|Danish|Dutch|English|Finnish|French|German|Greek|Hebrew|Hindi|Hungarian|Indonesian|"
    "Italian|Japanese|Korean|Norwegian|Persian|Polish|Portuguese|Romanian|Russian|Spanish|Swedish|Thai|"
    "Turkish|Ukrainian|Vietnamese"
)
PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    # "Translate now", in Korean or English, and the text that a translation widget put after it.
    (
        "translation_widget",
        re.compile(r"(?<=\S)\s*(?:지금 번역하기|^[ \t]*Translate now[ \t]*$).*\Z", re.I | re.M | re.S),
    ),
    ("share_button", re.compile(r"(?:\A\s*Share Prompt\b\s*|\s*\bShare Prompt\s*\Z)", re.I)),
    (
        "bing_banner",
        re.compile(r"\A\s*Welcome to the new Bing\b[^\n]*\n+|\A\s*Bing\s*(?:Chat)?\s*\n+(?=\S)", re.I),
    ),
    # A page mark stands on a line of its own, or is glued to the text: "1 / 3What is …". "3 / 4 of …" is
    # no mark, and neither is a term of a sum.
    ("page_mark", re.compile(rf"\A\s*{_MARK}(?:[ \t]*\n\s*|(?=[^\W\d_]))")),
    ("page_mark", re.compile(rf"\n[ \t]*{_MARK}\s*\Z")),
    ("language_tag", re.compile(rf"\s*\n[ \t]*Language: ?(?:{_LANGUAGES})\.?\s*\Z", re.I)),
)


def clean(text: str, counts: Counter[str]) -> str:
    """``text`` without page marks, share buttons, banners, language tags and translation widgets.

    Patterns are applied until none of them is left, since one can stand behind the other.

    Args:
        text: as it was copied.
        counts: gets one ``cleaned_<what>`` for each thing taken out.
    """
    while True:
        before = text
        for name, pattern in PATTERNS:
            text, count = pattern.subn("", text)
            if count:
                counts[f"cleaned_{name}"] += count
        text = text.strip()
        if text == before.strip():
            return text
