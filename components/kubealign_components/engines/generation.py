"""Sampling completions: one protocol, three engines, one set of settings.

``sample`` and ``evaluate`` share :class:`SamplingSpec`, so that an aligned policy is compared with
its reference under exactly the settings that the training data was sampled with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from kubealign_components.config import execution, require, require_choice, semantic_params
from kubealign_components.data.chat import end_token_ids as end_token_ids
from kubealign_components.data.chat.ends import read_json
from kubealign_components.data.fingerprint import canonical_json
from kubealign_components.data.model_files import text_config
from kubealign_components.data.origins import version_of
from kubealign_components.engines.dtypes import DTYPES, resolved_dtype
from kubealign_components.errors import ConfigError, DataError, EngineError

ENGINES = ("fake", "transformers", "vllm")
TEMPERATURES = (0.01, 2.0)
"""What vLLM samples at; it raises in silence what lies below, and refuses what lies above."""
SAMPLING = ("engine", "n", "temperature", "top_p", "max_new_tokens", "stop", "seed")
"""Settings that components take as arguments of these names."""
RESERVED_ARGS = frozenset(
    {"model", "tokenizer", "dtype", "torch_dtype", "max_model_len", "tensor_parallel_size", "seed"}
    | {"gpu_memory_utilization", "logprobs_mode", "generation_config"}
)
"""Engine arguments that the settings decide."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt."""

    prompt_id: str
    """Seeds its completions, together with the run's seed."""
    token_ids: Sequence[int]
    """Generation prompt included. Engines add nothing, so a BOS that is in it is the only one."""
    numbers: Sequence[int] = ()
    """Which of its completions are wanted, rising; the first ``n`` when empty. Each has a seed of its own, so
    that it is the same whichever others are sampled with it."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One sampled completion."""

    token_ids: list[int]
    """What the policy sampled, never empty. The end-of-turn token is its last when the policy ended
    the turn; a stop string is kept whole, up to the end of the token that completed it."""
    finish_reason: str
    """``stop`` (end of turn or a stop string) or ``length`` (cut at ``max_new_tokens``)."""
    logprob: float
    """Nats, sum over ``token_ids`` of fp32 raw log-probabilities (before temperature and top-p)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingSpec:
    """How completions are sampled, and by which engine."""

    engine: str = "vllm"
    """vllm, transformers (no server, one prompt at a time, the same samples however the work is cut)
    or fake (random tokens without a model, to try a pipeline out)."""
    n: int = 10
    """Completions of each prompt."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token (then n must be 1)."""
    top_p: float = 1.0
    """Samples from the smallest set of tokens with at least this probability."""
    max_new_tokens: int = 1024
    """Most tokens of a completion; longer ones are cut and finish with ``length``."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion. They stay in it, so that text, tokens and log-probability
    describe the same thing."""
    seed: int = 0
    """Seed of the run; every prompt gets one of its own from it."""
    dtype: str = "auto"
    """Of weights and activations: float32, bfloat16, float16, or auto (bfloat16 on CUDA, else float32). A CPU
    that multiplies bfloat16 (AMX) is faster with it."""
    max_model_len: int = 0
    """Most tokens of prompt and completion together; 0 for what the model was made for. A smaller
    value starts faster and leaves more room for parallel requests. Some rotary embeddings (LongRoPE)
    depend on it, so it is part of the recipe."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments by name: of ``vllm.LLM``, or of ``from_pretrained`` for transformers. They may
    change the samples (quantisation, attention kernels), so they are part of the recipe."""
    tensor_parallel_size: int = execution(1)
    """GPUs that vLLM spreads the model over."""
    memory_fraction: float = execution(0.9)
    """Share of each GPU's memory that vLLM may take; on a CPU VLLM_CPU_KVCACHE_SPACE bounds it."""

    def __post_init__(self) -> None:
        require_choice("engine", self.engine, ENGINES)
        require_choice("dtype", self.dtype, DTYPES)
        require(self.n > 0, "n", self.n, "a positive number of completions")
        require(self.max_new_tokens > 0, "max_new_tokens", self.max_new_tokens, "a positive number of tokens")
        require(self.max_model_len >= 0, "max_model_len", self.max_model_len, "0 or a number of tokens")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "a number in (0, 1]")
        _check_temperature(self)
        _check_stop(self)
        _check_engine(self)

    @property
    def gpus(self) -> int:
        """GPUs of an engine; 0 where it needs none, or spreads over all there are."""
        if self.engine == "fake" or "device_map" in self.engine_args:
            return 0
        stages = self.engine_args.get("pipeline_parallel_size", 1)
        return self.tensor_parallel_size * (stages if isinstance(stages, int) else 1)

    @property
    def slug(self) -> list[str]:
        """The settings that tell datasets apart, as words of a slug."""
        return [
            f"n{self.n}",
            *([f"temp{self.temperature:g}"] if self.temperature != 1 else []),
            *([f"topp{self.top_p:g}"] if self.top_p != 1 else []),
            *([f"seed{self.seed}"] if self.seed else []),
        ]


