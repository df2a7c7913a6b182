"""Sharded training starts at its reference to the last bit, too, whatever the strategy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kubealign_components.train.config import TrainConfig
from kubealign_components.train.stage import run
from support.datasets import MakeDataset
from support.scored_pairs import ON_THE_HEAD, check_first_step, completions, first_step, pairs, scored, sums
from support.tiny import build_tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.device_count() == 1, reason="two processes need no GPU or two"),
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that ZeRO-3 lets go of its matrices, the head's too, once they were used."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "wide", hidden=424)


@pytest.mark.parametrize(
    ("strategy", "dtype", "targets"),
    [
        ("none", "bfloat16", None),
        ("fsdp2", "bfloat16", None),
        ("fsdp2", "bfloat16", ON_THE_HEAD),
        ("fsdp2", "float32", None),
        ("zero1", "bfloat16", None),
        ("zero2", "bfloat16", None),
        ("zero3", "bfloat16", None),
        ("zero3", "bfloat16", ON_THE_HEAD),
        ("zero3", "float32", None),
    ],
)
def test_step_0_of_two_processes_is_the_reference_to_the_last_bit(
    make_dataset: MakeDataset,
    policy: Path,
    tmp_path: Path,
    strategy: str,
    dtype: str,
    targets: tuple[str, ...] | None,
) -> None:
    adapter = "none" if targets is None else "lora"
    source = completions(make_dataset, policy, 0, 4)
    reference = scored(source, policy, tmp_path, dtype=dtype, adapter=adapter, strategy=strategy)
    data = pairs(make_dataset, sums(reference), reference)
    config = TrainConfig(
        policy=str(policy),
        dtype=dtype,
        adapter=adapter,
        lora_targets=targets or (),
        strategy=strategy,
        processes=2,
        max_steps=1,
        batch_size=10,
        micro_batch_tokens=100,
    )
    run(config, training=data, output=str(tmp_path / "model"))
    check_first_step(first_step(tmp_path / "model"), f"{strategy} {dtype} {adapter}")
