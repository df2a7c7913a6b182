"""Synthetic preferences in which one principle decides, for training reward models in seconds.

Completions are short words of which some are loud, in capitals, and some end in a full stop. The principle
Loud decides which of two is preferred, and its negation turns that round; Tidy is about the full stop, is
shown beside it at random, and decides nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.principles import PrincipleSet, parse_principles
from kubealign_components.data.schemas import (
    PREFERENCES,
    canonical_json,
    new_completion,
    offline_completion_id,
    pair_id,
    prompt_id,
)
from support.tiny import build_tiny_model

LOUD, TIDY = "Loud", "Tidy"
WORDS = ("yes", "no", "maybe", "sure", "fine", "well", "okay", "right", "never", "now", "then", "here")
TEMPLATE = {
    "schema": "kubealign.reward-template/v1",
    "name": "short",
    "version": 1,
    "text": "{% for turn in messages %}{{ turn.content }}|{% endfor %}"
    "{% for principle in principles %}{{ principle.text }};{% endfor %}=",
}
"""A reward template of few tokens for a tokenizer of bytes."""
PRINCIPLES = {
    "schema": "kubealign.principles/v1",
    "name": "synthetic",
    "version": 1,
    "principles": [
        {"name": LOUD, "positive": "loud", "negative": "soft", "stages": ["judge", "reward_model", "rl"]},
        {"name": TIDY, "positive": "tidy", "negative": "open", "stages": ["judge", "reward_model", "rl"]},
    ],
}


def is_loud(text: str) -> bool:
    """Whether ``text`` has the property that the principle Loud is about."""
    return text.isupper()


def write_files(folder: Path) -> tuple[Path, Path]:
    """The reward template and the principle set as files of a user: (template, principles)."""
    paths = folder / "short-template.yaml", folder / "synthetic-principles.yaml"
    for path, content in zip(paths, (TEMPLATE, PRINCIPLES)):
        path.write_text(yaml.safe_dump(content))
    return paths


def principle_set() -> PrincipleSet:
    """The synthetic set."""
    return parse_principles(yaml.safe_dump(PRINCIPLES).encode(), "synthetic")


def preference_rows(
    count: int, *, validation: int = 0, seed: int = 0, principled: bool = True
) -> list[dict[str, Any]]:
    """``kubealign.preferences/v1`` rows of ``count`` training and ``validation`` held-out pairs.

    Args:
        count: training pairs.
        validation: held-out pairs, of other prompts.
        seed: decides everything.
        principled: whether principles are shown; without them, the loud completion is always preferred.
    """
    source = random.Random(seed)
    return [
        _row(source, f"q{seed}.{index}", "train" if index < count else "validation", principled)
        for index in range(count + validation)
    ]


def make_preferences(
    make_dataset: Callable[..., Dataset], rows: list[dict[str, Any]], **params: Any
) -> Dataset:
    """Publish ``rows``; ``params`` tell datasets apart."""
    return make_dataset(rows, schema=PREFERENCES, params=params, slug=["synthetic"])


def build_learner(folder: Path, *, seed: int = 0) -> Path:
    """A tiny random policy that learns the synthetic preferences in some hundred small steps."""
    return build_tiny_model(folder, seed=seed, hidden=64)


def _row(source: random.Random, question: str, split: str, principled: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    prompt = prompt_id(messages, None)
    texts = [_text(source, loud=True), _text(source, loud=False)]
    shown = _principles(source) if principled else []
    wants_loud = not any(p["negated"] for p in shown if p["name"] == LOUD)
    if source.random() < 0.5:
        texts.reverse()
    completions = [_completion(prompt, text) for text in texts]
    return {
        "pair_id": pair_id(prompt, [c["completion_id"] for c in completions]),
        "prompt_id": prompt,
        "source": "synthetic",
        "split": split,
        "messages": canonical_json(messages),
        "tools": None,
        "completions": completions,
        "preferred": [is_loud(text) for text in texts].index(wants_loud),
        "principles": shown,
        "margin": 1.0,
        "metadata": canonical_json({"dominant": LOUD}),
    }


def _text(source: random.Random, *, loud: bool) -> str:
    text = " ".join(source.choices(WORDS, k=source.randint(1, 2))) + source.choice([".", ""])
    return text.upper() if loud else text


def _principles(source: random.Random) -> list[dict[str, Any]]:
    """Loud, and every other time Tidy, in any order, either negated half of the time."""
    names = [LOUD, *([TIDY] if source.random() < 0.5 else [])]
    source.shuffle(names)
    known = principle_set()
    drawn = [(known.get(name), source.random() < 0.5) for name in names]
    return [{"name": p.name, "negated": n, "text": p.statement(negated=n)} for p, n in drawn]


def _completion(prompt: str, text: str) -> dict[str, Any]:
    written = [{"role": "assistant", "content": text}]
    return new_completion(
        completion_id=offline_completion_id(prompt, written),
        reference=True,
        model="synthetic",
        messages=canonical_json(written),
    )
