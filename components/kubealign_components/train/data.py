"""From the stored training dataset to batches: no text, no tokenizer, nothing is tokenised again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from kubealign_components.config import require
from kubealign_components.data.dataset import Dataset
from kubealign_components.engines.packing import Group, PackedBatch, pack
from kubealign_components.errors import ConfigError, DataError
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.kto import Mismatched, Mismatches
from kubealign_components.train.quantiles import quantile_rule
from kubealign_components.training.config import INCLUSIVE, PAIRWISE, least_references
from kubealign_components.training.microbatches import Sizes
from kubealign_components.training.rows import Rows

LARGEST = 1e15
"""Most that a reward or a log-probability may be: their squares, summed, are finite in float32."""


class ExampleCompletion(TypedDict):
    """A completion as training reads it."""

    completion_id: str
    reference: bool
    label: str | None
    token_ids: list[int]
    logprob: float | None
    reward: float | None
    quantile_reward: float | None


class TrainingExample(TypedDict):
    """A row of the files that training reads: a row of ``kubealign.training/v1`` without its texts."""

    prompt_id: str
    prompt_token_ids: list[int]
    completions: list[ExampleCompletion]
    num_references: int | None


class _Facts(NamedTuple):
    """What of a completion can be wrong."""

    completion_id: str
    label: str | None
    logprob: float | None
    reward: float | None
    quantile_reward: float | None
    tokens: int


_COMPLETION_FIELDS = tuple(ExampleCompletion.__annotations__)


class Examples:
    """The examples of one split.

    Args:
        rows: those of a file of :func:`write_examples`.
    """

    def __init__(self, rows: Rows[TrainingExample]) -> None:
        self._rows = rows
        self.mismatches: Mismatches | None = None
        """What batches need beside their examples for kto's reference point; set once it is measured."""

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, numbers: Sequence[int]) -> list[TrainingExample]:
        """The examples with these numbers."""
        return self._rows.take(numbers)

    def batch(self, numbers: Sequence[int], step_examples: int) -> Batch:
        """The examples with these numbers as one forward pass of a step of ``step_examples``."""
        batch = collate(self.rows(numbers), step_examples)
        return batch if self.mismatches is None else replace(batch, mismatched=self.mismatches.of(numbers))

    def sizes(self) -> Sizes:
        """The number of tokens of every example."""
        none = np.empty(0, dtype=np.int64)
        prompts = [batch["prompt_id"] for batch in self._rows.batches]
        lengths = [pc.list_value_length(batch["prompt_token_ids"]) for batch in self._rows.batches]
        totals = [_completion_tokens(batch["completions"]) for batch in self._rows.batches]
        return Sizes(
            prompt_of=pa.concat_arrays(prompts).dictionary_encode().indices.to_numpy() if prompts else none,
            prompt_tokens=np.concatenate([none, *lengths]),
            completion_tokens=np.concatenate([none, *totals]),
        )


def write_examples(dataset: Dataset, config: TrainConfig, folder: Path) -> None:
    """Write what training reads to ``folder``, ``train.arrow`` and ``validation.arrow``, checked.

    Args:
        dataset: ``kubealign.training/v1``.
        config: the settings.
        folder: to make.

    Raises:
        ConfigError: a pairwise objective, and examples that are not pairs.
        DataError: a number that the objective needs is missing or impossible.
    """
    folder.mkdir(parents=True)
    rule = quantile_rule(dataset) if config.objective == "qrpo" else INCLUSIVE
    schema = ("prompt_id", "prompt_token_ids", "completions", "num_references", "split")
    files: dict[str, pa.RecordBatchFileWriter] = {}
    for batch in dataset.batches(schema, batch_rows=4096):
        for split in ("train", "validation"):
            table = _slim(batch, split)
            if split not in files:
                files[split] = pa.ipc.new_file(folder / f"{split}.arrow", table.schema)
            _check(table, config, dataset.uri, rule)
            files[split].write_table(table)
    for file in files.values():
        file.close()


