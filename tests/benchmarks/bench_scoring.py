"""Scoring against the recipe's way: one prompt's completions at a time, padded, full-vocabulary log-softmax.

    python tests/benchmarks/bench_scoring.py MODEL [--dtype bfloat16] [--prompts 2] [--rounds 5]

Both ways score the same random tokens, in turns, and the median of the rounds counts. Tokens per
second count prompt and completion of every completion, as if nothing were shared.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from kubealign_components.engines.packing import Group
from kubealign_components.engines.scoring import Scorer

COMPLETIONS = 10
LENGTHS = (40, 215)
PROMPT_LENGTHS = (512, 32)

Sums = list[list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--token-budget", type=int, default=4096)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    plain = plain.eval().to(device)
    scorer = Scorer(options.model, dtype=options.dtype, device=device, token_budget=options.token_budget)
    for length in PROMPT_LENGTHS:
        groups = random_groups(options.prompts, length, plain.config.vocab_size)
        tokens = sum(len(g.prompt) + len(c) for g in groups for c in g.completions)
        ways = {"recipe": lambda g=groups: recipe(plain, g), "packed": lambda g=groups: scorer.score(g)}
        seconds, sums = alternate(ways, options.rounds)
        apart = max(
            abs(a - b)
            for x, y in zip(sums["recipe"], sums["packed"], strict=True)
            for a, b in zip(x, y, strict=True)
        )
        speeds = ", ".join(f"{name} {tokens / s:.0f} tokens/s" for name, s in seconds.items())
        print(
            f"{options.dtype}, prompts of {length} tokens: {speeds}; sums differ by at most {apart:.4f} nats"
        )
        print(f"ratio scoring_{options.dtype}_{length} {seconds['recipe'] / seconds['packed']:.2f}")


def random_groups(prompts: int, length: int, vocabulary: int) -> list[Group]:
    """Prompts of ``length`` random tokens with completions of random lengths."""
    source = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [source.randrange(100, vocabulary) for _ in range(count)]

    return [
        Group(tokens(length), [tokens(source.randint(*LENGTHS)) for _ in range(COMPLETIONS)])
        for _ in range(prompts)
    ]


@torch.inference_mode()
def recipe(model: Any, groups: Sequence[Group]) -> Sums:
    """The published way: the completions of a row padded to the longest, log-softmax over all logits."""
    sums = []
    for group in groups:
        start = len(group.prompt)
        rows = [[*group.prompt, *completion] for completion in group.completions]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        logprobs = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
        chosen = logprobs[:, :-1].gather(2, ids[:, 1:, None])[..., 0].float()
        own = mask[:, 1:].clone()
        own[:, : start - 1] = 0
        sums.append((chosen * own).sum(1).tolist())
    return sums


def alternate(ways: dict[str, Callable[[], Sums]], rounds: int) -> tuple[dict[str, float], dict[str, Sums]]:
    """Median seconds and result of each way, run in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            results[name] = way()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}, results


if __name__ == "__main__":
    main()
