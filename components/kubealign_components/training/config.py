"""Settings that every training stage has, and the names of objectives and strategies."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kubealign_components.config import execution, require, require_choice
from kubealign_components.engines.dtypes import SAVED

TRANSFORMS = ("identity", "log", "sqrt", "square", "normal_icdf")
"""f in QRPO: what is regressed on, as a function of the quantile reward. Here, not beside the objectives,
so that settings are checked without torch."""
INCLUSIVE, MID_RANK, LEAVE_ONE_OUT = "inclusive", "mid_rank", "leave_one_out"
QUANTILE_RULES = (INCLUSIVE, MID_RANK, LEAVE_ONE_OUT)
"""How a quantile reward counts what is equal to it; :mod:`kubealign_components.select.quantiles` has them."""


def least_references(transform: str, rule: str) -> int:
    """Reference rewards that a prompt needs for ``transform`` to tell rewards apart.

    With n = 2 the inclusive rule leaves ``normal_icdf`` the one value 1/2, whatever the reward.
    """
    needed = {"log": {INCLUSIVE: 1}, "normal_icdf": {INCLUSIVE: 3}}
    return needed[transform].get(rule, 2) if transform in needed else 0


PAIRWISE = ("dpo", "dpo_norm", "ipo", "rebel", "simpo")
"""Objectives that compare a chosen with a rejected completion."""
LOGISTIC = ("dpo", "dpo_norm", "simpo")
"""Those that take σ(margin) for the probability that a pair is rightly ordered."""
POINTWISE = ("kto", "qrpo")
"""Objectives that look at one completion at a time; pairs are two of them."""
SHARDED = ("fsdp2", "zero1", "zero2", "zero3")
"""Strategies that spread the training state over processes; each has a file in ``configs/``."""
_OF_CHECKPOINTS = {"save_every": 0, "save_minutes": 10.0, "keep_checkpoints": 1}
"""Settings that do nothing without a place for checkpoints, and their defaults."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserConfig:
    """Settings of whatever is trained in steps of AdamW, on stored examples or on rollouts."""

    policy: str
    """Model directory, URI or hub id of the policy."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    learning_rate: float
    """Peak learning rate of AdamW."""
    schedule: str = "linear"
    """Learning rate after warm-up: linear or cosine to 0, or constant."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    epochs: float = 1.0
    """Passes over the training split."""
    max_steps: int = 0
    """Optimiser steps, instead of ``epochs``; 0 to go by epochs."""
    max_grad_norm: float = 1e5
    """Clip the gradient norm to this; 0 never clips."""
    seed: int = 0
    """Seed of the example order and of adapter initialisation."""
    dtype: str = "auto"
    """Precision of the forward and backward pass: bfloat16, float32, or auto (bfloat16 on CUDA, else
    float32). Trained weights and optimiser state are float32 in any case: a step at a learning rate of
    1e-6 is smaller than bfloat16's spacing and would be lost."""
    save_dtype: str = "saved"
    """Precision of the saved weights: saved (what the policy was saved in), float32, bfloat16 or float16.
    A policy saved in bfloat16 sits on bfloat16's grid, and a weight that moved by less than half its
    spacing, about 0.2 %, is rounded back: at small learning rates that undoes the training, and float32
    keeps it, at twice the size. DeepSpeed hands over bfloat16 weights when it computes in them."""
    adapter: str = "none"
    """none (full training), lora, or qlora (a base in 4 bits, which needs CUDA)."""
    lora_r: int = 16
    """Rank of the adapters."""
    lora_alpha: int = 32
    """Scale of the adapters: their output counts lora_alpha / lora_r."""
    lora_targets: tuple[str, ...] = ()
    """Names of the layers that get adapters; all linear layers but the head by default."""
    nodes: int = execution(1)
    """Machines that train together; more than one only on a cluster."""
    processes: int = execution(0)
    """Training processes on each machine; 0 for one a GPU."""
    micro_batch_tokens: int = execution(4096)
    """Most tokens of one forward pass of one process, each prompt counted once: an optimiser step is cut
    into as many as it takes, and a longer example is one by itself. Lower it when memory runs out."""
    gradient_checkpointing: bool = execution(False)
    """Recompute activations in the backward pass: a third more time, far less memory."""
    save_every: int = execution(0)
    """Steps between checkpoints; 0 to go by ``save_minutes``."""
    save_minutes: float = execution(10.0)
    """Minutes between checkpoints, where there is a work prefix for them; 0 for none but on SIGTERM."""
    keep_checkpoints: int = execution(1)
    """Checkpoints to keep; older ones are removed."""
    work: str = execution("")
    """Work prefix; checkpoints go below it under the run's fingerprint, where a retry finds them."""

    def __post_init__(self) -> None:
        require_choice("schedule", self.schedule, ("linear", "cosine", "constant"))
        require_choice("dtype", self.dtype, ("auto", "bfloat16", "float32"))
        require_choice("save_dtype", self.save_dtype, SAVED)
        for name in ("learning_rate", "epochs"):
            require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "a positive number")
        for name in (
            *("weight_decay", "max_grad_norm", "max_steps", "save_every", "save_minutes", "processes"),
        ):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more")
        for name in ("micro_batch_tokens", "lora_r", "lora_alpha", "keep_checkpoints", "nodes"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name, default in _OF_CHECKPOINTS.items():
            require(
                bool(self.work) or getattr(self, name) in (default, 0),
                "work",
                self.work,
                f"a folder or URI for the checkpoints that {name}={getattr(self, name):g} asks for",
            )
        require(
            self.nodes == 1 or bool(self.work), "work", self.work, "a URI where several nodes find their job"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerConfig(OptimiserConfig):
    """Settings of everything that is trained in optimiser steps on stored examples."""

    warmup_ratio: float = 0.1
    """Share of the steps over which the learning rate rises to its peak."""
    batch_size: int = 32
    """Examples of one optimiser step, over all processes: pairs, or single completions."""
    lora_dropout: float = 0.0
    """Dropout of the adapters' input. All other dropout is off."""
    eval_every: int = 0
    """Steps between validation losses; 0 for one at the end, where there is a validation split."""
    strategy: str = execution("none")
    """Data parallel (none), fsdp2, or DeepSpeed zero1, zero2, zero3."""

    def __post_init__(self) -> None:
        OptimiserConfig.__post_init__(self)
        require_choice("adapter", self.adapter, ("none", "lora", "qlora"))
        require_choice("strategy", self.strategy, ("none", *SHARDED))
        require(self.eval_every >= 0, "eval_every", self.eval_every, "0 or more")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        for name in ("warmup_ratio", "lora_dropout"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        require(
            self.adapter != "qlora" or self.strategy == "none",
            "strategy",
            self.strategy,
            "none with qlora: a quantised base is not sharded",
        )