def _completion_tokens(completions: pa.ListArray) -> np.ndarray:
    """Tokens of all completions of each example."""
    lengths = pc.list_value_length(completions.flatten().field("token_ids")).to_numpy()
    ends = np.cumsum(pc.list_value_length(completions).to_numpy())
    return np.diff(np.concatenate([[0], np.cumsum(lengths)])[np.concatenate([[0], ends])])


def _facts(table: pa.Table) -> Iterator[tuple[str, int | None, list[_Facts]]]:
    """``(prompt id, references, completions)`` of every example."""
    for batch in table.to_batches():
        values = batch["completions"].flatten()
        lengths = pc.list_value_length(values.field("token_ids")).to_pylist()
        columns = [values.field(name).to_pylist() for name in _Facts._fields[:-1]]
        completions = (_Facts(*facts) for facts in zip(*columns, lengths))
        counts = pc.list_value_length(batch["completions"]).to_pylist()
        for prompt, references, n in zip(
            batch["prompt_id"].to_pylist(), batch["num_references"].to_pylist(), counts
        ):
            yield prompt, references, list(islice(completions, n))


def _slim(batch: pa.RecordBatch, split: str) -> pa.Table:
    """Rows of ``split`` without the completions' texts."""
    table = pa.Table.from_batches([batch]).filter(pc.equal(batch["split"], split)).drop_columns(["split"])
    completions = table["completions"].combine_chunks()
    values = completions.flatten()
    slim = pa.StructArray.from_arrays(
        [values.field(name) for name in _COMPLETION_FIELDS], names=list(_COMPLETION_FIELDS)
    )
    offsets = pc.cumulative_sum(pc.cast(pc.list_value_length(completions), pa.int32()))
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), offsets])
    position = table.column_names.index("completions")
    return table.set_column(position, "completions", pa.ListArray.from_arrays(offsets, slim))


def _check(examples: pa.Table, config: TrainConfig, uri: str, rule: str) -> None:
    """Raise for the first example that the objective cannot use."""
    for prompt_id, references, completions in _facts(examples):
        if config.objective in PAIRWISE and len(completions) != 2:
            raise ConfigError(
                "objective",
                config.objective,
                f"qrpo, or pairs in {uri}: prompt {prompt_id[:12]} has {len(completions)} "
                "completion(s); select with another strategy than 'all'",
            )
        for completion in completions:
            problem = _problem(completion, references, config, rule)
            if problem:
                raise DataError(
                    f"{uri}: completion {completion.completion_id} of prompt {prompt_id}: {problem}"
                )


