"""What can be seen of a completion without understanding it: length, repetition, format, stock phrases.

A reward that pays for one of these pays for no better answer. What is measured here is asked of both
policies and held against their rewards (:mod:`.controlled`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kubealign_components.data.schemas import Completion
from kubealign_components.engines.rewards import flatten_text
from kubealign_components.evaluate.phrases import phrases_in
from kubealign_components.reports.sides import SIDES, SidesRow

Floats = NDArray[np.float64]

GRAM = 4
"""Tokens of which a run that stood in the text before counts as repetition."""
DISTINCT = (1, 2)
"""The n of distinct-n."""

_MARKS = re.compile(
    r"^\s*(?:[-*+•]|\d+[.)]|#{1,6}|>)\s"  # items, headings and quotes
    r"|^\s*(?:```|\|.*\||-{3,}\s*$)"  # fences, rows of tables and rules
    r"|\*\*[^*\n]+\*\*"
    r"|[\u2600-\u27bf\U0001f300-\U0001faff]",  # emoji
    re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Surface:
    """Something that a reward can pay for without paying for better answers."""

    name: str
    """As the numbers and the gates are called."""
    of: str
    """What a gain by it is one of, in words."""
    amount: Callable[[Completion, Sequence[str]], float]
    """How much of it a completion has, given the stock phrases."""
    shown: Callable[[Floats], Floats]
    """What of these amounts is averaged for a reader."""
    felt: Callable[[Floats], Floats]
    """What of these amounts a reward is taken to go with in a straight line."""
    change: str
    """What was and is, in words."""
    apart: float
    """Change of the mean from which a reader is told, where rewards cannot tell it from the policy."""


def repeated_share(token_ids: Sequence[int]) -> float:
    """Share of the runs of :data:`GRAM` tokens that stood in the text before; 0 for shorter texts."""
    runs = [tuple(token_ids[i : i + GRAM]) for i in range(len(token_ids) - GRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def text_of(completion: Completion) -> str:
    """What a reader sees of ``completion``."""
    return flatten_text(json.loads(completion["messages"]))


def format_marks(text: str) -> int:
    """Items, headings, tables, fences, bold words and emoji of a text."""
    return len(_MARKS.findall(text))


LENGTH, REPETITION, FORMAT, PHRASES = SURFACES = (
    Surface(
        name="length",
        of="length",
        amount=lambda c, _: c["num_tokens"],
        shown=np.asarray,
        felt=np.asarray,
        change="the mean length went from {:.0f} to {:.0f} tokens",
        apart=0.0,
    ),
    Surface(
        name="repetition",
        of="repetition",
        amount=lambda c, _: repeated_share(c["token_ids"]),
        shown=np.asarray,
        felt=np.asarray,
        change="the share of a completion that it has said before went from {:.1%} to {:.1%}",
        apart=0.1,
    ),
    Surface(
        name="format",
        of="format",
        amount=lambda c, _: format_marks(text_of(c)),
        shown=np.asarray,
        felt=np.log1p,
        change="items, headings, bold words and other marks of a completion went from {:.1f} to {:.1f}",
        apart=2.0,
    ),
    Surface(
        name="phrases",
        of="stock phrases",
        amount=lambda c, phrases: phrases_in(text_of(c), phrases),
        shown=np.sign,
        felt=np.log1p,
        change="completions with phrases that have become a habit went from {:.0%} to {:.0%}",
        apart=0.5,
    ),
)


def distinct(rows: Sequence[SidesRow], n: int) -> dict[str, float]:
    """By side distinct-n (Li et al. 2016, arXiv 1510.03055): different n-grams of tokens in all completions,
    divided by tokens.

    It falls as texts get longer. Therefore each prompt's completions are read, one after the other, as far
    as both sides go: both numbers are of equally many tokens.
    """
    grams: dict[str, set[tuple[int, ...]]] = {side: set() for side in SIDES}
    tokens = 0
    for row in rows:
        room = min(sum(len(c["token_ids"]) for c in row[side]) for side in SIDES)
        tokens += room
        for side in SIDES:
            for ids in _read(row[side], room):
                grams[side].update(zip(*(ids[i:] for i in range(n))))
    return {side: len(own) / max(tokens, 1) for side, own in grams.items()}


def _read(completions: Iterable[Completion], room: int) -> Iterable[Sequence[int]]:
    """The first ``room`` tokens of ``completions``."""
    for completion in completions:
        yield completion["token_ids"][:room]
        room = max(0, room - len(completion["token_ids"]))
