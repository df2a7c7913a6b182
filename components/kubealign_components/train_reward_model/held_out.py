"""Scores of held-out pairs by the saved model, read as every other stage reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from kubealign_components.data.batches import batched
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.models import ModelFiles
from kubealign_components.data.principles import PrincipleSet
from kubealign_components.data.schemas import PreferenceRow
from kubealign_components.engines.reward_model import RewardModel
from kubealign_components.progress import progress_bar
from kubealign_components.train_reward_model.config import RewardModelConfig
from kubealign_components.train_reward_model.pairs import COLUMNS, Shown, conversations, shown_principles

_ROWS = 256


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
