"""What pages tell of texts and tokens, from a few hundred rows of a dataset: reading all costs too much."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.language import identify_language
from kubealign_components.data.schemas import COMPLETIONS, PROMPTS, TOKENIZED
from kubealign_components.json_types import JsonObject

LOOKED_AT = 400
"""Rows that are looked at."""
SHARDS, SPANS = 4, 8
"""Most shards that they are of, and places within each."""
LONGEST = 3
"""Tokens of the longest runs that are counted."""
LANGUAGES = 20
"""Most languages in the table."""
UNCLEAR = "not clear"
_TOKEN_BITS = 21
"""Of a token's id: no vocabulary has two million words."""

Tokens = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleTable:
    """Rows of a table, and how many prompts they are about."""

    prompts: int
    rows: list[list[str]]


def spread_rows(dataset: Dataset, columns: Sequence[str], rows: int) -> Iterator[JsonObject]:
    """About ``rows`` rows, or all where there are fewer, which lie evenly over the shards and within each."""
    shards = dataset.manifest.shards
    chosen = np.unique(np.linspace(0, max(len(shards) - 1, 0), min(len(shards), SHARDS)).astype(int))
    for number in map(int, chosen):
        there, each = shards[number].rows, -(-rows // len(chosen))
        spans = min(SPANS, each)
        size = -(-each // spans)
        pieces = [(number, 0, there)]
        if there > spans * size:
            starts = np.linspace(0, there - size, spans).astype(int).tolist()
            pieces = [(number, start, start + size) for start in starts]
        for batch in dataset.batches(columns, spans=pieces):
            yield from batch.to_pylist()


def diversity(dataset: Dataset) -> SampleTable | None:
    """Distinct-n (arXiv 1510.03055) of what was sampled: of the completions of a prompt, in the mean over
    prompts, and of all together; None of what no sampler has just made, or where no prompt has two."""
    if dataset.manifest.schema != COMPLETIONS:
        return None
    sampled = [
        [
            np.array(c["token_ids"], np.int64)
            for c in row["completions"]
            if c["sampler_logprob"] is not None and c["token_ids"]
        ]
        for row in spread_rows(dataset, ["completions"], LOOKED_AT)
    ]
    several = [of_prompt for of_prompt in sampled if len(of_prompt) > 1]
    if not several:
        return None
    rows = []
    for n in range(1, LONGEST + 1):
        within = [share for of_prompt in several if (share := distinct(of_prompt, n)) is not None]
        over_all = distinct([one for of_prompt in several for one in of_prompt], n)
        rows.append(
            [str(n), f"{np.mean(within):.1%}" if within else "", f"{over_all:.1%}" if over_all else ""]
        )
    return SampleTable(prompts=len(several), rows=rows)


def distinct(sequences: Sequence[Tokens], n: int) -> float | None:
    """Distinct runs of ``n`` tokens by all runs of ``n`` tokens; None where there is none.

    Args:
        sequences: token ids, int64.
        n: up to :data:`LONGEST`: a run is one number, as some hundred prompts have tens of millions of them.
    """
    lengths = [max(len(one) - n + 1, 0) for one in sequences]
    runs = np.zeros(sum(lengths), np.int64)
    ends = np.cumsum(lengths)
    for one, length, end in zip(sequences, lengths, ends):
        for i in range(n):
            runs[end - length : end] |= one[i : i + length] << _TOKEN_BITS * i
    runs.sort()
    return (1 + int(np.count_nonzero(np.diff(runs)))) / len(runs) if len(runs) else None


def languages(dataset: Dataset) -> SampleTable:
    """Languages of prompts, by their last turn, and of their first completions; nothing of later stages,
    whose prompts are the same."""
    prompts, completions, count = Counter[str](), Counter[str](), 0
    if dataset.manifest.schema in (PROMPTS, TOKENIZED, COMPLETIONS):
        for row in spread_rows(dataset, ["messages", "completions"], LOOKED_AT):
            count += 1
            prompts[_language(row["messages"])] += 1
            if row["completions"]:
                completions[_language(row["completions"][0]["messages"])] += 1
    names = [name for name, _ in (prompts + completions).most_common(LANGUAGES)]
    return SampleTable(prompts=count, rows=[[n, str(prompts[n]), str(completions[n])] for n in names])


def characters(dataset: Dataset) -> list[int]:
    """Lengths of prompts in characters, over all of their messages, where nothing has counted tokens yet."""
    if dataset.manifest.schema != PROMPTS:
        return []
    looked_at = spread_rows(dataset, ["messages"], LOOKED_AT)
    return [sum(len(str(m.get("content") or "")) for m in json.loads(row["messages"])) for row in looked_at]


def _language(messages: str) -> str:
    content = json.loads(messages)[-1].get("content")
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return identify_language(text) or UNCLEAR
