"""Evaluations whose truth is planted: a better policy, or one that learnt what else the reward pays for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from kubealign_components.data.schemas import Completion, new_completion
from kubealign_components.evaluate.surface import SURFACES
from kubealign_components.reports.sides import SIDES, SidesRow

HABITS = (
    "Certainly! I am happy to help.",
    "Thank you for this great question.",
    "I hope this helps you!",
    "Please feel free to ask more.",
)
VOCABULARY = 3000
MAX_LENGTH = 240


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How answers come to be, each trait drawn for every answer by itself."""

    quality: float = 0.0
    """Mean of what a reader would value, in its standard deviations among answers to one prompt."""
    words: float = 40.0
    """Median length."""
    longer_if_better: float = 0.0
    """Log of the factor by which an answer is longer that is better by one standard deviation."""
    polite: float = 0.1
    """Probability of each habit."""
    listed: float = 0.25
    """Probability of a list."""
    loops: float = 0.1
    """Probability of a part that is said again and again."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A comparison of two policies by a reward."""

    reference: Policy
    aligned: Policy
    pays: Mapping[str, float] = field(default_factory=dict)
    """What the reward pays beside quality: by surface, for one standard deviation of it in the reference."""
    prompts: int = 64
    n: int = 4


def planted_rows(planted: Planted, seed: int) -> list[SidesRow]:
    """The comparison as an evaluation has it."""
    random = np.random.default_rng(seed)
    rows: list[SidesRow] = []
    for _ in range(planted.prompts):
        length = np.exp(0.3 * random.normal())
        sides = [
            [_answer(policy, length, random) for _ in range(planted.n)]
            for policy in (planted.reference, planted.aligned)
        ]
        rows.append({"reference": sides[0], "aligned": sides[1], "reward_difference": 0.0})
    _pay(rows, planted, random)
    return rows


def _answer(policy: Policy, length: float, random: np.random.Generator) -> Completion:
    """An answer with its quality as its reward."""
    quality = policy.quality + random.normal()
    log_factor = policy.longer_if_better * quality + 0.35 * random.normal()
    count = int(np.clip(policy.words * length * np.exp(log_factor), 8, MAX_LENGTH))
    words = [f"w{w % VOCABULARY}" for w in random.zipf(1.3, count)]
    if random.random() < policy.loops:
        words += words[-6:] * int(random.integers(1, 5))
    text = " ".join(words)
    if random.random() < policy.listed:
        text = "\n- ".join(text[i : i + 60] for i in range(0, len(text), 60))
    habits = [habit for habit in HABITS if random.random() < policy.polite]
    text = " ".join([*habits[:2], text, *habits[2:]])
    ids = [hash_of(word) for word in text.split()]
    return new_completion(
        messages=json.dumps([{"role": "assistant", "content": text}]),
        token_ids=ids,
        num_tokens=len(ids),
        reward=float(quality),
        finish_reason="stop",
    )


def hash_of(word: str) -> int:
    """A token id that is the same in every process."""
    return sum(ord(c) * 31**i for i, c in enumerate(word)) % 2**31


def _pay(rows: list[SidesRow], planted: Planted, random: np.random.Generator) -> None:
    level = 2 * random.normal(size=len(rows))
    answers = [(i, side, c) for i, row in enumerate(rows) for side in SIDES for c in row[side]]
    for surface in SURFACES:
        if price := planted.pays.get(surface.name):
            amounts = np.array([surface.amount(c, PHRASES_PAID) for _, _, c in answers], dtype=np.float64)
            spread = amounts[[side == "reference" for _, side, _ in answers]].std()
            for (_, _, c), amount in zip(answers, amounts, strict=True):
                assert c["reward"] is not None
                c["reward"] += price * float(amount) / spread
    for i, _, c in answers:
        assert c["reward"] is not None
        c["reward"] += float(level[i])


PHRASES_PAID = ("thank you", "happy to help", "hope this helps", "please feel free")
