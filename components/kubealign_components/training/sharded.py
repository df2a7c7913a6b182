"""State that FSDP2 spreads over processes, saved and loaded with torch's distributed checkpointing.

Every process writes its own part to one file, and reads its part from whichever files hold it, so that
other numbers of processes can go on.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

SHARDS = "shards"
"""Folder of a checkpoint."""


def save_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write this process's part of trained weights and optimiser state below ``folder``."""
    # What all processes have alike goes to the first one's file: else it is strewn over all files, and
    # whoever goes on needs every one of them.
    checkpoint.save(
        _state(model, optimizer),
        storage_writer=checkpoint.FileSystemWriter(folder / SHARDS),
        planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True),
    )


def load_shards(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put what :func:`save_shards` wrote into ``model`` and ``optimizer``."""
    state = _state(model, optimizer)
    checkpoint.load(state, storage_reader=checkpoint.FileSystemReader(folder / SHARDS))
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=_options(strict=False),
    )


def shards_of(folder: Path, ranks: Collection[int], count: int) -> list[str]:
    """Names of the files in ``folder`` that processes of the given ``ranks`` among ``count`` read.

    FSDP2 cuts every tensor along its first axis into ``count`` parts of equal size, the last ones shorter.

    Args:
        folder: with the checkpoint's metadata.
        ranks: some processes.
        count: of all processes.
    """
    metadata: Metadata = checkpoint.FileSystemReader(folder).read_metadata()
    needed = set()
    for index, stored in metadata.storage_data.items():
        tensor = metadata.state_dict_metadata[index.fqn]
        if isinstance(tensor, TensorStorageMetadata) and index.offset and tensor.size:
            part = math.ceil(tensor.size[0] / count)
            first = index.offset[0]
            last = first + next(c.sizes[0] for c in tensor.chunks if c.offsets == index.offset)
            if not any(first < (rank + 1) * part and rank * part < last for rank in ranks):
                continue
        needed.add(stored.relative_path)
    return sorted(needed)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    weights, state = get_state_dict(model, optimizer, options=_options())
    return {"model": weights, "optimizer": state}


def _options(*, strict: bool = True) -> StateDictOptions:
    return StateDictOptions(ignore_frozen_params=True, strict=strict)
