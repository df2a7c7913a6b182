"""What a run file's GPU stages need: its settings, read from the compiled graph, put into the formulas."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from kubealign.estimate.recipe import Recipe, new_draws, of_new_draws, questions_on_pair
from kubealign.parameters import check_parameters
from kubealign.runfile import RunFile
from kubealign_components.config import require
from kubealign_components.data.model_files import text_config
from kubealign_components.errors import ConfigError
from kubealign_components.gpus import Gpus
from kubealign_components.json_types import JsonObject
from kubealign_components.stages import config_class
from kubealign_components.variant import VARIANT, from_variant
from kubealign_pipelines import build
from kubealign_pipelines.checking.sources import count_rows
from kubealign_pipelines.checking.stages import arguments
from kubealign_pipelines.compiler import graph_of
from kubealign_pipelines.graph import Graph, Task
from kubealign_pipelines.stage_resources import DEFAULTS, TRAINING
from kubealign_pipelines.variants import VARIANTS, number_of

if TYPE_CHECKING:
    from kubealign_components.benchmark.config import BenchmarkConfig
    from kubealign_components.evaluate.stage import EvaluateConfig
    from kubealign_components.judge.stage import JudgeConfig
    from kubealign_components.logprobs.stage import LogprobsConfig
    from kubealign_components.rank.stage import RankConfig
    from kubealign_components.rewards.stage import RewardsConfig
    from kubealign_components.sample.stage import SampleConfig
    from kubealign_components.train.config import TrainConfig
    from kubealign_components.train_ppo.config import PpoConfig
    from kubealign_components.train_reward_model.config import RewardModelConfig

_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)([bBmM])(?![a-zA-Z0-9])")
_SAME_SIZE = math.log(1.5)

_CHOICES = 4
"""Of a question of a benchmark, each of which is read with it."""

Tokens = dict[str, float]
"""By kind of work: sample, score, train."""


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
    benchmark_documents: int = 1_000
    """Documents of a benchmark's task, where no limit says less; one is read with each of four choices."""
    reward_shape: ModelShape | None = None
    """Of the reward model that the rewards stage runs, or the judge of rank; the policy's where None."""
    throughput: Throughput = field(default_factory=Throughput)

    def __post_init__(self) -> None:
        require(self.gpu_memory > 0, "gpu_memory", self.gpu_memory, "a positive number of GiB")
        require(self.nodes >= 0, "nodes", self.nodes, "0 or more")
        counts = ("rows", "prompt_tokens", "completion_tokens", "questions", "benchmark_documents")
        for name in counts:
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
    """The shape of the model: of the preset where one is named, else of the local directory ``policy``, else
    of the preset whose size the name of ``policy`` tells.

    Raises:
        ConfigError: an unknown preset, or a policy that is not here and whose name tells no size.
    """
    preset = preset or ("" if is_here(policy) else preset_of(policy))
    if preset:
        require(preset in SHAPES, "--model-shape", preset, f"one of {', '.join(SHAPES)}")
        return SHAPES[preset]
    if not is_here(policy):
        expected = "a local model directory, a name that tells its size, or --model-shape with one of "
        raise ConfigError("policy", policy, expected + ", ".join(SHAPES))
    return read_shape(Path(policy))


def is_here(policy: str) -> bool:
    """Whether ``policy`` is a model directory of this machine."""
    return bool(policy) and Path(policy, "config.json").is_file()


def preset_of(name: str) -> str:
    """The preset of about the size that ``name`` tells, such as 8B or 135M, or an empty text."""
    size = _SIZE.search(name.rpartition("/")[2])
    if size is None:
        return ""
    parameters = float(size[1]) * (1e9 if size[2] in "bB" else 1e6)
    apart = {preset: abs(math.log(shape.parameters / parameters)) for preset, shape in SHAPES.items()}
    nearest = min(apart, key=lambda preset: apart[preset])
    return nearest if apart[nearest] < _SAME_SIZE else ""


def rows_of(parameters: Mapping[str, object]) -> int:
    """Rows of the sources, where all of them lie on this machine; 0 where they do not."""
    rows = 0
    sources = parameters.get("sources")
    for source in sources if isinstance(sources, list) else ():
        counted = count_rows(source["uri"], source.get("split", "train"))
        if not counted:
            return 0
        rows += min(counted, source.get("max_rows") or counted)
    return rows


