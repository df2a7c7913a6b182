"""What one NVIDIA card does with scoring and training, in minutes; needs no network and no model.

    PYTHONPATH=components python tests/benchmarks/gpu.py [--rehearse] [--parts matmul,scoring]

Models have random weights and are made on the device: Llama 3's sizes of 8B and 1B. Each part has its own
time box, and says in a line of its own when it fails or is cut off, so that one does not cost the others.
``--rehearse`` runs every part with tiny models on whatever this machine has: nobody should find a mistake of
this program on a card. It needs torch, transformers, peft, accelerate and pyarrow, and QLoRA bitsandbytes.

Fractions are of the rate of square matrix products, for the operations that a way really computes.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import random
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import pyarrow as pa
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback
from transformers.utils import is_liger_kernel_available

from kubealign_components.engines import packed_attention
from kubealign_components.engines.loading import free_memory
from kubealign_components.engines.packing import (
    Group,
    LogprobModel,
    computing_in,
    lay_out,
    pack,
    packs,
    prepare,
    summed_logprobs,
)
from kubealign_components.engines.row_tiles import whole_tiles
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.data import Examples
from kubealign_components.train.trainer import AlignmentTrainer
from kubealign_components.training.arguments import training_arguments
from kubealign_components.training.models import attach_adapter, load_policy, ready_to_train
from kubealign_components.training.pausing import Pauses, PauseTrainer
from kubealign_components.training.processes import Processes
from kubealign_components.training.rows import Rows

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
LAYERS = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 2},
}
"""Of Llama 3.1 8B and Llama 3.2 1B: 32 heads, 8 of keys and values."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured."""

    large: str = "8B"
    small: str = "1B"
    vocabulary: int = 128_256
    matrix: int = 8192
    prompt: int = 200
    response: int = 400
    completions: int = 30
    prompts: int = 2
    pairs: int = 72
    """For three steps of two packs each on the large model, of one on the small one."""
    recipe_rows: int = 10
    """Completions of one padded forward pass of the recipe's way."""
    budget: int = 12_288
    """Tokens of a pack that is scored."""
    micro: int = 12_288
    """Tokens of a forward pass that is trained on, of the large model; twice as many of the small one."""


REHEARSAL = Sizes(
    large="tiny", small="tiny", vocabulary=300, matrix=128, prompt=12, response=20, completions=4, prompts=2,
    pairs=9, recipe_rows=2, budget=100, micro=160,
)  # fmt: skip


