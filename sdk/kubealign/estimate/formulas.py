"""What memory a rank needs and how many GPU-hours a stage takes: arithmetic, without torch or a GPU.

The formulas describe this program: trained weights and AdamW's two moments in float32, DeepSpeed's bfloat16
weights beside its float32 copy, whole decoder layers as FSDP units, logits in slices, one base with several
adapters in PPO. Bytes are bytes; ``GIB`` makes GiB of them. T stands for tokens, H for the hidden size.

Sources: ZeRO, arXiv 1910.02054 (sections 3.1 and 5); activation memory and recomputation, arXiv 2205.05198;
4-bit weights, arXiv 2305.14314 (section 3); operations of a token, arXiv 2001.08361 (section 2.1).

What is not counted: fragmentation of the allocator, and host memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kubealign_components.config import require, require_choice

GIB = 2**30
HALF, FULL = 2, 4
"""Bytes of a number in bfloat16 and in float32."""
FOUR_BITS = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes of a weight in nf4 with double quantisation: blocks of 64 with an 8-bit scale, 256 scales with a
32-bit one (arXiv 2305.14314)."""
LOGIT_BYTES = 2**30
"""What a head makes beside its weights at one time, ``CARD_HEAD_BYTES`` of ``engines/head.py``."""
ZERO3_LIVE = 1_000_000_000
"""Weights that DeepSpeed keeps gathered at most (``stage3_max_live_parameters``, its default)."""
ZERO_BUCKET = 200_000_000
"""Numbers in a reduce bucket, as ``training/configs/zero2.json`` and ``zero3.json`` set it."""
RUNTIME = 1.5 * GIB
"""CUDA context, cuBLAS workspaces and NCCL buffers of a process; measured values lie between 1 and 2 GiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """What of a decoder decides its memory: a Llama-like one, with gated feed-forward layers."""

    layers: int
    hidden: int
    intermediate: int
    """Width of the feed-forward layers."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False
    """Whether the head is the embedding."""
    counted: int = 0
    """All parameters as counted on the model itself; 0 to go by the formula."""

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocabulary"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the linear layers of one decoder layer: q, k, v, o, gate, up, down."""
        q, kv, h, f = (
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
            self.hidden,
            self.intermediate,
        )
        return ((h, q), (h, kv), (h, kv), (q, h), (h, f), (h, f), (f, h))

    @property
    def layer_linear(self) -> int:
        """Weights in the linear layers of one decoder layer."""
        return sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def outside(self) -> int:
        """Parameters outside of the layers' linear ones: embedding, head, norms, and what the shape does
        not know of a counted model."""
        return self.parameters - self.layers * self.layer_linear

    @property
    def vocabularies(self) -> int:
        """Parameters of embedding and head; tied ones count once."""
        return (1 if self.tied else 2) * self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.counted or self.layers * self.layer_linear + norms + self.vocabularies

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter of ``rank`` on all linear layers but the head: rank · (inputs +
        outputs) of each."""
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in self.linears)

    def cache_bytes(self, tokens: int, width: int = HALF) -> float:
        """Bytes of the keys and values of ``tokens``: 2 · layers · heads of keys · head size · width each."""
        return 2.0 * self.layers * self.kv_heads * self.head_dim * width * tokens


SHAPES: Mapping[str, ModelShape] = {
    name: ModelShape(
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        tied=tied,
    )
    for name, layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, tied in (
        ("smollm2-135m", 30, 576, 1536, 9, 3, 64, 49_152, True),
        ("qwen3-0.6b", 28, 1024, 3072, 16, 8, 128, 151_936, True),
        ("smollm2-1.7b", 24, 2048, 8192, 32, 32, 64, 49_152, True),
        ("qwen3-4b", 36, 2560, 9728, 32, 8, 128, 151_936, True),
        ("llama-8b", 32, 4096, 14_336, 32, 8, 128, 128_256, False),
        ("qwen3-14b", 40, 5120, 17_408, 40, 8, 128, 151_936, False),
        ("qwen3-32b", 64, 5120, 25_600, 64, 8, 128, 151_936, False),
        ("llama-70b", 80, 8192, 28_672, 64, 8, 128, 128_256, False),
    )
}
"""Presets by the names of ``--model-shape``: SmolLM2, Qwen3 and Llama 3.1, as their configs have it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What of a training run decides the memory of a rank."""

    strategy: str = "none"
    """none, fsdp2, zero1, zero2 or zero3."""
    adapter: str = "none"
    """none, lora or qlora."""
    lora_r: int = 16
    ranks: int = 1
    """Processes over all nodes."""
    micro_batch_tokens: int = 4096
    gradient_checkpointing: bool = False
    compute: int = HALF
    """Bytes of a number in forward and backward passes: 2 on CUDA, 4 for float32."""
    trained_adapters: int = 1
    """With adapters, how many are trained; PPO trains policy and value."""
    frozen_adapters: int = 0
    """PPO's reward, and the reference where training starts from an adapter."""

    def __post_init__(self) -> None:
        require_choice("strategy", self.strategy, ("none", "fsdp2", "zero1", "zero2", "zero3"))
        require_choice("adapter", self.adapter, ("none", "lora", "qlora"))
        for name in ("lora_r", "ranks", "micro_batch_tokens", "trained_adapters"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one rank by part."""

    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self.parts.values())

    def fits(self, gpu_bytes: float) -> bool:
        """Whether a GPU of that size holds it."""
        return self.total <= gpu_bytes


def model_state(shape: ModelShape, training: Training) -> dict[str, float]:
    """Bytes that stay from step to step on one rank: weights, adapters, gradients, optimiser state.

    With P parameters, Q of them trained, on N ranks, and c the compute width:

    - none: float32 weights and gradients, two float32 moments: 4P + 4Q + 8Q. A frozen base is in c.
    - fsdp2: the same over N (ZeRO's P_os+g+p).
    - zero1: weights in c, gradients in c, and over N the optimiser's float32 copy and moments (K = 12).
    - zero2: gradients over N, too; zero3: weights over N, too.

    DeepSpeed in float32 keeps its separate copy as well.
    """
    lora = training.adapter != "none"
    one = shape.adapter(training.lora_r) if lora else 0
    trained = training.trained_adapters * one if lora else shape.parameters
    frozen_adapters = training.frozen_adapters * one
    n, c, strategy = training.ranks, training.compute, training.strategy
    deepspeed = strategy.startswith("zero")
    width = c if deepspeed else FULL
    split_weights = n if strategy in ("fsdp2", "zero3") else 1
    split_gradients = n if strategy in ("fsdp2", "zero2", "zero3") else 1
    split_optimiser = n if strategy != "none" else 1
    if training.adapter == "qlora":
        # PEFT casts what is not quantised to float32 before training.
        base = FOUR_BITS * shape.layers * shape.layer_linear + FULL * shape.outside
    else:
        base_width = c if lora and strategy == "none" else width
        base = base_width * shape.parameters / split_weights
    return {
        "weights": base,
        "adapters": width * ((trained if lora else 0) + frozen_adapters) / split_weights,
        "gradients": width * trained / split_gradients,
        "optimiser state": (12 if deepspeed else 8) * trained / split_optimiser,
    }


def layer_activations(shape: ModelShape, tokens: int, compute: int = HALF) -> float:
    """Bytes that one decoder layer keeps of ``tokens`` for its backward pass.

    After arXiv 2205.05198 (section 4.1), for a layer as ours is: attention that keeps no scores, two RMS
    norms and a gated feed-forward, no dropout. Per token: a norm keeps its float32 input and normalised
    value and its output (4H + 4H + cH), attention q, k, v and its output, the feed-forward gate, up,
    activation and product. An upper bound: under DeepSpeed the residual stream is narrower.
    """
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 2 * (2 * FULL + compute) * shape.hidden
    return float(tokens * (norms + compute * (2 * q + 2 * kv) + 4 * compute * shape.intermediate))


def activations(shape: ModelShape, training: Training) -> float:
    """Bytes of activations of one micro-batch: of all layers, or with checkpointing the float32 input of
    each and all of one (arXiv 2205.05198, section 5)."""
    one = layer_activations(shape, training.micro_batch_tokens, training.compute)
    if not training.gradient_checkpointing:
        return shape.layers * one
    return one + float(FULL * shape.layers * shape.hidden * training.micro_batch_tokens)


def logits(shape: ModelShape, tokens: int) -> float:
    """Bytes of logits at their most, in the backward pass: the head's output and its gradient, in float32
    whatever else is computed in, block by block where they would be more than a block may take."""
    return float(min(2 * tokens * shape.vocabulary * FULL, LOGIT_BYTES))


def gathered(shape: ModelShape, training: Training) -> float:
    """Bytes of what is there for a moment only: gathered or cast weights.

    - none: autocast keeps a copy in c of every weight that is trained while a micro-batch runs; a frozen
      4-bit base has one linear layer in c at a time.
    - fsdp2: the layer that runs, the one fetched ahead, and embedding and head, which are no unit of
      their own, in c.
    - zero3: ``ZERO3_LIVE`` weights at most, or all that there are; embedding and head come whole.
    """
    c, strategy = training.compute, training.strategy
    largest = max(inputs * outputs for inputs, outputs in shape.linears)
    if strategy == "fsdp2":
        return float(c * (2 * shape.layer_linear + shape.vocabularies))
    if strategy == "zero3":
        whole = max(ZERO3_LIVE, shape.vocabulary * shape.hidden)
        return float(c * min(shape.parameters, whole))
    if strategy != "none":
        return 0.0
    if training.adapter == "qlora":
        return float(c * largest)
    cast = training.trained_adapters * shape.adapter(training.lora_r)
    copied = cast if training.adapter == "lora" else shape.parameters
    return float(c * copied) if c != FULL else 0.0


def exchange(shape: ModelShape, training: Training) -> float:
    """Bytes of buffers in which gradients are exchanged: DDP's buckets and PPO's sum hold all of them once
    more, DeepSpeed has two buckets for overlap, and at the step a float32 copy of its share."""
    n, strategy = training.ranks, training.strategy
    lora = training.adapter != "none"
    trained = training.trained_adapters * shape.adapter(training.lora_r) if lora else shape.parameters
    if strategy == "none":
        return float(FULL * trained) if n > 1 else 0.0
    if strategy == "fsdp2":
        return float(FULL * shape.layer_linear)
    buckets = 2 * min(trained, ZERO_BUCKET) if strategy in ("zero2", "zero3") else 0
    return training.compute * float(buckets) + FULL * trained / n


def training_memory(shape: ModelShape, training: Training, cache: float = 0.0) -> Memory:
    """Memory of one rank in training.

    Args:
        shape: of the policy.
        training: the run.
        cache: bytes of the sampler beside it, such as the keys and values of PPO's rollouts.
    """
    return Memory(
        parts={
            **model_state(shape, training),
            "activations": activations(shape, training),
            "logits slice": logits(shape, training.micro_batch_tokens),
            "gathered for a moment": gathered(shape, training),
            "gradient exchange": exchange(shape, training),
            "KV cache": cache,
            "runtime": RUNTIME,
        }
    )


def sampling_memory(
    shape: ModelShape, gpu_bytes: float, fraction: float, parallel: int, longest: int
) -> Memory:
    """Memory of one GPU of a vLLM engine, which takes ``fraction`` of it whatever the model: weights in
    bfloat16 over ``parallel`` GPUs, and the rest for keys and values, at least those of one sequence of
    ``longest`` tokens."""
    weights = HALF * shape.parameters / parallel
    rest = fraction * gpu_bytes - weights - RUNTIME
    cache = max(rest, shape.cache_bytes(longest) / parallel)
    return Memory(parts={"weights": weights, "KV cache": cache, "runtime": RUNTIME})


def scoring_memory(shape: ModelShape, tokens: int, parallel: int = 1) -> Memory:
    """Memory of one GPU of a scorer that shares a bfloat16 model with ``parallel`` GPUs: no gradients, so
    one layer's activations of a pack of ``tokens``, its residual stream, half of a slice of logits."""
    return Memory(
        parts={
            "weights": HALF * shape.parameters / parallel,
            "activations": layer_activations(shape, tokens) + FULL * shape.hidden * tokens,
            "logits slice": logits(shape, tokens) / 2,
            "runtime": RUNTIME,
        }
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """Assumptions on speed; tokens per second and GPU are derived from them or stated."""

    flops: float = 4e14
    """Useful operations per second and GPU: 40 % of an H100's 989e12 in bfloat16."""
    sample: float = 0.0
    """Sampled tokens per second and GPU; 0 for 10,000 at 8e9 parameters (published for 8B on GH200), less
    in proportion for larger models."""
    score: float = 0.0
    """Tokens of a forward pass per second and GPU; 0 for flops / 2P."""
    train: float = 0.0
    """Tokens of a training step per second and GPU; 0 for flops / 6P, with checkpointing 8P."""

    def __post_init__(self) -> None:
        require(self.flops > 0, "flops", self.flops, "a positive number")
        for name in ("sample", "score", "train"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more tokens per second")

    def rates(self, shape: ModelShape, *, checkpointing: bool = False) -> dict[str, float]:
        """Tokens per second and GPU of sampling, scoring and training. A token costs 2P operations
        forward and 4P backward (arXiv 2001.08361), recomputation 2P more (2205.05198)."""
        p = shape.parameters
        return {
            "sample": self.sample or 10_000 * 8e9 / p,
            "score": self.score or self.flops / (2 * p),
            "train": self.train or self.flops / ((8 if checkpointing else 6) * p),
        }


def gpu_hours(tokens: Mapping[str, float], rates: Mapping[str, float]) -> float:
    """GPU-hours of ``tokens`` at ``rates`` (tokens per second and GPU), both by kind of work."""
    return sum(count / rates[kind] for kind, count in tokens.items()) / 3600