def shape_from_config(config: JsonObject) -> ModelShape:
    """The shape that a ``config.json`` tells, without torch.

    Raises:
        KeyError: no config of a decoder.
    """
    text = text_config(config)
    heads = text["num_attention_heads"]
    return ModelShape(
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or text["hidden_size"] // heads,
        vocabulary=text["vocab_size"],
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
    )


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


def estimate(
    run: RunFile, shape: ModelShape, assumed: Assumptions, graph: Graph | None = None
) -> list[StageEstimate]:
    """Memory and GPU-hours of every GPU stage of ``run``, in the order of the pipeline.

    Args:
        run: pipeline, parameters and settings.
        shape: of the policy.
        assumed: what a run file does not say.
        graph: of the run's pipeline, where it is built already.

    Raises:
        ConfigError: parameters that a stage refuses.
    """
    graph = graph or graph_of(build(run.pipeline, run.compile, run.parameters), run.pipeline)
    values = check_parameters(graph, run.parameters, complete=False)
    values |= graph.rules.choose(run.parameters)
    estimates: dict[str, list[StageEstimate]] = {}
    number = number_of(values)
    for task, config, recipe in _of_variants(graph, values):
        resources = run.compile.resources(task.function)
        gpus, training = resources.accelerators or 0, task.function in TRAINING
        nodes = (assumed.nodes or resources.nodes or 1) if training else 1
        if gpus and _runs_a_model(task, config):
            tokens = _work(task, config, recipe, assumed, number)
            made = _Stage(task, config, recipe, shape, assumed, gpus, nodes).estimate(tokens)
            estimates.setdefault(task.name, []).append(made)
    order = [*(stage for stage in DEFAULTS if stage != "evaluate"), "evaluate"]
    together = [_together(made, graph.tasks[name].executions(number)) for name, made in estimates.items()]
    return sorted(together, key=lambda stage: order.index(stage.stage))


def stage_tokens(graph: Graph, values: Mapping[str, object], assumed: Assumptions) -> dict[str, Tokens]:
    """Tokens by kind of work of the tasks of ``graph`` that run a model, by the name of the task.

    Raises:
        ConfigError: parameters that a stage refuses.
    """
    tokens: dict[str, Tokens] = {}
    for task, config, recipe in _of_variants(graph, values):
        if _runs_a_model(task, config):
            own = _work(task, config, recipe, assumed, number_of(values))
            tokens[task.name] = _sum([tokens.get(task.name, {}), own])
    return tokens


def stage_configs(graph: Graph, values: Mapping[str, object]) -> list[Any]:
    """The settings of the tasks of ``graph`` that say how much work there is; of those in a loop once for
    each variant.

    Raises:
        ConfigError: parameters that a stage refuses.
    """
    return [config for _, config, _ in _of_variants(graph, values) if config is not None]


def _of_variants(graph: Graph, values: Mapping[str, object]) -> Iterator[tuple[Task, Any, Recipe]]:
    """The tasks of ``graph`` with their settings, those of the loop over variants once for each variant."""
    given = values.get(VARIANTS)
    variants = given if isinstance(given, list) and given else [{}]
    for position, variant in enumerate(variants):
        taken = [(task, _config(task, values, variant)) for task in graph.tasks.values()]
        recipe = Recipe.of({task.function: config for task, config in taken}, values)
        rounds: Counter[str] = Counter()
        new = new_draws(taken)
        for task, config in taken:
            rounds[task.function] += not task.halved  # a rung is of one round
            if task.each or not position:
                own = recipe.of_task(task.function, rounds[task.function])
                yield task, *of_new_draws(task, config, own, new)


def _config(task: Task, values: Mapping[str, object], variant: object) -> Any:
    cls = (
        config_class(task.function) if task.function in (*_TOKENS, "filter", "select", "draw_more") else None
    )
    own = {VARIANT: variant} if task.each else {}
    return None if cls is None else from_variant(cls, arguments(task, values) | own, task.function)