class Late(BaseException):
    """A part's time is over. No Exception: nothing that mends errors may swallow it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--parts", default=",".join(PARTS))
    options = parser.parse_args()
    if not (CUDA or options.rehearse):
        parser.error("there is no NVIDIA GPU here; --rehearse runs every part with tiny models")
    if unknown := {*options.parts.split(",")} - {*PARTS}:
        parser.error(f"--parts={options.parts}: no {', '.join(sorted(unknown))}; there is {', '.join(PARTS)}")
    sizes = REHEARSAL if options.rehearse else Sizes()
    print(f"{torch.cuda.get_device_name() if CUDA else 'CPU'}, torch {torch.__version__}", flush=True)
    failed = [name for name in options.parts.split(",") if not done(name, sizes)]
    print(f"failed: {', '.join(failed)}" if failed else "all parts ran")
    raise SystemExit(1 if failed else 0)


def done(name: str, sizes: Sizes) -> bool:
    """Run the part ``name``; whether it came to its end."""
    part, seconds = PARTS[name]
    start = now()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    try:
        with time_box(seconds):
            part(sizes)
    except Late:
        print(f"{name}: NOT FINISHED in {seconds} s", flush=True)
        return False
    except (Exception, SystemExit) as error:  # the other parts still count
        traceback.print_exc()
        print(f"{name}: FAILED, {type(error).__name__}: {error}", flush=True)
        return False
    finally:
        free_memory()
    peak = f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if CUDA else ""
    print(f"{name}: done in {now() - start:.0f} s{peak}", flush=True)
    return True


@contextmanager
def time_box(seconds: int) -> Iterator[None]:
    """Raise :class:`Late` in the main thread after ``seconds``."""

    def late(*_: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def matmul(sizes: Sizes) -> None:
    """The rate that fractions are of."""
    print(f"  matrix products {matmul_rate(sizes) / 1e12:.3f} TFLOP/s in bfloat16")


def matmul_rate(sizes: Sizes) -> float:
    """Floating-point operations a second, median of five."""
    one, other = (torch.randn(sizes.matrix, sizes.matrix, device=DEVICE).bfloat16() for _ in "ab")
    return 2.0 * sizes.matrix**3 / median(seconds_of(lambda: one @ other) for _ in range(7))


def scoring(sizes: Sizes) -> None:
    """The recipe's way and packs on the large model, and whether they agree."""
    model = made(sizes.large, sizes, torch.bfloat16).eval()
    groups = random_groups(sizes)
    count = sum(len(g.completions) for g in groups)
    counted = count * (sizes.prompt + sizes.response)
    limit = matmul_rate(sizes)
    plain = partial(recipe, model, groups, sizes)
    expected = report("recipe", plain, count, counted, flops(model, groups, shared=False) / limit)
    prepare(model)
    way = partial(packed, model, groups, sizes.budget)
    least = flops(model, groups, shared=True) / limit
    with a_call_for_each_segment():
        segments = report("packs, a call a segment", way, count, counted, least)
    print(f"  attention in one call: {'yes' if one_call(model) else 'no, as above'}")
    print(f"  fused layers: {'yes' if is_liger_kernel_available() else 'no, liger-kernel is not installed'}")
    sums = report("packs", way, count, counted, least)
    for name, other in (("the recipe", expected), ("a call a segment", segments)):
        apart = max(abs(a - b) for a, b in zip(sums, other, strict=True)) / sizes.response
        print(f"  {name} and packs are within {apart:.2g} nats per token")
    alone = packed(model, groups[:1], sizes.prompt + sizes.response)
    drift = max(abs(a - b) for a, b in zip(sums, alone, strict=False)) / sizes.response
    print(f"  packs and completions one by one differ by {drift:.2g} nats per token")
    waste(groups, sizes.budget)


@contextmanager
def a_call_for_each_segment() -> Iterator[None]:
    """Attention without the kernel of variable length, which cards have otherwise."""
    with mock.patch.object(packed_attention, "kernel_for", lambda *_: None):
        yield


def one_call(model: Any) -> bool:
    """Whether attention runs in one call here."""
    config = model.config
    heads = (config.num_attention_heads, config.num_key_value_heads)
    query, key = (torch.zeros(1, n, 1, config.head_dim, device=DEVICE, dtype=model.dtype) for n in heads)
    return packed_attention.kernel_for(query, key, packed_attention._probed) is not None


def report(name: str, way: Callable[[], list[float]], count: int, tokens: int, least: float) -> list[float]:
    """Print the rates of ``way``, for which the matrix rate alone would take ``least`` seconds."""
    sums = way()  # warms up
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if CUDA else 0
    seconds = median(seconds_of(way) for _ in range(3))
    above = (
        f", {(torch.cuda.max_memory_allocated() - before) / 2**30:.1f} GiB above the weights" if CUDA else ""
    )
    print(
        f"  {name}: {tokens / seconds:.0f} tokens/s, {3600 * count / seconds:.0f} completions/h, "
        f"{least / seconds:.3f} of the matrix rate{above}",
        flush=True,
    )
    return sums


@torch.inference_mode()
def recipe(model: Any, groups: Sequence[Group], sizes: Sizes) -> list[float]:
    """Every completion with a prompt of its own, padded, log-softmax over all logits."""
    sums: list[float] = []
    for group in groups:
        for first in range(0, len(group.completions), sizes.recipe_rows):
            rows = [[*group.prompt, *c] for c in group.completions[first : first + sizes.recipe_rows]]
            ids = torch.tensor(rows, device=DEVICE)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
            chosen = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
            sums += chosen[:, len(group.prompt) - 1 :].double().sum(1).tolist()
    return sums


