"""From what a source says to ``kubealign.prompts/v1`` rows, and the rows of one prompt to one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from kubealign_components.data.fingerprint import canonical_json, source_json
from kubealign_components.data.labels import CHOSEN, REJECTED
from kubealign_components.data.schemas import (
    ImportedCompletion,
    PromptRow,
    new_completion,
    offline_completion_id,
    prompt_id,
)
from kubealign_components.sources.example import Example, Offline
from kubealign_components.sources.values import Malformed

V = TypeVar("V")

UNNAMED_MODEL = "offline"
"""Who wrote a completion when its source does not say."""


def to_row(example: Example, source: str, weight: float) -> PromptRow:
    """The row of one example.

    Raises:
        Malformed: not_json, for text or tools that JSON in UTF-8 cannot hold (a lone surrogate, NaN).
    """
    try:
        name = prompt_id(example.messages, example.tools)
        completions = [_completion(name, offline) for offline in example.completions]
        _number_comparisons(completions)
        return {
            "prompt_id": name,
            "source": source,
            "source_weight": weight,
            "messages": source_json(example.messages),
            "tools": source_json(example.tools) if example.tools else None,
            "answers": _encodable(example.answers),
            "metadata": canonical_json(_encodable(example.metadata)) if example.metadata else None,
            "prompt_token_ids": None,
            "prompt_tokens": None,
            "completions": completions,
            "dropped_completions": None,
        }
    except (TypeError, ValueError, RecursionError):  # UnicodeEncodeError is a ValueError
        raise Malformed("not_json") from None


def spooled(row: PromptRow, **beside: object) -> tuple[str, str]:
    """Id and JSON of ``row``, and what is said ``beside``, for the spool, which is sorted by prompt ids."""
    body = {name: value for name, value in row.items() if name != "prompt_id"} | beside
    return row["prompt_id"], json.dumps(body, ensure_ascii=False)


def merge_rows(rows: Sequence[PromptRow], counts: Counter[str]) -> PromptRow:
    """One row from all rows of a prompt, in source order: the first, with everyone's completions.

    Identical completions become one, which keeps the first score and model that is known; one that is
    chosen here and rejected there has no label (counted as ``completions_chosen_and_rejected``). All
    comparisons stay, each once, but those of two completions of which now the one is preferred and now the
    other (``comparisons_contradicted``), or of a completion with itself (``comparisons_of_equals``).
    """
    merged, comparisons = rows[0], _comparisons(rows, counts)
    completions: dict[str, ImportedCompletion] = {}
    for completion in (c for row in rows for c in row["completions"]):
        first = completions.setdefault(completion["completion_id"], completion)
        if first is not completion:
            counts["completions_duplicate"] += 1
            _unite(first, completion, counts)
    merged["completions"] = list(completions.values())
    merged["answers"] = list(dict.fromkeys(answer for row in rows for answer in row["answers"]))
    for completion in merged["completions"]:
        if completion["label"] == _BOTH:
            completion["label"] = None
        completion["wins"], completion["losses"] = [], []
    for number, (winner, loser) in enumerate(comparisons):
        _compare(completions[winner], completions[loser], number)
    return merged


_BOTH = "chosen and rejected"


def _comparisons(rows: Sequence[PromptRow], counts: Counter[str]) -> list[tuple[str, str]]:
    """Ids of winner and loser of every comparison in ``rows``."""
    pairs = dict[tuple[str, str], None]()
    for row in rows:
        losers = {number: c["completion_id"] for c in row["completions"] for number in c["losses"] or ()}
        for completion in row["completions"]:
            for number in completion["wins"] or ():
                pairs.setdefault((completion["completion_id"], losers[number]))
    kept = [pair for pair in pairs if pair[::-1] not in pairs]
    alike = sum(winner == loser for winner, loser in pairs)
    notes = {"comparisons_of_equals": alike, "comparisons_contradicted": len(pairs) - len(kept) - alike}
    counts.update({name: count for name, count in notes.items() if count})
    return kept


def _number_comparisons(completions: Sequence[ImportedCompletion]) -> None:
    """Fill in who won which comparison, where a source sets chosen and rejected side by side: the i-th
    against the i-th, and where there are more of one side, the other side's are taken in turn."""
    chosen, rejected = ([c for c in completions if c["label"] == side] for side in (CHOSEN, REJECTED))
    if chosen and rejected:
        for number in range(max(len(chosen), len(rejected))):
            _compare(chosen[number % len(chosen)], rejected[number % len(rejected)], number)


def _compare(winner: ImportedCompletion, loser: ImportedCompletion, number: int) -> None:
    winner["wins"] = [*(winner["wins"] or ()), number]
    loser["losses"] = [*(loser["losses"] or ()), number]


def _unite(first: ImportedCompletion, other: ImportedCompletion, counts: Counter[str]) -> None:
    labels = {first["label"], other["label"]} - {None}
    if len(labels) > 1 and first["label"] != _BOTH:
        counts["completions_chosen_and_rejected"] += 1
        first["label"] = _BOTH
    elif first["label"] is None:
        first["label"] = other["label"]
    if first["score"] is None:
        first["score"] = other["score"]
    if first["model"] == UNNAMED_MODEL:
        first["model"] = other["model"]


def _completion(prompt: str, offline: Offline) -> ImportedCompletion:
    return new_completion(
        completion_id=offline_completion_id(prompt, offline.messages),
        reference=False,
        model=_encodable(offline.model or UNNAMED_MODEL),
        messages=source_json(offline.messages),
        label=offline.label,
        wins=[],
        losses=[],
        score=offline.score,
    )


def _encodable(value: V) -> V:
    """``value``, or UnicodeEncodeError when its text cannot be stored."""
    canonical_json(value).encode()
    return value