def _work(task: Task, config: Any, recipe: Recipe, assumed: Assumptions, variants: int) -> Tokens:
    """Tokens by kind of work of ``task`` for one of so many ``variants``. Where some were dropped before,
    each is taken to be as likely left as any other, and trains on from the rung before."""
    tokens = _TOKENS[task.function](config, recipe, assumed)
    if not task.halved:
        return tokens
    left = task.executions(variants) / variants
    ahead = 1 - 1 / task.factor if task.function in TRAINING else 1.0
    return {kind: left * ahead * count for kind, count in tokens.items()}


def _together(variants: Sequence[StageEstimate], executions: int) -> StageEstimate:
    """One task's estimates for all variants as one: the time of all, the memory of the largest."""
    largest = max(variants, key=lambda one: one.memory.total)
    times = f" ×{executions}" if executions > 1 else ""
    return replace(
        largest,
        title=f"{largest.title}{times}",
        hours=sum(one.hours for one in variants),
        tokens=_sum([one.tokens for one in variants]),
    )


def _sum(tokens: Sequence[Mapping[str, float]]) -> Tokens:
    kinds = dict.fromkeys(kind for own in tokens for kind in own)
    return {kind: sum(own.get(kind, 0.0) for own in tokens) for kind in kinds}


def _runs_a_model(task: Task, config: Any) -> bool:
    """Whether there is anything for a GPU to do: functions that reward or judge, and endpoints, need none."""
    if task.function == "rewards":
        return bool(config.reward.model)
    if task.function in ("judge", "rank"):
        judge = config if task.function == "judge" else config.judge
        return bool(questions_on_pair(judge, Assumptions().questions))
    return task.function in _TOKENS