def _problem(completion: _Facts, references: int | None, config: TrainConfig, rule: str) -> str:
    """What is wrong with ``completion`` for the objective; empty when it can be used."""
    logprob, quantile = completion.logprob, completion.quantile_reward
    if not completion.tokens:
        return "it has no tokens"
    if logprob is None:
        return "it has no reference log-probability; run logprobs before mix"
    if not -LARGEST <= logprob <= 0:
        return f"its reference log-probability is {logprob!r}, expected a number from -{LARGEST:g} to 0"
    reward = completion.reward
    if config.objective == "rebel" and (reward is None or not abs(reward) <= LARGEST):
        return (
            f"its reward is {reward!r}, expected a number within ±{LARGEST:g} for rebel, whose loss is the "
            "square of differences of rewards"
        )
    if config.objective == "kto" and completion.label not in ("chosen", "rejected"):
        return f"its label is {completion.label!r}, kto needs chosen or rejected; select by labels"
    if config.objective == "qrpo":
        if quantile is None or not 0 <= quantile <= 1:
            return f"its quantile reward is {quantile!r}, expected a number in [0, 1] for qrpo"
        least = least_references(config.transform, rule)
        if (references or 0) < least:
            return (
                f"it has {references!r} reference rewards, {config.transform} needs {least} or more with "
                f"{rule} quantile rewards: with fewer the reward would not count. Sample more completions, "
                "or select with another rule"
            )
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One forward pass. Names end in the shape: ``C`` completions, ``P2`` pairs of positions in them."""

    packed: PackedBatch
    examples: int
    step_examples: int
    """Examples of the whole optimiser step, over all its forward passes and processes; 0 for a pass
    that must not count."""
    tokens: int
    """Tokens of the forward pass."""
    reference_logprob_C: Tensor
    """Float32, nats, summed."""
    length_C: Tensor
    """Completion tokens."""
    weight_C: Tensor
    """One over the number of completions of the same example."""
    quantile_C: Tensor
    """Float64; NaN where unknown."""
    reward_C: Tensor
    """Float64; NaN where unknown."""
    references_C: Tensor
    """Reference rewards of the prompt; 0 where unknown."""
    from_reference_C: Tensor
    """Whether the completion was sampled from the reference policy."""
    desirable_C: Tensor
    """Whether people called the completion good."""
    pairs_P2: Tensor
    """Chosen and rejected completion of every example that has two."""
    completion_ids: tuple[str, ...]
    """Of every completion."""
    mismatched: Mismatched | None = None
    """For kto: the prompts with completions of other prompts."""

    def to(self, device: torch.device | str) -> Batch:
        """The batch on ``device``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        movable = {k: v for k, v in values.items() if hasattr(v, "to")}
        return replace(self, **{k: v.to(device) for k, v in movable.items()})


def collate(rows: Sequence[TrainingExample], step_examples: int) -> Batch:
    """One batch of ``rows``; examples of the same prompt share its tokens in the forward pass."""
    slots = [(row, c) for row in sorted(rows, key=lambda row: row["prompt_id"]) for c in row["completions"]]
    groups: dict[str, tuple[list[int], list[list[int]]]] = {}
    for row, completion in slots:
        group = groups.setdefault(row["prompt_id"], (row["prompt_token_ids"], []))
        group[1].append(completion["token_ids"])
    packed = pack([Group(prompt=tuple(p), completions=tuple(map(tuple, c))) for p, c in groups.values()])
    completions = [c for _, c in slots]
    return Batch(
        packed=packed,
        examples=len(rows),
        step_examples=step_examples,
        tokens=sum(len(prompt) + sum(map(len, own)) for prompt, own in groups.values()),
        reference_logprob_C=_tensor(completions, "logprob", torch.float32),
        length_C=torch.tensor([len(c["token_ids"]) for c in completions]),
        weight_C=torch.tensor([1 / len(row["completions"]) for row, _ in slots]),
        quantile_C=_tensor(completions, "quantile_reward", torch.float64),
        reward_C=_tensor(completions, "reward", torch.float64),
        references_C=torch.tensor([row["num_references"] or 0 for row, _ in slots]),
        from_reference_C=torch.tensor([bool(c["reference"]) for c in completions]),
        desirable_C=torch.tensor([c["label"] == "chosen" for c in completions]),
        pairs_P2=_pairs(slots),
        completion_ids=tuple(c["completion_id"] for c in completions),
    )


def _pairs(slots: Sequence[tuple[TrainingExample, ExampleCompletion]]) -> Tensor:
    first = [
        i for i, (row, c) in enumerate(slots) if len(row["completions"]) == 2 and c is row["completions"][0]
    ]
    return torch.tensor([[i, i + 1] for i in first], dtype=torch.long).reshape(-1, 2)


def _tensor(
    completions: Sequence[ExampleCompletion],
    name: Literal["logprob", "reward", "quantile_reward"],
    dtype: torch.dtype,
) -> Tensor:
    values = [math.nan if (value := c[name]) is None else value for c in completions]
    return torch.tensor(values, dtype=dtype)


def require_examples(examples: Examples, split: str) -> None:
    """Raise :class:`ConfigError` when there is nothing to train on."""
    require(
        len(examples) > 0, "training", f"0 examples in split {split!r}", "a dataset with examples to train on"
    )
