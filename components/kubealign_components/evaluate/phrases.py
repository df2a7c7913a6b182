"""Phrases that a policy has made its habit: thanks, flattery, openings and endings of every answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kubealign_components.reports.sides import SIDES

Floats = NDArray[np.float64]
Gram = tuple[str, ...]

PHRASE = 8
"""Most words of a stock phrase."""
ENDS = frozenset(".!?…。！？")
"""With which a phrase may end, and beyond which it does not go."""
PHRASES = 20
"""Most stock phrases that are looked for."""
READ = 4
"""Completions of a prompt, on either side, in which stock phrases are looked for."""
ROSE = 0.1
"""Least rise of the share of completions that have a phrase, from which it is a stock phrase."""
LIFT = 1.5
"""Least factor of that rise: words of which longer texts hold a few more are none."""
SURE = 3.0
"""Least standard errors of that rise."""

_WORDS = re.compile(r"\w+|[^\w\s]")


def stock_phrases(texts: Sequence[Mapping[str, Sequence[str]]]) -> list[str]:
    """The phrases of one to :data:`PHRASE` words that the aligned policy has made its habit, across prompts.

    Those whose share of the completions rose by :data:`ROSE` and :data:`LIFT`, surely; of phrases within
    each other the longest. A phrase of n words can be frequent only where both its parts of n − 1 are, by
    which few are counted (Agrawal and Srikant 1994).

    Args:
        texts: by side the texts of each prompt's completions.
    """
    words = [{side: [_words(text) for text in row[side][:READ]] for side in SIDES} for row in texts]
    before, after = ([row[side] for row in words] for side in SIDES)
    risen: dict[Gram, float] = {}
    parts: set[Gram] = {()}
    for n in range(1, PHRASE + 1):
        if not parts:
            break
        shares = _shares(after, n, parts)
        shares = {
            gram: own
            for gram, own in shares.items()
            if sum(own.values()) >= ROSE * len(texts) and not ENDS.intersection(gram[:-1])
        }
        earlier = _shares(before, n, parts)
        parts = set(shares)
        for gram, own in shares.items():
            rise = _dense(own, len(texts)) - _dense(earlier.get(gram, {}), len(texts))
            if _is_stock(rise, sum(own.values()) / len(texts)):
                risen[gram] = float(rise.mean())
    return [" ".join(gram) for gram in _longest(risen)[:PHRASES]]


def _is_stock(rise: Floats, share: float) -> bool:
    mean, error = float(rise.mean()), float(rise.std()) / np.sqrt(len(rise))
    return mean >= ROSE and share >= LIFT * (share - mean) and mean >= SURE * error


def _longest(risen: Mapping[Gram, float]) -> list[Gram]:
    """Those that are no part of a longer one which rose about as much; the most risen first."""
    kept: list[Gram] = []
    for gram in sorted(risen, key=lambda g: (-len(g), -risen[g], g)):
        if not any(_is_part(gram, whole) and risen[whole] >= 0.8 * risen[gram] for whole in kept):
            kept.append(gram)
    return sorted(kept, key=lambda g: (-risen[g], g))


def _is_part(gram: Gram, whole: Gram) -> bool:
    return any(whole[i : i + len(gram)] == gram for i in range(len(whole) - len(gram) + 1))


def _shares(
    texts: Sequence[Sequence[Sequence[str]]], n: int, parts: Collection[Gram]
) -> dict[Gram, dict[int, float]]:
    """Of the runs of ``n`` words whose ends are ``parts``, by prompt the share of its texts that hold it."""
    shares: dict[Gram, dict[int, float]] = {}
    for i, of_prompt in enumerate(texts):
        there = Counter(
            gram
            for words in of_prompt
            for gram in {tuple(words[j : j + n]) for j in range(len(words) - n + 1)}
            if gram[1:] in parts and gram[:-1] in parts
        )
        for gram, times in there.items():
            shares.setdefault(gram, {})[i] = times / len(of_prompt)
    return shares


def _dense(shares: Mapping[int, float], prompts: int) -> Floats:
    values = np.zeros(prompts)
    values[list(shares.keys())] = list(shares.values())
    return values


def phrases_in(text: str, phrases: Sequence[str]) -> int:
    """How many of ``phrases`` stand in ``text``."""
    spaced = f" {' '.join(_words(text))} "
    return sum(f" {phrase} " in spaced for phrase in phrases)


def _words(text: str) -> list[str]:
    return _WORDS.findall(text.lower())
