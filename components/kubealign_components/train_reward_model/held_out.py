"""Scores of held-out pairs by the saved model, read as every other stage reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypedDict

from kubealign_components.data.batches import batched
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.models import ModelFiles
from kubealign_components.data.principles import PrincipleSet
from kubealign_components.data.schemas import PreferenceRow
from kubealign_components.engines.reward_model import RewardModel
from kubealign_components.engines.rewards import flatten_chat, flatten_text
from kubealign_components.printable import shortened
from kubealign_components.progress import progress_bar
from kubealign_components.train_reward_model.config import RewardModelConfig
from kubealign_components.train_reward_model.pairs import COLUMNS, Shown, conversations, shown_principles

_ROWS = 256
_CLIP = 600


class ScoredPair(NamedTuple):
    """A held-out pair with its scores, (preferred, other) each."""

    row: PreferenceRow
    scores: tuple[float, float]
    opposite: tuple[float, float] | None
    """Under the opposite of every principle; None where there are none, or one has no known opposite."""


def score_held_out(
    config: RewardModelConfig, dataset: Dataset, files: ModelFiles, principles: PrincipleSet | None
) -> Iterator[ScoredPair]:
    """Score the validation pairs of ``dataset`` that are not over length.

    Args:
        config: that the model was trained with.
        dataset: ``kubealign.preferences/v1``.
        files: the saved reward model.
        principles: where opposites are looked up.

    Raises:
        EngineError: the model cannot be loaded, or the device is out of memory.
    """
    splits = dataset.table(["split"])["split"].to_pylist()
    total = splits.count("validation")
    if not total:
        return
    # Nothing is kept for a backward pass here, so some more tokens fit.
    model = RewardModel(files, max_length=config.max_length, token_budget=2 * config.micro_batch_tokens)
    rows = (
        row
        for row in dataset.iter_rows([*COLUMNS, "metadata"], of=PreferenceRow)
        if row["split"] == "validation"
    )
    with progress_bar(total, "pairs", "held-out pairs") as bar:
        for some in batched(rows, _ROWS):
            yield from _scored(model, some, principles)
            bar.update(len(some))


class SteeredText(TypedDict):
    """One completion of a held-out pair, with its scores."""

    text: str
    score: float
    """Under the principles of the pair."""
    opposite: float
    """Under the opposite of every one of them."""


class SteeredPair(TypedDict):
    """A held-out pair for who reads the report: what becomes of the scores under the opposite principles."""

    prompt: str
    principles: list[str]
    """The statements that the pair goes by."""
    opposites: list[str]
    """Those of the opposites."""
    completions: list[SteeredText]
    """The preferred one first."""


def steered_pairs(
    scored: Iterable[ScoredPair], principles: PrincipleSet | None, most: int
) -> Iterator[SteeredPair]:
    """The first pair of each of the first ``most`` prompts whose principles have opposites.

    Args:
        scored: held-out pairs.
        principles: where opposites are looked up.
        most: how many.
    """
    prompts: set[str] = set()
    for row, scores, opposite in scored:
        opposites = _opposites(row, principles)
        if opposite is None or opposites is None or row["messages"] in prompts or len(prompts) == most:
            continue
        prompts.add(row["messages"])
        preferred = row["preferred"]
        texts = [
            flatten_text(json.loads(row["completions"][i]["messages"])) for i in (preferred, 1 - preferred)
        ]
        yield {
            "prompt": flatten_chat(json.loads(row["messages"]), None)[-1]["content"],
            "principles": [p["text"] for p in row["principles"] or ()],
            "opposites": [p["text"] for p in opposites],
            "completions": [
                {"text": shortened(text, _CLIP), "score": score, "opposite": other}
                for text, score, other in zip(texts, scores, opposite, strict=True)
            ],
        }


def deciding_principle(row: PreferenceRow) -> str | None:
    """Name of the principle that the row says its preference goes by."""
    facts: Any = json.loads(row["metadata"]) if row["metadata"] else {}
    name = facts.get("dominant")
    return name if name in [p["name"] for p in row["principles"] or ()] else None


def _scored(
    model: RewardModel, rows: list[PreferenceRow], principles: PrincipleSet | None
) -> Iterator[ScoredPair]:
    asked: list[tuple[PreferenceRow, list[list[int]], list[list[int]]]] = []
    for row in rows:
        chats = conversations(row)
        ids = [model.tokenise(chat, shown_principles(row)) for chat in chats]
        if max(map(len, ids)) > model.max_length or ids[0] == ids[1]:
            continue
        negated = _opposites(row, principles)
        other = [model.tokenise(chat, negated) for chat in chats] if negated else []
        fits = all(len(tokens) <= model.max_length for tokens in other)
        asked.append((row, ids, other if fits else []))
    scores = iter(model.score([tokens for _, ids, other in asked for tokens in (*ids, *other)]))
    for row, _, other in asked:
        of_pair = (next(scores), next(scores))
        yield ScoredPair(row, of_pair, (next(scores), next(scores)) if other else None)


def _opposites(row: PreferenceRow, principles: PrincipleSet | None) -> Shown | None:
    """The opposite of every principle of the row; None where one is not known."""
    by_name = {p.name: p for p in principles or ()}
    opposites: Shown = []
    for shown in row["principles"] or ():
        principle = by_name.get(shown["name"])
        if principle is None or principle.negative is None:
            return None
        opposites.append({"name": principle.name, "text": principle.statement(negated=not shown["negated"])})
    return opposites or None
