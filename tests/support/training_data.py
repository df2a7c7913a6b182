"""Training datasets of random token ids with the true reference log-probabilities of a model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from kubealign_components.data.chat import ChatTemplate
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.models import find_model
from kubealign_components.data.schemas import (
    MODEL,
    TRAINING,
    canonical_json,
    completion_id,
    new_completion,
    prompt_id,
)
from kubealign_components.engines.packing import LogprobModel
from kubealign_components.train.data import collate
from kubealign_components.training.curves import training_log

PLAIN_TOKENS = range(3, 259)
"""Byte tokens of the tiny model: no special ones."""


def training_rows(
    count: int, *, completions: int = 2, validation: int = 0, seed: int = 0, longest: int = 24
) -> list[dict[str, Any]]:
    """``kubealign.training/v1`` rows of ``count`` training and ``validation`` held-out examples, unscored."""
    draw = random.Random(seed)
    rows = []
    for index in range(count + validation):
        messages = [{"role": "user", "content": f"question {seed}/{index}"}]
        name = prompt_id(messages, None)
        own = []
        for slot in range(completions):
            ids = [*draw.choices(PLAIN_TOKENS, k=draw.randint(2, longest)), 2]
            own.append(
                new_completion(
                    completion_id=completion_id(name, ids),
                    reference=True,
                    model="tiny-llama",
                    token_ids=ids,
                    num_tokens=len(ids),
                    finish_reason="stop",
                    reward=draw.random() - slot,
                    quantile_reward=draw.randint(6, 10) / 10 if slot == 0 else draw.randint(0, 5) / 10,
                )
            )
        rows.append(
            {
                "example_id": f"{name}-{index}",
                "prompt_id": name,
                "source": "test",
                "split": "train" if index < count else "validation",
                "messages": canonical_json(messages),
                "tools": None,
                "prompt_token_ids": draw.choices(PLAIN_TOKENS, k=draw.randint(3, 12)),
                "completions": own,
                "num_references": 10,
            }
        )
    return rows


def score(rows: Sequence[dict[str, Any]], model: Path) -> list[dict[str, Any]]:
    """``rows`` with ``logprob`` filled in by the model at ``model``, in float32."""
    from transformers import AutoModelForCausalLM

    scorer = LogprobModel(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))
    for row in rows:
        with torch.no_grad():
            values = scorer(collate([_with_empty_logprobs(row)], 1).packed).tolist()
        for completion, value in zip(row["completions"], values, strict=True):
            completion["logprob"] = value
    return list(rows)


def make_training(
    make_dataset: Callable[..., Dataset],
    model: Path,
    rows: Sequence[dict[str, Any]],
    inputs: dict[str, Dataset] | None = None,
    **params: Any,
) -> Dataset:
    """Publish ``rows`` with the identity of ``model``; ``params`` tell datasets apart."""
    identity = ChatTemplate(find_model(str(model))).identity
    return make_dataset(
        rows, schema=TRAINING, identity=identity, params=params, slug=["tiny", "pairs"], inputs=inputs
    )


def _with_empty_logprobs(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"completions": [c | {"logprob": None} for c in row["completions"]]}


def losses(model: str | Path) -> list[float]:
    """Training loss of the model at ``model``, step by step."""
    return [m["loss"] for _, m in training_log(Dataset.open(str(model), MODEL)) if "loss" in m]
