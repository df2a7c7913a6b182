"""DPO training against TRL's DPOTrainer with precomputed reference log-probabilities.

    python tests/benchmarks/bench_train.py MODEL [--dtype bfloat16] [--steps 3] [--rounds 3]

Same model, pairs of random tokens, order, batch, AdamW, schedule and precision: float32 weights, and
float32 or bfloat16 autocast for the passes. TRL 1.16 runs with its defaults but for
``precompute_ref_log_probs``, no cut of long sequences, and no gradient checkpointing (ours is off as
well); its batch is one padded forward pass, ours one pack. Every run is a process of its own, in turns.

The first step warms up and counts for the loss only; tokens per second count prompt and completion of
both completions of every pair. Memory is the most held above what was held before training, so with
gradients and optimiser state. In float32 the losses must agree step by step. In bfloat16 TRL's do not
start at log 2: its reference log-probabilities come from batches of another shape than its steps.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import torch
from machine import in_own_process, peak_of, require_same
from transformers import AutoConfig, Trainer, TrainerCallback, set_seed

from kubealign_components.engines.packing import Group, LogprobModel, pack
from kubealign_components.train.config import TrainConfig
from kubealign_components.train.data import Examples
from kubealign_components.train.trainer import AlignmentTrainer
from kubealign_components.training.arguments import training_arguments
from kubealign_components.training.models import load_policy
from kubealign_components.training.rows import Rows

WAYS = ("trl", "ours")
PROMPTS = (16, 160)
COMPLETIONS = (16, 128)
LEARNING_RATE = 1e-5
PARTS = ("data", "forward", "backward", "optimiser", "other")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--micro-batch-tokens", type=int, default=TrainConfig(policy="").micro_batch_tokens)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options)))
        return
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            runs[way].append(in_own_process(*sys.argv, "--way", way))
    for way, results in runs.items():
        parts = {part: median(r["parts"][part] for r in results) for part in PARTS}
        shares = ", ".join(f"{part} {seconds / sum(parts.values()):.1%}" for part, seconds in parts.items())
        print(f"{way}: {speed(results):.0f} tokens/s, {memory(results) / 2**20:.0f} MiB; {shares}")
        print(f"  losses {', '.join(f'{loss:.6f}' for loss in results[0]['losses'])}")
    pairs = zip(*(runs[way][0]["losses"] for way in WAYS), strict=True)
    apart = max(abs(one - other) for one, other in pairs)
    print(f"losses differ by at most {apart:.1e}")
    require_same("losses", apart, 1e-3, options.dtype)
    print(f"ratio train_{options.dtype} {speed(runs['ours']) / speed(runs['trl']):.2f}")
    print(f"ratio train_memory_{options.dtype} {memory(runs['ours']) / memory(runs['trl']):.2f}")


def speed(results: list[dict[str, Any]]) -> float:
    return median(r["tokens"] / sum(r["parts"].values()) for r in results)


def memory(results: list[dict[str, Any]]) -> float:
    return median(r["bytes"] for r in results)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train once; tokens after the first step, seconds by part, bytes, and the loss of every step."""
    pairs = random_pairs(options.batch_size * options.steps, AutoConfig.from_pretrained(options.model))
    with tempfile.TemporaryDirectory() as folder:
        trainer = (trl if options.way == "trl" else ours)(options, pairs, Path(folder))
        clock = Clock(trainer)
        peak = peak_of(trainer.train)
    log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    tokens = sum(
        2 * len(pairs[i]["prompt_ids"]) + len(pairs[i]["chosen_ids"]) + len(pairs[i]["rejected_ids"])
        for i in order[options.batch_size :]
    )
    return {
        "tokens": tokens,
        "parts": clock.parts,
        "bytes": peak,
        "losses": [entry["loss"] for entry in log],
    }