@torch.inference_mode()
def packed(model: Any, groups: Sequence[Group], budget: int) -> list[float]:
    """The sums of all completions, in order, in packs of ``budget`` tokens as the scorer makes them."""
    found: dict[tuple[int, int], float] = {}
    for members in packs(groups, budget):
        batch = pack([Group(groups[n].prompt, [groups[n].completions[c] for c in own]) for n, own in members])
        with computing_in(torch.bfloat16, DEVICE):
            sums = summed_logprobs(model, batch.to(DEVICE)).tolist()
        found |= dict(zip([(n, c) for n, own in members for c in own], sums, strict=True))
    return [value for _, value in sorted(found.items())]


def waste(groups: Sequence[Group], budget: int) -> None:
    """Print what fills packs up to whole tiles."""
    used = filled = 0
    for members in packs(groups, budget):
        own = [Group(groups[n].prompt, [groups[n].completions[c] for c in chosen]) for n, chosen in members]
        tokens = len(lay_out(own)[0])
        used, filled = used + tokens, filled + whole_tiles(tokens, DEVICE)
    print(f"  packs of {budget} tokens: {1 - used / filled:.1%} of what is computed fills tiles up")


def full(sizes: Sizes) -> None:
    """DPO on all weights of the small model."""
    train(sizes, sizes.small, TrainConfig(policy="", **common(sizes, 2 * sizes.micro)))


def lora(sizes: Sizes) -> None:
    """DPO on adapters of the large model."""
    train(sizes, sizes.large, TrainConfig(policy="", adapter="lora", **common(sizes, sizes.micro)))


def qlora(sizes: Sizes) -> None:
    """DPO on adapters of the small model in 4 bits, where bitsandbytes is there."""
    if not CUDA or importlib.util.find_spec("bitsandbytes") is None:
        print("  left out: needs CUDA and bitsandbytes")
        return
    config = TrainConfig(policy="", adapter="qlora", **common(sizes, 2 * sizes.micro))
    with tempfile.TemporaryDirectory() as folder:
        made(sizes.small, sizes, torch.bfloat16).save_pretrained(folder)
        train(sizes, sizes.small, config, load_policy(config, Path(folder)))


def common(sizes: Sizes, tokens: int) -> dict[str, Any]:
    """Settings of every training: three steps, by packs of so many tokens."""
    return {
        "batch_size": sizes.pairs // 3, "micro_batch_tokens": tokens, "dtype": "bfloat16",
        "learning_rate": 1e-6, "warmup_ratio": 0.0,
    }  # fmt: skip


def train(sizes: Sizes, name: str, config: TrainConfig, model: Any = None) -> None:
    """Score pairs, train on them, stop by SIGTERM in the last step: exactness, rates, seconds to the end."""
    if model is None:
        base = made(name, sizes, torch.float32 if config.adapter == "none" else torch.bfloat16)
        model = ready_to_train(config, base if config.adapter == "none" else attach_adapter(config, base))
    wrapped = LogprobModel(model).to(DEVICE)
    groups = random_groups(sizes, prompts=sizes.pairs, completions=2)
    references = packed(wrapped.model, groups, sizes.budget)
    with tempfile.TemporaryDirectory() as folder:
        stop = Stopped()
        processes = Processes(rank=0, count=1, node=0, on_node=0, ranks_on_node=(0,), folder=Path(folder))
        pauses = Pauses(processes, stop, every=0, minutes=0)
        clock = Clock(stop)
        trainer = AlignmentTrainer(
            config, wrapped, training_arguments(config, Path(folder)), examples(groups, references),
            Examples(Rows(pa.table({}))), [clock, PauseTrainer(pauses)], max_drift=math.inf,
        )  # fmt: skip
        with stop:
            trainer.train()
        ended = now()
        saved = sum(path.stat().st_size for path in Path(folder).rglob("checkpoint-*/*"))
    first = trainer.training_log()[0][1]
    tokens = len(groups) / 3 * (sizes.prompt + 2 * sizes.response)
    each = 3 if config.adapter == "none" else 2  # of a frozen weight there is no gradient
    bare = model if config.adapter == "none" else model.get_base_model()
    work = each * flops(bare, groups, shared=True) / 3 / clock.step_seconds
    print(
        f"  step 0: |log-ratio| {first['abs_log_ratio_per_token']:.3g} nats per token, "
        f"loss {first['loss']:.7f} (ln 2 is {math.log(2):.7f})\n"
        f"  {tokens / clock.step_seconds:.0f} tokens/s computed by packs of {config.micro_batch_tokens}, "
        f"{work / 1e12:.3f} TFLOP/s, "
        f"{work / matmul_rate(sizes):.3f} of the matrix rate\n"
        f"  SIGTERM in the last step: ended after {ended - clock.signalled:.1f} s with "
        f"{saved / 2**20:.1f} MiB of checkpoint",
        flush=True,
    )


