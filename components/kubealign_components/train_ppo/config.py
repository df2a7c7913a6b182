"""Settings of ``train_ppo``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from kubealign_components.config import execution, require, require_choice
from kubealign_components.data.principles import GENERAL, REASONING, RED_TEAMING, TAGS
from kubealign_components.data.seeds import require_validation_fraction
from kubealign_components.engines.rewards import RewardFunctionSpec
from kubealign_components.training.config import OptimiserConfig

TAG_WEIGHTS: Mapping[str, float] = {GENERAL: 0.0, REASONING: 128.0, RED_TEAMING: 128.0}
"""The published extra weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PpoConfig(OptimiserConfig):
    """Settings of ``train_ppo``; the defaults are the published ones."""

    policy_adapter: str = ""
    """Folder or URI of a PEFT adapter on the policy, from which training starts; a frozen copy of it is
    the reference then. When empty, training starts from the policy itself, and that is the reference."""
    functions: tuple[RewardFunctionSpec, ...] = ()
    """Reward functions beside a reward model, or in its place."""
    reward_model_weight: float = 1.0
    """Factor of the reward model's score."""
    principles: str = "rl"
    """Set whose principles for reinforcement learning are drawn for every rollout: shipped, or a file."""
    interventions: str = "interventions"
    """Set whose principles stand before the drawn ones in every rollout; empty for none."""
    max_principles: int = 3
    """Principles drawn for a rollout."""
    tag_weights: dict[str, float] = field(default_factory=lambda: dict(TAG_WEIGHTS))
    """By question type of the prompt, what principles with that tag weigh in addition."""
    length_bonus_scale: float = 5.0
    """Length bonus: scale · min(cap, tokens / max_new_tokens · length_bonus of the prompt); 0 for none."""
    length_bonus_cap: float = 0.8
    """See ``length_bonus_scale``."""
    stop_penalty: float = 6.0
    """Taken off the reward of a completion that did not end by itself."""
    engine: str = "transformers"
    """What samples: transformers, or vllm (with the adapter handed over before every step)."""
    temperature: float = 0.7
    """Divides the logits, in sampling and in log-probabilities."""
    max_new_tokens: int = 1024
    """Most tokens of a completion."""
    max_prompt_tokens: int = 256
    """Longer prompts are dropped."""
    rollout_batch: int = 576
    """Rollouts of one step, over all processes."""
    step_batch: int = 288
    """Rollouts of one optimiser step, over all processes."""
    ppo_epochs: int = 2
    """Passes over the rollouts of a step."""
    epochs: float = 2.0
    """Passes over the prompts."""
    max_steps: int = 0
    """Steps, instead of ``epochs``; 0 to go by epochs."""
    learning_rate: float = 2e-5
    """Peak learning rate of AdamW."""
    schedule: str = "cosine"
    """Learning rate after warm-up: cosine or linear to 0, or constant."""
    warmup_steps: int = 5
    """Steps over which the learning rate rises."""
    max_grad_norm: float = 1.0
    """Clip the gradient norms, of policy and value each, to this; 0 never clips."""
    gamma: float = 1.0
    """Discount of later rewards."""
    gae_lambda: float = 1.0
    """λ of generalised advantage estimation."""
    clip: float = 0.2
    """Policy ratios count within 1 ± clip."""
    value_clip: float = 0.2
    """Values count within the old value ± value_clip."""
    value_coef: float = 0.1
    """Factor of the value loss."""
    kl_estimator: str = "k1_clamped"
    """Penalty of a token: k1 (log-ratio to the reference), k1_clamped (as published: at least 0) or k3.
    As part of a reward, k1 alone has the gradient of the KL; with a large weight, k3 drives a policy to end
    its turns early, since every further token costs something."""
    kl_coef: float = 0.01
    """Weight of the KL penalty; the first one where it adapts."""
    kl_controller: str = "fixed"
    """fixed, or adaptive: the weight follows ``kl_target``."""
    kl_target: float = 6.0
    """Adaptive: wanted KL of a completion, in nats."""
    kl_horizon: float = 10.0
    """Adaptive: one over the share by which the weight changes in a step, per relative error."""
    adapter: str = "lora"
    """lora, or qlora (a base in 4 bits, which needs CUDA)."""
    lora_r: int = 64
    """Rank of the policy adapter, and of a value adapter that starts fresh."""
    lora_alpha: int = 16
    """Scale of the adapters: their output counts lora_alpha / lora_r."""
    dtype: str = "auto"
    """Of the base: bfloat16, float32, or auto (bfloat16 on CUDA, else float32); adapters are float32."""
    save_dtype: str = "saved"
    """Precision of the saved weights: saved (as the policy was), float32, bfloat16 or float16; bfloat16
    rounds a weight that moved by less than 0.2 % back to where it was."""
    merge_adapter: bool = True
    """Whether to save a whole model, or the policy adapter alone, which no other stage takes."""
    validation_fraction: float = 0.05
    """Share of prompts, chosen by the hash of their ids, that are held out; 0 for no evaluation."""
    eval_prompts: int = 256
    """Most held-out prompts that the policy answers before and after training."""
    seed: int = 0
    """Seed of prompt order, samples, principle draws and adapter initialisation."""
    micro_batch_tokens: int = execution(8192)
    """Most tokens of one forward pass of one process; a longer rollout is one by itself."""
    generation_tokens: int = execution(65536)
    """Most tokens that transformers generates at once, every completion counted at its longest."""
    memory_fraction: float = execution(0.3)
    """Share of each GPU's memory that vLLM may take beside the training."""

    def __post_init__(self) -> None:
        OptimiserConfig.__post_init__(self)
        self._check_choices()
        self._check_ranges()
        for name, weight in self.tag_weights.items():
            require_choice("tag_weights", name, TAGS)
            require(0 <= weight < math.inf, f"tag_weights.{name}", weight, "0 or more")
        require(
            self.step_batch <= self.rollout_batch,
            "step_batch",
            self.step_batch,
            f"at most rollout_batch ({self.rollout_batch})",
        )

    def _check_choices(self) -> None:
        require_choice("engine", self.engine, ("transformers", "vllm"))
        require_choice("kl_estimator", self.kl_estimator, ("k1_clamped", "k1", "k3"))
        require_choice("kl_controller", self.kl_controller, ("fixed", "adaptive"))
        require_choice("adapter", self.adapter, ("lora", "qlora"))

    def _check_ranges(self) -> None:
        for name in ("temperature", "clip", "value_clip", "kl_target"):
            require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "a positive number")
        for name in (
            *("kl_coef", "value_coef", "warmup_steps", "length_bonus_scale", "stop_penalty"),
            *("max_principles", "seed"),
        ):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "0 or more")
        for name in (
            *("max_new_tokens", "max_prompt_tokens", "rollout_batch", "step_batch", "ppo_epochs"),
            *("generation_tokens", "eval_prompts", "kl_horizon"),
        ):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("gamma", "gae_lambda"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number in [0, 1]")
        require(math.isfinite(self.length_bonus_cap), "length_bonus_cap", self.length_bonus_cap, "a number")
        weight = self.reward_model_weight
        require(math.isfinite(weight) and weight != 0, "reward_model_weight", weight, "a number other than 0")
        require_validation_fraction(self.validation_fraction)
        require(0 < self.memory_fraction <= 1, "memory_fraction", self.memory_fraction, "a number in (0, 1]")
