"""Training pairs whose reference the stage ``logprobs`` scored, and what the first step said of them."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.models import find_model
from kubealign_components.data.schemas import COMPLETIONS, MODEL, TRAINING
from kubealign_components.logprobs.stage import LogprobsConfig
from kubealign_components.logprobs.stage import run as score
from kubealign_components.training.curves import training_log
from support.datasets import MakeDataset
from support.tiny import prompt_row
from support.training_data import training_rows

Sums = dict[str, float]
"""Log-probabilities of completions by their ids."""
LN_2 = struct.unpack("f", struct.pack("f", math.log(2)))[0]
"""The loss of DPO where policy and reference are one, as fp32 has it."""
ON_THE_HEAD = ("q_proj", "lm_head")
"""Layers that get adapters, the head among them."""


def completions(make_dataset: MakeDataset, policy: Path, order: int, count: int) -> Dataset:
    """``count`` of the four completions of each of twelve prompts, in one of many orders."""
    rows, shuffle = training_rows(12, completions=4), random.Random(order)
    for row in rows:
        row["completions"] = shuffle.sample(row["completions"], count)
    shuffle.shuffle(rows)
    names = ("prompt_id", "prompt_token_ids", "completions")
    kept = [prompt_row("") | {"prompt_tokens": 1} | {name: row[name] for name in names} for row in rows]
    identity = ChatTemplate(find_model(str(policy))).identity
    return make_dataset(kept, COMPLETIONS, identity=identity, params={"order": order, "count": count})


def scored(dataset: Dataset, policy: Path, folder: Path, *, chunks: int = 1, **settings: Any) -> Dataset:
    config = LogprobsConfig(policy=str(policy), **settings)
    planned = plan(dataset, work=str(folder / "work"), chunks=chunks)
    return merge([score(config, chunk=chunk) for chunk in planned], planned, str(folder / "merged"))


def sums(dataset: Dataset) -> Sums:
    return {c["completion_id"]: c["logprob"] for row in dataset.iter_rows() for c in row["completions"]}


def pairs(make_dataset: MakeDataset, found: Sums, source: Dataset) -> Dataset:
    """Ten training pairs, another choice and order than was scored together."""
    rows = training_rows(12, completions=4)[1:11]
    random.Random(7).shuffle(rows)
    for row in rows:
        row["completions"] = row["completions"][1:3]
        for completion in row["completions"]:
            completion["logprob"] = found[completion["completion_id"]]
    return make_dataset(rows, TRAINING, inputs={"selection": source})


def check_first_step(first: Mapping[str, Any], what: str) -> None:
    """Hold the first entry of a log of training to the reference, to the last bit, and print both numbers."""
    print(f"{what}: |log-ratio| {first['abs_log_ratio_per_token']} a token, first loss {first['loss']}")
    assert first["abs_log_ratio_per_token"] == 0.0
    assert struct.unpack("f", struct.pack("f", first["loss"]))[0] == LN_2


def first_step(output: Path) -> dict[str, Any]:
    return training_log(Dataset.open(str(output), MODEL))[0][1]
