"""Settings of ``train_reward_model``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kubealign_components.config import require, require_choice
from kubealign_components.training.config import TrainerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModelConfig(TrainerConfig):
    """Settings of ``train_reward_model``; the defaults are the published ones of principle-driven training
    with adapters (SALMON, arXiv 2310.05910). Pre-training on human preferences took a learning rate of
    5e-5 and a warm-up of 0.01."""

    template: str = "reward"
    """What the model reads: the shipped template, or path or URI of one's own."""
    principles: str = "judging"
    """Where the saved model's own principles and the opposites of those in the pairs are looked up: a shipped
    set, or path or URI of one's own; empty for none. What a pair is trained by stands in its row."""
    principle_names: tuple[str, ...] = ()
    """Principles that the saved model goes by where a caller gives it none; all of the set but those for the
    judge alone when empty."""
    head: str = "zero"
    """How a new head starts: zero (every score is 0 at first), or normal (standard deviation 1/√(H + 1), by
    the seed). One that is trained on is not new."""
    margin: float = 0.0
    """Factor of the rows' margins in the loss: by how much scores should differ for each unit; 0 for none."""
    centring: float = 0.0
    """Weight of the square of the sum of both scores in the loss, which keeps scores around 0."""
    max_length: int = 0
    """Most tokens of a conversation with its principles; pairs with a longer one are dropped and counted,
    nothing is cut. 0 for what the policy was made for."""
    learning_rate: float = 3e-5
    """Peak learning rate of AdamW. Full training wants a tenth of it."""
    schedule: str = "cosine"
    """Learning rate after warm-up: linear or cosine to 0, or constant."""
    warmup_ratio: float = 0.03
    """Share of the steps over which the learning rate rises from 0."""
    batch_size: int = 64
    """Pairs of one optimiser step, over all processes."""
    max_grad_norm: float = 0.3
    """Clip the gradient norm to this; 0 never clips."""
    adapter: str = "lora"
    """none (full training), lora, or qlora (a base in 4 bits, which needs CUDA)."""
    lora_r: int = 64
    """Rank of the adapters."""
    lora_alpha: int = 16
    """Scale of the adapters: their output counts lora_alpha / lora_r."""

    def __post_init__(self) -> None:
        TrainerConfig.__post_init__(self)
        require_choice("head", self.head, ("zero", "normal"))
        require(self.max_length >= 0, "max_length", self.max_length, "0 or a number of tokens")
        for name in ("margin", "centring"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "0 or more")
        targets = self.lora_targets
        require(
            "score" not in targets,
            "lora_targets",
            targets,
            "layers of the decoder; the head is trained whole",
        )
        require(
            bool(self.principles) or not self.principle_names,
            "principle_names",
            self.principle_names,
            "none without a set of principles",
        )