def ours(options: argparse.Namespace, pairs: list[dict[str, Any]], folder: Path) -> Trainer:
    config = TrainConfig(
        policy=str(options.model),
        batch_size=options.batch_size,
        micro_batch_tokens=options.micro_batch_tokens,
        learning_rate=LEARNING_RATE,
        dtype=options.dtype,
        warmup_ratio=0.0,
        max_grad_norm=1.0,
    )
    arguments = training_arguments(config, folder)
    set_seed(config.seed)
    model = LogprobModel(load_policy(config, options.model)).to(arguments.device)
    train = examples(pairs, references(model, pairs, arguments))
    return AlignmentTrainer(config, model, arguments, train, Examples(Rows(pa.table({}))))


@torch.no_grad()
def references(model: LogprobModel, pairs: list[dict[str, Any]], arguments: Any) -> list[list[float]]:
    """Reference log-probabilities in the precision of training, as TRL computes its own."""
    device = arguments.device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=arguments.bf16):
        groups = (Group(p["prompt_ids"], [p["chosen_ids"], p["rejected_ids"]]) for p in pairs)
        return [model(pack([group]).to(device)).tolist() for group in groups]


def examples(pairs: list[dict[str, Any]], logprobs: list[list[float]]) -> Examples:
    rows = [
        {
            "prompt_id": str(number),
            "prompt_token_ids": pair["prompt_ids"],
            "num_references": None,
            "completions": [
                {
                    "completion_id": name,
                    "reference": False,
                    "label": None,
                    "token_ids": pair[name],
                    "logprob": logprob,
                    "reward": None,
                    "quantile_reward": None,
                }
                for name, logprob in zip(("chosen_ids", "rejected_ids"), own, strict=True)
            ],
        }
        for number, (pair, own) in enumerate(zip(pairs, logprobs, strict=True))
    ]
    return Examples(Rows(pa.Table.from_pylist(rows)))


def trl(options: argparse.Namespace, pairs: list[dict[str, Any]], folder: Path) -> Trainer:
    from trl_peer import trl_trainer

    return trl_trainer(
        options.model,
        "float32",
        pairs,
        folder,
        bf16=options.dtype == "bfloat16",
        per_device_train_batch_size=options.batch_size,
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        weight_decay=0.0,
        beta=0.1,
        seed=0,
        logging_steps=1,
        save_strategy="no",
    )


class Clock(TrainerCallback):
    """Where the seconds of a ``Trainer`` go after its first step, by :data:`PARTS`."""

    def __init__(self, trainer: Trainer) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._total = 0.0
        self._started: float | None = None
        trainer.compute_loss = self._timed("forward", trainer.compute_loss)
        trainer.accelerator.backward = self._timed("backward", trainer.accelerator.backward)
        trainer.get_batch_samples = self._timed("data", trainer.get_batch_samples)
        trainer.add_callback(self)

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by part."""
        known = {part: self._seconds[part] for part in PARTS if part != "other"}
        return known | {"other": self._total - sum(known.values())}

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The first step is over, or another one."""
        if self._started is None:
            self._started = now()
            self._seconds.clear()
        self._total = now() - self._started

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Gradients are there and clipped."""
        self._before = now()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """The weights are new."""
        self._seconds["optimiser"] += now() - self._before

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            start = now()
            result = call(*arguments, **named)
            self._seconds[part] += now() - start
            return result

        return timed


def now() -> float:
    """Seconds, with the device's work done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def random_pairs(count: int, config: Any) -> list[dict[str, Any]]:
    """Pairs of random tokens."""
    source = random.Random(0)

    def tokens(lengths: tuple[int, int]) -> list[int]:
        return [source.randrange(100, config.vocab_size) for _ in range(source.randint(*lengths))]

    return [
        {
            "prompt_ids": tokens(PROMPTS),
            "chosen_ids": tokens(COMPLETIONS),
            "rejected_ids": tokens(COMPLETIONS),
        }
        for _ in range(count)
    ]


if __name__ == "__main__":
    main()
