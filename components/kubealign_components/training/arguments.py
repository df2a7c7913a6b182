"""From our settings to those of ``transformers.Trainer``."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from accelerate.utils import other as unwrapping
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import TrainingArguments

from kubealign_components.training.config import TrainerConfig
from kubealign_components.training.models import compute_dtype
from kubealign_components.training.processes import TIMEOUT
from kubealign_components.training.trackers import trackers


def strategy_settings(strategy: str) -> dict[str, object]:
    """The ready settings of a sharding strategy (fsdp2, zero1, zero2, zero3), from ``configs/``."""
    text = (
        files("kubealign_components.training.configs")
        .joinpath(f"{strategy}.json")
        .read_text(encoding="utf-8")
    )
    settings: dict[str, Any] = json.loads(text)
    return settings


def training_arguments(
    config: TrainerConfig, folder: Path, *, universal: bool = False, last_step: int = 0
) -> TrainingArguments:
    """Arguments of a run whose local files go to ``folder``.

    Args:
        config: the settings.
        folder: of this node.
        universal: whether the run goes on from a universal checkpoint of DeepSpeed's.
        last_step: the step after which the run ends, before all that are planned; 0 to go through with them.

    With a ZeRO strategy this must exist before the model is loaded: ZeRO-3 shards it on loading.
    """
    sharded_by_zero = config.strategy.startswith("zero")
    # Asked to unwrap any model, accelerate loads DeepSpeed where it is installed: seconds, and a warning.
    vars(unwrapping)["is_deepspeed_available"] = lambda: sharded_by_zero
    arguments = TrainingArguments(
        output_dir=str(folder),
        # For the Trainer an optimiser step is one batch; StepTrainer cuts it.
        per_device_train_batch_size=1,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        num_train_epochs=config.epochs,
        max_steps=last_step or config.max_steps or -1,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        seed=config.seed,
        bf16=compute_dtype(config.dtype) == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if config.eval_every else "no",
        eval_steps=config.eval_every or None,
        save_strategy="no",  # checkpoints are saved when all processes agree on it
        remove_unused_columns=False,
        label_names=[],
        disable_tqdm=True,
        report_to=trackers(os.environ),
        ddp_timeout=int(TIMEOUT.total_seconds()),
        **_sharding(config, universal),
    )
    if arguments.world_size == 1:
        arguments._n_gpu = min(arguments.n_gpu, 1)  # the Trainer's own DataParallel splits tensors only
    if sharded_by_zero and torch.distributed.is_initialized():
        import deepspeed

        deepspeed.init_distributed()  # ZeRO-3 asks it for the number of processes when the model is loaded
    if config.strategy == "fsdp2":
        arguments.fsdp_plugin_args["mixed_precision_policy"] = _fsdp_precision(config)
    if config.strategy == "fsdp2" and not torch.cuda.is_available():
        # On CPUs accelerate would quietly run plain data parallelism instead, though torch shards there too.
        PartialState().distributed_type = DistributedType.MULTI_GPU
    return arguments


def _fsdp_precision(config: TrainerConfig) -> MixedPrecisionPolicy:
    """Weights are gathered in what is computed in; gradients add up in float32, and results stay as they are.

    By default accelerate rounds whatever a module gives to bfloat16, the model's log-probabilities too: the
    sum over a completion of 300 nats would be off by up to 1.
    """
    return MixedPrecisionPolicy(param_dtype=compute_dtype(config.dtype), reduce_dtype=torch.float32)


def _sharding(config: TrainerConfig, universal: bool) -> dict[str, object]:
    if config.strategy == "none":
        return {"ddp_find_unused_parameters": False}
    settings = strategy_settings(config.strategy)
    if config.strategy == "fsdp2":
        return {"fsdp": True, "fsdp_config": settings}
    if universal:
        settings["checkpoint"] = {"load_universal": True}
    return {"deepspeed": settings}
