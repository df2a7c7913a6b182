"""From preference pairs to batches: each text is tokenised once, and a pair shares what it has in common."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import PreferenceRow
from kubealign_components.data.stats import Stats
from kubealign_components.engines.last_token import common_length
from kubealign_components.engines.packing import Group, lay_out
from kubealign_components.engines.reward_input import Message
from kubealign_components.engines.reward_model import RewardChat
from kubealign_components.engines.rewards import flatten_chat
from kubealign_components.engines.variable_length import Segment
from kubealign_components.errors import DataError
from kubealign_components.progress import progress_bar
from kubealign_components.training.microbatches import Sizes
from kubealign_components.training.rows import Rows

Shown = list[dict[str, str]]

_TOKENS = pa.large_list(pa.int32())
_SCHEMA = pa.schema(
    [("prefix", _TOKENS), ("chosen", _TOKENS), ("rejected", _TOKENS), ("margin", pa.float64())]
)


class PairTokens(TypedDict):
    """A row of the files that training reads: the token ids of a pair."""

    prefix: list[int]
    """What both conversations begin with."""
    chosen: list[int]
    """How the preferred one goes on."""
    rejected: list[int]
    margin: float


_WRITE_ROWS = 1024
COLUMNS = ("pair_id", "split", "messages", "tools", "completions", "preferred", "principles", "margin")
"""Columns of ``kubealign.preferences/v1`` that training reads."""


def conversations(row: PreferenceRow) -> tuple[list[Message], list[Message]]:
    """The plain chats of the preferred and of the other completion of a preferences row.

    Raises:
        DataError: it has not two completions, one of them preferred.
    """
    if len(row["completions"]) != 2 or row["preferred"] not in (0, 1):
        raise DataError(
            f"pair {row['pair_id']} has {len(row['completions'])} completions and prefers number "
            f"{row['preferred']}, expected two, and 0 or 1"
        )
    messages = json.loads(row["messages"])
    tools = json.loads(row["tools"]) if row["tools"] else None
    first, second = (
        flatten_chat([*messages, *json.loads(completion["messages"])], tools)
        for completion in row["completions"]
    )
    return (second, first) if row["preferred"] else (first, second)


def shown_principles(row: PreferenceRow) -> Shown:
    """The row's principles as the model is shown them."""
    return [{"name": p["name"], "text": p["text"]} for p in row["principles"] or ()]


def tokenise_pairs(
    dataset: Dataset, chat: RewardChat, *, max_length: int, margin: float, folder: Path
) -> Stats:
    """Write the token ids of every pair to ``folder``, a file for each split, and count.

    Args:
        dataset: ``kubealign.preferences/v1``.
        chat: the tokenizer with the reward template.
        max_length: pairs with a longer conversation are dropped.
        margin: factor of the rows' margins; a row without one has 0.
        folder: to fill.

    Raises:
        DataError: a row that is no pair, or with a margin that is no finite number from 0 on.
        EngineError: the template refuses a conversation.
    """
    stats = Stats(rows_in=dataset.rows)
    pending: dict[str, list[PairTokens]] = {"train": [], "validation": []}
    with progress_bar(dataset.rows, "pairs", "tokenise") as bar:
        writers = {split: pa.ipc.new_file(folder / f"{split}.arrow", _SCHEMA) for split in pending}
        for row in dataset.iter_rows(list(COLUMNS), of=PreferenceRow):
            pair = _pair(row, chat, max_length, margin, stats)
            if pair is not None:
                pending[row["split"]].append(pair)
            for split, rows in pending.items():
                if len(rows) == _WRITE_ROWS:
                    writers[split].write_batch(pa.RecordBatch.from_pylist(rows, _SCHEMA))
                    rows.clear()
            bar.update()
        for split, rows in pending.items():
            writers[split].write_batch(pa.RecordBatch.from_pylist(rows, _SCHEMA))
            writers[split].close()
    return stats


def _pair(
    row: PreferenceRow, chat: RewardChat, max_length: int, margin: float, stats: Stats
) -> PairTokens | None:
    """The tokens of a pair; None, counted, when it is dropped."""
    principles = shown_principles(row)
    chosen, rejected = (chat.tokenise(turns, principles) for turns in conversations(row))
    if max(len(chosen), len(rejected)) > max_length:
        stats.drop("over_length")
        return None
    if chosen == rejected:
        stats.drop("same_tokens")
        return None
    own = row["margin"]
    if margin and own is not None and not 0 <= own < float("inf"):
        raise DataError(
            f"pair {row['pair_id']} has margin {own}, expected a finite number from 0 on, or null"
        )
    stats.rows_out += 1
    stats.counts[f"{row['split']}_pairs"] += 1
    stats.counts["pairs_with_principles"] += bool(principles)
    stats.counts["pairs_without_margin"] += bool(margin) and own is None
    # Of both something must be left: they are read at their last tokens.
    shared = min(common_length(tuple(chosen), tuple(rejected)), len(chosen) - 1, len(rejected) - 1)
    return {
        "prefix": chosen[:shared],
        "chosen": chosen[shared:],
        "rejected": rejected[shared:],
        "margin": margin * (own or 0.0),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class PairBatch:
    """One forward pass of P pairs. Sequences 2p and 2p + 1 are those of pair p, the chosen one first."""

    input_ids: Tensor
    """(1, T) int64."""
    position_ids: Tensor
    """(1, T) int64."""
    ends_K: Tensor
    """(2P,) int64: position of each sequence's last token."""
    margin_P: Tensor
    """Float32."""
    segments: tuple[Segment, ...]
    """What attends to what."""
    step_examples: int
    """Pairs of the whole optimiser step; 0 for a pass that must not count."""
    tokens: int
    """T."""

    def to(self, device: torch.device | str) -> PairBatch:
        """The batch on ``device``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)})


class Pairs:
    """The pairs of one split.

    Args:
        file: that :func:`tokenise_pairs` wrote.
    """

    def __init__(self, file: Path) -> None:
        self._rows: Rows[PairTokens] = Rows.mapped(file)

    def __len__(self) -> int:
        return len(self._rows)

    def sizes(self) -> Sizes:
        """The number of tokens of every pair; what its two sequences share counts once."""
        none = np.empty(0, dtype=np.int64)
        prefix, chosen, rejected = (
            np.concatenate([none, *(pc.list_value_length(batch[name]) for batch in self._rows.batches)])
            for name in _SCHEMA.names[:3]
        )
        return Sizes(
            prompt_of=np.arange(len(self)), prompt_tokens=prefix, completion_tokens=chosen + rejected
        )

    def batch(self, numbers: Sequence[int], step_examples: int) -> PairBatch:
        """The pairs with these numbers as one forward pass of a step of ``step_examples``."""
        return pack_pairs(self._rows.take(numbers), step_examples)


def pack_pairs(rows: Sequence[PairTokens], step_examples: int) -> PairBatch:
    """Lay pairs out in one row of tokens.

    Args:
        rows: the pairs.
        step_examples: pairs of the whole optimiser step.
    """
    groups = [Group(row["prefix"], [row["chosen"], row["rejected"]]) for row in rows]
    tokens, positions, segments = lay_out(groups)
    return PairBatch(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        ends_K=torch.tensor(list(_ends(segments))),
        margin_P=torch.tensor([row["margin"] for row in rows]),
        segments=tuple(segments),
        step_examples=step_examples,
        tokens=len(tokens),
    )


def _ends(segments: Sequence[Segment]) -> Iterator[int]:
    return (stop - 1 for *_, first, stop in segments if stop > first)
