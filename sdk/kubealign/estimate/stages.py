"""What a run file's GPU stages need: its settings, read from the compiled graph, put into the formulas."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubealign.compiler import compile_pipeline
from kubealign.estimate.formulas import (
    FULL,
    HALF,
    SHAPES,
    Memory,
    ModelShape,
    Throughput,
    Training,
    gpu_hours,
    sampling_memory,
    scoring_memory,
    training_memory,
)
from kubealign.graph import Graph, Task
from kubealign.parameters import OPTIONS, check_parameters, config_class
from kubealign.runfile import RunFile
from kubealign_components.config import from_mapping, require
from kubealign_components.errors import ConfigError
from kubealign_pipelines.resources import DEFAULTS, TRAINING

SCORING = ("rewards", "logprobs", "judge")


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumptions:
    """What an estimate takes for granted; all of it is printed."""

    gpu_memory: float = 80.0
    """GiB of a GPU."""
    nodes: int = 0
    """Machines of a training stage, each with the accelerators that the run file gives its pod; 0 for as many
    as the run file says."""
    rows: int = 10_000
    """Prompts; each is also taken for one of reinforcement learning and one pair for the reward model."""
    prompt_tokens: int = 256
    """Mean tokens of a prompt."""
    completion_tokens: int = 512
    """Mean tokens of a completion."""
    questions: int = 22
    """Questions that the judge answers on a pair: 11 shipped principles in both orders."""
    reward_shape: ModelShape | None = None
    """Of the reward model that the rewards stage runs; the policy's where None."""
    throughput: Throughput = field(default_factory=Throughput)

    def __post_init__(self) -> None:
        require(self.gpu_memory > 0, "gpu_memory", self.gpu_memory, "a positive number of GiB")
        require(self.nodes >= 0, "nodes", self.nodes, "0 or more")
        for name in ("rows", "prompt_tokens", "completion_tokens", "questions"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEstimate:
    """One GPU stage."""

    stage: str
    title: str
    gpus: int
    """GPUs of a pod, for training of all nodes."""
    nodes: int
    """Machines."""
    memory: Memory
    fits: bool
    hours: float
    """GPU-hours."""
    tokens: Mapping[str, float]
    """Tokens by kind of work: sample, score, train."""


def shape_of(policy: str, preset: str = "") -> ModelShape:
    """The shape of the model: of the preset where one is named, else of the local directory ``policy``.

    Raises:
        ConfigError: an unknown preset, or a policy that is no local model directory.
    """
    if preset:
        require(preset in SHAPES, "--model-shape", preset, f"one of {', '.join(SHAPES)}")
        return SHAPES[preset]
    if not Path(policy, "config.json").is_file():
        raise ConfigError(
            "policy", policy, f"a local model directory, or --model-shape with one of {', '.join(SHAPES)}"
        )
    return read_shape(Path(policy))


def read_shape(folder: Path) -> ModelShape:
    """The shape of the model in ``folder``; its parameters are counted on torch's meta device, without
    memory.

    Raises:
        ConfigError: no config of a decoder.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        text = config.get_text_config()
        return ModelShape(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            vocabulary=text.vocab_size,
            tied=bool(text.tie_word_embeddings),
            counted=sum(weight.numel() for weight in model.parameters()),
        )
    except (OSError, ValueError, AttributeError, json.JSONDecodeError) as error:
        raise ConfigError("policy", str(folder), f"a decoder's config.json ({error})") from error


def estimate(run: RunFile, shape: ModelShape, assumed: Assumptions) -> list[StageEstimate]:
    """Memory and GPU-hours of every GPU stage of ``run``, in the order of the pipeline.

    Raises:
        ConfigError: parameters that a stage refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        graph = compile_pipeline(run.pipeline, Path(folder) / "pipeline.yaml", run.compile)
    values = check_parameters(graph, run.parameters, complete=False)
    found: list[StageEstimate] = []
    for task in _taken(graph, values):
        wanted = run.compile.resources(task.group)
        gpus, training = wanted.accelerators or 0, task.function in TRAINING
        nodes = (assumed.nodes or wanted.nodes or 1) if training else 1
        if gpus and task.function not in ("split", "merge"):
            found.append(_Stage(task, values, shape, assumed, gpus, nodes).estimate())
    order = [*(stage for stage in DEFAULTS if stage != "evaluate"), "evaluate"]
    return sorted(found, key=lambda stage: order.index(stage.stage))


def _taken(graph: Graph, values: Mapping[str, Any]) -> Iterator[Task]:
    """The tasks of the branch that ``values`` choose, each kind once but the reward model's two runs."""
    ppo = values.get("rl", "ppo") == "ppo"
    seen: set[str] = set()
    for task in graph.tasks.values():
        other = {"train", "rewards", "logprobs", "select", "mix"} if ppo else {"train_ppo"}
        skipped = graph.name == "salmon" and task.function in other
        if not skipped and (task.title not in seen):
            seen.add(task.title)
            yield task


class _Stage:
    """One task with its settings."""

    def __init__(
        self,
        task: Task,
        values: Mapping[str, Any],
        shape: ModelShape,
        assumed: Assumptions,
        gpus: int,
        nodes: int,
    ) -> None:
        known = {
            name: source.constant if source.parameter is None else values.get(source.parameter)
            for name, source in task.arguments.items()
        }
        self.task, self.values, self.assumed, self.gpus = task, values, assumed, gpus
        self.nodes = nodes
        self.shape = (assumed.reward_shape or shape) if task.function == "rewards" else shape
        self.settings: dict[str, Any] = known | (known.get(OPTIONS) or {})

    def estimate(self) -> StageEstimate:
        """The stage's memory and time."""
        function = self.task.function
        training = function in TRAINING
        memory = self._training() if training else self._inference()
        gpu_bytes = self.assumed.gpu_memory * 2**30
        tokens = self._tokens()
        checkpointing = bool(self.settings.get("gradient_checkpointing"))
        rates = self.assumed.throughput.rates(self.shape, checkpointing=checkpointing)
        return StageEstimate(
            stage=self.task.function,
            title=self.task.title,
            gpus=self.gpus * self.nodes,
            nodes=self.nodes,
            memory=memory,
            fits=memory.fits(gpu_bytes),
            hours=gpu_hours(tokens, rates),
            tokens=tokens,
        )

    def _training(self) -> Memory:
        cls = config_class(self.task.function)
        assert cls is not None
        fields = cls.__dataclass_fields__  # type: ignore[attr-defined]
        known = {name: value for name, value in self.settings.items() if name in fields and value is not None}
        config: Any = from_mapping(cls, {"policy": "given-when-it-runs"} | known, self.task.function)
        ppo = self.task.function == "train_ppo"
        training = Training(
            strategy="none" if ppo else config.strategy,
            adapter=config.adapter,
            lora_r=config.lora_r,
            ranks=(config.processes or self.gpus) * self.nodes,
            micro_batch_tokens=config.micro_batch_tokens,
            gradient_checkpointing=config.gradient_checkpointing,
            compute=FULL if config.dtype == "float32" else HALF,
            trained_adapters=2 if ppo else 1,
            frozen_adapters=1 + bool(config.policy_adapter) if ppo else 0,
        )
        return training_memory(self.shape, training, self._cache(config) if ppo else 0.0)

    def _cache(self, config: Any) -> float:
        """Of PPO's sampler: the keys and values of a batch, or all that a vLLM engine of its own takes, which
        is its share of the GPU and at least its weights, not quantised, and one rollout."""
        longest = config.max_prompt_tokens + config.max_new_tokens
        if config.engine != "vllm":
            return self.shape.cache_bytes(max(config.generation_tokens, longest))
        gpu_bytes = self.assumed.gpu_memory * 2**30
        return sampling_memory(self.shape, gpu_bytes, config.memory_fraction, 1, longest).total

    def _inference(self) -> Memory:
        if self.task.function not in SCORING:
            options = self.settings.get("sampling") or {}
            if self.task.function == "evaluate":
                options = (self.settings.get("sample_options") or {}).get("sampling", {}) | options
            parallel = int(options.get("tensor_parallel_size", 1))
            longest = int(self.values.get("filter_max_prompt_len", 2048)) + int(
                self.settings.get("max_new_tokens", 1024)
            )
            gpu_bytes = self.assumed.gpu_memory * 2**30
            fraction = float(options.get("memory_fraction", 0.9))
            return sampling_memory(self.shape, gpu_bytes, fraction, parallel, longest)
        return scoring_memory(self.shape, int(self.settings.get("token_budget", 8192)), self.gpus)

    def _tokens(self) -> dict[str, float]:
        a, setting = self.assumed, self.settings
        prompt, answer, rows = a.prompt_tokens, a.completion_tokens, a.rows
        n = int(self.values.get("sample_n", 2))
        pairs = int(self.values.get("select_pairs_per_prompt", 1))
        whole = prompt + answer
        name = self.task.function
        if name == "sample":
            return {"sample": float(rows * int(setting.get("n") or 2) * answer)}
        if name == "rewards":
            return {"score": float(rows * (prompt + n * answer))}
        if name == "logprobs":
            scored = n if self.values.get("logprobs_order") == "before" else min(n, 2 * pairs)
            return {"score": float(rows * (prompt + scored * answer))}
        if name == "judge":
            return {"score": float(rows * a.questions * (prompt + 2 * answer))}
        if name == "evaluate":
            asked = min(rows, int(setting.get("max_prompts") or rows)) * int(setting.get("n") or 1)
            return {"sample": float(asked * answer), "score": float(2 * asked * whole)}
        passes = float(setting.get("epochs") or 1)
        if name == "train":
            return {"train": rows * pairs * passes * (prompt + 2 * answer)}
        if name == "train_reward_model":
            steps = int(setting.get("max_steps") or 0)
            examples = steps * int(setting.get("batch_size") or 64) or rows * passes
            return {"train": 2.0 * examples * whole}
        steps = int(setting.get("max_steps") or 0)
        rollouts = steps * int(setting.get("rollout_batch") or 576) or rows * passes
        optimised = int(setting.get("ppo_epochs", 2))
        # Policy, value, reference and reward read every rollout once; policy and value are trained on it.
        return {
            "sample": rollouts * answer,
            "score": 4.0 * rollouts * whole,
            "train": 2.0 * optimised * rollouts * whole,
        }
