"""From what a source says to ``kubealign.prompts/v1`` rows, and the rows of one prompt to one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from kubealign_components.data.fingerprint import canonical_json, source_json
from kubealign_components.data.schemas import (
    ImportedCompletion,
    PromptRow,
    new_completion,
    offline_completion_id,
    prompt_id,
)
from kubealign_components.data.sources.example import Example, Offline
from kubealign_components.data.sources.values import Malformed

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


def spooled(row: PromptRow) -> tuple[str, str]:
    """Id and JSON of ``row`` for the spool, which is sorted by prompt ids."""
    body = {name: value for name, value in row.items() if name != "prompt_id"}
    return row["prompt_id"], json.dumps(body, ensure_ascii=False)


def merge_rows(rows: Sequence[PromptRow], counts: Counter[str]) -> PromptRow:
    """One row from all rows of a prompt, in source order: the first, with everyone's completions.

    Identical completions become one, which keeps the first score and model that is known; one that
    is chosen here and rejected there has no label (counted as ``completions_label_conflict``).
    """
    merged = rows[0]
    completions: dict[str, ImportedCompletion] = {}
    for completion in (c for row in rows for c in row["completions"]):
        known = completions.setdefault(completion["completion_id"], completion)
        if known is not completion:
            counts["completions_duplicate"] += 1
            _unite(known, completion, counts)
    merged["completions"] = list(completions.values())
    merged["answers"] = list(dict.fromkeys(answer for row in rows for answer in row["answers"]))
    for completion in merged["completions"]:
        if completion["label"] == _CONFLICT:
            completion["label"] = None
    return merged


_CONFLICT = "conflict"


def _unite(known: ImportedCompletion, other: ImportedCompletion, counts: Counter[str]) -> None:
    labels = {known["label"], other["label"]} - {None}
    if len(labels) > 1 and known["label"] != _CONFLICT:
        counts["completions_label_conflict"] += 1
        known["label"] = _CONFLICT
    elif known["label"] is None:
        known["label"] = other["label"]
    if known["score"] is None:
        known["score"] = other["score"]
    if known["model"] == UNNAMED_MODEL:
        known["model"] = other["model"]


def _completion(prompt: str, offline: Offline) -> ImportedCompletion:
    return new_completion(
        completion_id=offline_completion_id(prompt, offline.messages),
        reference=False,
        model=_encodable(offline.model or UNNAMED_MODEL),
        messages=source_json(offline.messages),
        label=offline.label,
        score=offline.score,
    )


def _encodable(value: V) -> V:
    """``value``, or UnicodeEncodeError when its text cannot be stored."""
    canonical_json(value).encode()
    return value
