"""The numbers of a dataset's completions, column by column: what its page draws.

Only columns of numbers and short words are read, a row group at a time. Of a dataset with more than
:data:`PROMPTS` prompts every second, third, … is looked at, so that memory does not grow with it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kubealign_components.data.dataset import Dataset
from kubealign_components.data.schemas import ROWS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
OFFLINE = "offline"
"""Finish reason of completions that nobody here sampled."""
PROMPTS = 100_000
"""Most prompts that are looked at."""
_LEAVES = (
    "completion_id",
    "reference",
    "num_tokens",
    "finish_reason",
    "sampler_logprob",
    "logprob",
    "reward",
    "quantile_reward",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RowColumns:
    """Flat arrays: one entry a completion, a prompt or a pair; NaN where a number is not known."""

    stride: int
    """Each how manieth prompt was looked at."""
    sources: list[str]
    """Of each prompt."""
    prompt_tokens: Floats
    """Of each prompt; empty before it has any."""
    prompt: Ints
    """Of each completion: its prompt's place in ``sources``."""
    finish_reasons: Counter[str]
    """Of all completions."""
    reference: Bools
    """Of each completion: whether the reference policy wrote it."""
    repeated: int
    """Completions whose tokens another one of their prompt has."""
    tokens: Floats
    sampler_logprob: Floats
    """In nats."""
    logprob: Floats
    """In nats, under the reference policy."""
    reward: Floats
    quantile_reward: Floats
    chosen: Ints
    """Of each pair: the place of its chosen completion."""
    rejected: Ints


def read_columns(dataset: Dataset) -> RowColumns:
    """The numbers of ``dataset``, which has completions in its rows."""
    schema = ROWS[dataset.manifest.schema]
    names = [n for n in ("source", "prompt_tokens", "pairs") if n in schema.names]
    names += [f"completions.list.element.{leaf}" for leaf in _LEAVES]
    stride = -(-max(dataset.rows, 1) // PROMPTS)
    gathered, offset = _Gathered(), 0
    for batch in dataset.batches(names, batch_rows=None):
        index = np.arange(-offset % stride, batch.num_rows, stride)
        offset += batch.num_rows
        gathered.add(batch if stride == 1 else batch.take(pa.array(index)))
    return gathered.columns(stride)


class _Gathered:
    """What batches add up to."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[Floats]] = {}
        self.sources: list[str] = []
        self.finish_reasons = Counter[str]()
        self.positions: dict[str, list[Ints]] = {"prompt": [], "chosen": [], "rejected": []}
        self.reference: list[Bools] = []
        self.repeated = self.prompts = self.completions = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Add the rows of ``batch``."""
        lists = batch.column("completions")
        completions, counts = lists.flatten(), _counts(lists)
        self.sources += batch.column("source").to_pylist()
        reasons = pc.value_counts(pc.fill_null(completions.field("finish_reason"), OFFLINE))
        self.finish_reasons.update({str(one["values"]): int(one["counts"]) for one in reasons.to_pylist()})
        if "prompt_tokens" in batch.schema.names:
            self._add_number("prompt_tokens", batch.column("prompt_tokens"))
        for name in ("num_tokens", "sampler_logprob", "logprob", "reward", "quantile_reward"):
            self._add_number(name, completions.field(name))
        self.reference.append(
            pc.fill_null(completions.field("reference"), False).to_numpy(zero_copy_only=False)
        )
        ids = completions.field("completion_id")
        self.repeated += len(ids) - pc.count_distinct(ids, mode="all").as_py()
        self.positions["prompt"].append(self.prompts + np.repeat(np.arange(batch.num_rows), counts))
        self._add_pairs(batch, counts)
        self.prompts += batch.num_rows
        self.completions += len(completions)

    def _add_number(self, name: str, values: pa.Array) -> None:
        numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        self.numbers.setdefault(name, []).append(numbers)

    def _add_pairs(self, batch: pa.RecordBatch, counts: Ints) -> None:
        first = self.completions + np.concatenate(([0], np.cumsum(counts)))[:-1]
        if "pairs" in batch.schema.names:
            pairs = batch.column("pairs")
            start = np.repeat(first, _counts(pairs))
            for name in ("chosen", "rejected"):
                self.positions[name].append(
                    start + pairs.flatten().field(name).to_numpy(zero_copy_only=False)
                )
        elif "prompt_tokens" not in batch.schema.names:  # training examples: [chosen, rejected], or one
            self.positions["chosen"].append(first[counts == 2])
            self.positions["rejected"].append(first[counts == 2] + 1)

    def columns(self, stride: int) -> RowColumns:
        """All of it, joined."""

        def number(name: str) -> Floats:
            return np.concatenate(self.numbers.get(name) or [np.empty(0)])

        def positions(name: str) -> Ints:
            joined: Ints = np.concatenate([*self.positions[name], np.empty(0, np.int64)]).astype(np.int64)
            return joined

        return RowColumns(
            stride=stride,
            sources=self.sources,
            prompt_tokens=number("prompt_tokens"),
            prompt=positions("prompt"),
            finish_reasons=self.finish_reasons,
            reference=np.concatenate([*self.reference, np.empty(0, np.bool_)]),
            repeated=self.repeated,
            tokens=number("num_tokens"),
            sampler_logprob=number("sampler_logprob"),
            logprob=number("logprob"),
            reward=number("reward"),
            quantile_reward=number("quantile_reward"),
            chosen=positions("chosen"),
            rejected=positions("rejected"),
        )


def _counts(lists: pa.ListArray) -> Ints:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.asarray(lengths, dtype=np.int64)