class GenerationEngine(Protocol):
    """A loaded model that samples; a context that closes itself."""

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[tuple[str, list[Sampled]]]:
        """The id of each prompt and the completions that it wants, as prompts are finished, in any order.

        Takes more prompts while it works on others, as many as keep it busy. Ids are unique.

        Raises:
            DataError: a prompt that leaves no room for ``max_new_tokens``; it is not sampled.
            EngineError: the engine failed, or gave a log-probability that is positive or not finite.
        """
        ...

    def close(self) -> None:
        """Free the model's memory and end its processes; the engine cannot be used afterwards."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def numbers_of(prompt: Prompt, spec: SamplingSpec) -> Sequence[int]:
    """Numbers of the completions of ``prompt`` that are wanted."""
    return prompt.numbers or range(spec.n)


def open_engine(spec: SamplingSpec, model: Path, ends: Sequence[int] | None = None) -> GenerationEngine:
    """Load the model directory ``model`` into the engine that ``spec`` names.

    Args:
        spec: the settings.
        model: a Hugging Face model directory.
        ends: the tokens that end a turn; None for those of the model's own template.

    Raises:
        EngineError: the engine is not installed or cannot load the model; gives its reason.
    """
    if spec.engine == "fake":
        from kubealign_components.engines.fake import FakeEngine

        return FakeEngine(spec, model, ends)
    if spec.engine == "transformers":
        from kubealign_components.engines.transformers_engine import TransformersEngine

        return TransformersEngine(spec, model, ends)
    from kubealign_components.engines.vllm_engine import VllmEngine

    return VllmEngine(spec, model, ends)


def context_limit(spec: SamplingSpec, model: Path) -> int | None:
    """Most tokens of prompt and completion together, or None where the model does not say."""
    limit = text_config(read_json(model / "config.json")).get("max_position_embeddings")
    return spec.max_model_len or (int(limit) if limit else None)


def recorded(spec: SamplingSpec) -> dict[str, Any]:
    """The settings of ``spec`` that determine completions, with the dtype that ``auto`` means here."""
    dtype = spec.dtype if spec.engine == "fake" else resolved_dtype(spec.dtype)  # it computes nothing
    return semantic_params(spec) | {"dtype": dtype}


def versions_of(engine: str) -> dict[str, str]:
    """Versions of the libraries that completions of ``engine`` depend on, by name, without build tags."""
    libraries = {"vllm": ("vllm", "torch"), "transformers": ("transformers", "torch")}.get(engine, ())
    return {name: (version_of(name) or "none").partition("+")[0] for name in libraries}


def check_room(prompt_id: str, prompt_tokens: int, max_new_tokens: int, limit: int | None) -> None:
    """Raise :class:`DataError` unless a prompt leaves room for ``max_new_tokens``."""
    if limit is not None and prompt_tokens + max_new_tokens > limit:
        raise DataError(
            f"prompt {prompt_id} has {prompt_tokens} tokens; with max_new_tokens={max_new_tokens} that is "
            f"over max_model_len={limit}. Raise max_model_len, or lower max_new_tokens or filter's "
            "max_prompt_len"
        )


def check_sampled(prompt: Prompt, sampled: Sampled) -> Sampled:
    """``sampled`` itself; :class:`EngineError` when it is empty or its log-probability impossible."""
    if not sampled.token_ids or not -float("inf") < sampled.logprob <= 0:
        raise EngineError(
            f"prompt {prompt.prompt_id}: sampled {len(sampled.token_ids)} tokens with log-probability "
            f"{sampled.logprob}, expected at least one token and a finite value of 0 or less; "
            "try dtype=float32, or another engine"
        )
    return sampled


def _check_temperature(spec: SamplingSpec) -> None:
    low, high = TEMPERATURES
    require(
        spec.temperature == 0 or low <= spec.temperature <= high,
        "temperature",
        spec.temperature,
        f"0 (greedy) or a number from {low} to {high}",
    )
    require(spec.temperature > 0 or spec.n == 1, "n", spec.n, "1 at temperature 0: all would be the same")


def _check_stop(spec: SamplingSpec) -> None:
    require(all(spec.stop), "stop", list(spec.stop), "strings that are not empty")
    require(not spec.stop or spec.engine != "fake", "stop", list(spec.stop), "none with the fake engine")


def _check_engine(spec: SamplingSpec) -> None:
    size = spec.tensor_parallel_size
    require(size > 0, "tensor_parallel_size", size, "a positive number of GPUs")
    require(size == 1 or spec.engine == "vllm", "tensor_parallel_size", size, f"1 with engine={spec.engine}")
    require(0 < spec.memory_fraction <= 1, "memory_fraction", spec.memory_fraction, "a number in (0, 1]")
    args = spec.engine_args
    require(not args or spec.engine != "fake", "engine_args", args, "none with the fake engine")
    for name in sorted(RESERVED_ARGS & args.keys()):
        require(False, f"engine_args.{name}", args[name], "nothing: the settings of sampling decide it")
    try:
        canonical_json(args)
    except (TypeError, ValueError) as error:
        raise ConfigError("engine_args", args, "values that JSON can hold") from error