class Stopped:
    """A stop as the stages have one: set by SIGTERM while this context lasts."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether SIGTERM came."""
        return self._event.is_set()

    def __call__(self) -> None:
        """Nothing waits here."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGTERM, lambda *_: self._event.set())

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)


class Clock(TrainerCallback):
    """Seconds of the second step; SIGTERM when the third one begins."""

    def __init__(self, stop: Stopped) -> None:
        self._stop, self._started = stop, 0.0
        self.step_seconds = self.signalled = math.nan

    def on_step_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        self._started = now()
        if state.global_step == 2:
            self.signalled = self._started
            os.kill(os.getpid(), signal.SIGTERM)

    def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
        if state.global_step == 2:
            self.step_seconds = now() - self._started


def examples(groups: Sequence[Group], references: Sequence[float]) -> Examples:
    """Pairs as the train stage reads them."""
    rows = []
    values = iter(references)
    for number, group in enumerate(groups):
        completions = [
            {"completion_id": f"{number}-{place}", "reference": False, "label": None,
             "token_ids": list(tokens), "logprob": next(values), "reward": None, "quantile_reward": None}
            for place, tokens in enumerate(group.completions)
        ]  # fmt: skip
        rows.append(
            {"prompt_id": str(number), "prompt_token_ids": list(group.prompt), "num_references": None,
             "completions": completions}
        )  # fmt: skip
    return Examples(Rows(pa.Table.from_pylist(rows)))


def made(name: str, sizes: Sizes, dtype: torch.dtype) -> Any:
    """A Llama of random weights, on the device."""
    config = LlamaConfig(
        vocab_size=sizes.vocabulary, num_attention_heads=32, num_key_value_heads=8, rope_theta=500_000.0,
        max_position_embeddings=8192, tie_word_embeddings=name == "1B", **LAYERS[name],
    )  # fmt: skip
    torch.manual_seed(0)
    with DEVICE:
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def random_groups(sizes: Sizes, *, prompts: int = 0, completions: int = 0) -> list[Group]:
    """Prompts and completions of random tokens, all of one length each."""
    source = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [source.randrange(5, sizes.vocabulary) for _ in range(count)]

    return [
        Group(tokens(sizes.prompt), [tokens(sizes.response) for _ in range(completions or sizes.completions)])
        for _ in range(prompts or sizes.prompts)
    ]


def flops(model: Any, groups: Sequence[Group], *, shared: bool) -> float:
    """Operations with a prompt for each completion and all logits; or shared prompts without logits."""
    config = model.config
    body, head = layer_weights(config), config.vocab_size * config.hidden_size
    pair = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    total = 0.0
    for group in groups:
        prompt = len(group.prompt)
        total += shared * (2 * body * prompt + pair * prompt**2 / 2)
        for length in map(len, group.completions):
            if shared:
                total += 2 * (body + head) * length + pair * length * (prompt + length / 2)
            else:
                total += 2 * (body + head) * (prompt + length) + pair * (prompt + length) ** 2 / 2
    return total


def layer_weights(config: Any) -> int:
    """Weights that a token is multiplied with in all layers."""
    heads = config.num_attention_heads + config.num_key_value_heads
    attention = 2 * heads * config.head_dim * config.hidden_size
    return config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def seconds_of(run: Callable[[], Any]) -> float:
    start = now()
    run()
    return now() - start


def now() -> float:
    """Seconds, with the device's work done."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


PARTS: dict[str, tuple[Callable[[Sizes], None], int]] = {
    "matmul": (matmul, 20),
    "scoring": (scoring, 150),
    "full": (full, 90),
    "lora": (lora, 150),
    "qlora": (qlora, 60),
}
"""What runs, in this order, and the seconds that each may take: under 8 minutes in all."""

if __name__ == "__main__":
    main()