class _Stage:
    """One task with its settings."""

    def __init__(
        self,
        task: Task,
        config: Any,
        recipe: Recipe,
        shape: ModelShape,
        assumed: Assumptions,
        gpus: int,
        nodes: int,
    ) -> None:
        self.task, self.config, self.recipe = task, config, recipe
        self.assumed, self.gpus, self.nodes = assumed, gpus, nodes
        self.shape = (assumed.reward_shape or shape) if task.function in ("rewards", "rank") else shape

    def estimate(self, tokens: Tokens) -> StageEstimate:
        """The stage's memory and time, for the work of ``tokens``."""
        gpu_bytes = self.assumed.gpu_memory * 2**30
        memory = self._memory(gpu_bytes)
        checkpointing = getattr(self.config, "gradient_checkpointing", False)
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

    def _memory(self, gpu_bytes: float) -> Memory:
        function = self.task.function
        if function in TRAINING:
            return self._training(gpu_bytes)
        if function in ("sample", "evaluate"):
            spec = self.config.sampling
            longest = spec.max_model_len or self.recipe.prompt_limit + spec.max_new_tokens
            return sampling_memory(
                self.shape, gpu_bytes, spec.memory_fraction, spec.tensor_parallel_size, longest
            )
        if function == "benchmark":
            one, longest = self.config, self.config.max_model_len or self.recipe.prompt_limit
            return sampling_memory(
                self.shape, gpu_bytes, one.memory_fraction, one.tensor_parallel_size, longest
            )
        read = {"rewards": "reward", "rank": "judge"}.get(function)
        spec = getattr(self.config, read) if read else self.config
        return scoring_memory(self.shape, spec.token_budget, self._of_engine(gpu_bytes))

    def _of_engine(self, gpu_bytes: float) -> int:
        """GPUs of each engine process of a pod."""
        if self.config.processes:
            return max(self.gpus // int(self.config.processes), 1)
        weights = (FULL if self.task.function == "logprobs" else HALF) * self.shape.parameters
        gpus = Gpus(names=tuple(map(str, range(self.gpus))), memory=int(gpu_bytes))
        return gpus.for_weights(int(weights))

    def _training(self, gpu_bytes: float) -> Memory:
        config, ppo = self.config, self.task.function == "train_ppo"
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
        return training_memory(self.shape, training, self._cache(gpu_bytes) if ppo else 0.0)

    def _cache(self, gpu_bytes: float) -> float:
        """Of PPO's sampler: the keys and values of a batch, or all that a vLLM engine of its own takes, which
        is its share of the GPU and at least its weights, not quantised, and one rollout."""
        config = self.config
        longest = config.max_prompt_tokens + config.max_new_tokens
        if config.engine != "vllm":
            return self.shape.cache_bytes(max(config.generation_tokens, longest))
        return sampling_memory(self.shape, gpu_bytes, config.memory_fraction, 1, longest).total


def _sample(config: SampleConfig, recipe: Recipe, a: Assumptions) -> Tokens:
    return {"sample": float(recipe.asked * a.rows * config.sampling.n * a.completion_tokens)}


def _rewards(config: RewardsConfig, recipe: Recipe, a: Assumptions) -> Tokens:  # noqa: ARG001
    return {
        "score": float(recipe.asked * a.rows * (a.prompt_tokens + recipe.completions * a.completion_tokens))
    }


def _logprobs(config: LogprobsConfig, recipe: Recipe, a: Assumptions) -> Tokens:
    rows = recipe.asked * a.rows * (config.drift_share if config.source == "sampler" else 1)
    return {"score": float(rows * (a.prompt_tokens + recipe.scored * a.completion_tokens))}


def _judge(config: JudgeConfig, recipe: Recipe, a: Assumptions) -> Tokens:  # noqa: ARG001
    asked = a.rows * questions_on_pair(config, a.questions)
    return {"score": float(asked * (a.prompt_tokens + 2 * a.completion_tokens))}


def _rank(config: RankConfig, recipe: Recipe, a: Assumptions) -> Tokens:
    n = recipe.completions
    pairs = min(n * (n - 1) / 2, config.comparisons * n)
    asked = a.rows * pairs * questions_on_pair(config.judge, a.questions)
    return {"score": float(asked * (a.prompt_tokens + 2 * a.completion_tokens))}


def _evaluate(config: EvaluateConfig, recipe: Recipe, a: Assumptions) -> Tokens:  # noqa: ARG001
    asked = min(a.rows, config.max_prompts) * config.sampling.n
    whole = a.prompt_tokens + a.completion_tokens
    return {"sample": float(asked * a.completion_tokens), "score": float(2 * asked * whole)}


def _benchmark(config: BenchmarkConfig, recipe: Recipe, a: Assumptions) -> Tokens:  # noqa: ARG001
    documents = min(config.limit or a.benchmark_documents, a.benchmark_documents) * len(config.tasks)
    examples = 1 + max(config.num_fewshot, 0)
    return {"score": float(2 * documents * _CHOICES * examples * a.prompt_tokens)}


def _train(config: TrainConfig, recipe: Recipe, a: Assumptions) -> Tokens:
    completions = 2 if recipe.pairs else 1
    examples = recipe.asked * a.rows * (recipe.pairs or recipe.selected) * config.epochs
    if config.max_steps:
        examples = config.max_steps * config.batch_size
    examples *= config.stop_after
    return {"train": float(examples * (a.prompt_tokens + completions * a.completion_tokens))}


def _train_reward_model(config: RewardModelConfig, recipe: Recipe, a: Assumptions) -> Tokens:  # noqa: ARG001
    examples = config.max_steps * config.batch_size or a.rows * config.epochs
    return {"train": 2.0 * examples * (a.prompt_tokens + a.completion_tokens)}


def _train_ppo(config: PpoConfig, recipe: Recipe, a: Assumptions) -> Tokens:  # noqa: ARG001
    rollouts = config.max_steps * config.rollout_batch or a.rows * config.epochs
    whole = a.prompt_tokens + a.completion_tokens
    # Policy, value, reference and reward read every rollout once; policy and value are trained on it.
    return {
        "sample": float(rollouts * a.completion_tokens),
        "score": 4.0 * rollouts * whole,
        "train": 2.0 * config.ppo_epochs * rollouts * whole,
    }


_TOKENS: Mapping[str, Callable[[Any, Recipe, Assumptions], Tokens]] = {
    "sample": _sample,
    "rewards": _rewards,
    "logprobs": _logprobs,
    "judge": _judge,
    "rank": _rank,
    "evaluate": _evaluate,
    "benchmark": _benchmark,
    "train": _train,
    "train_reward_model": _train_reward_model,
    "train_ppo": _train_ppo,
}
"""Tokens by kind of work, by stage."""
