"""Scoring against the recipe's way, and against TRL's precomputed reference log-probabilities.

    python tests/benchmarks/bench_scoring.py MODEL [--dtype bfloat16] [--prompts 2] [--rounds 5]

All score the same random tokens, ten completions of 40 to 215 tokens a prompt, in turns, and the median
of the rounds counts. Tokens per second count prompt and completion of every completion, as if nothing
were shared.

* recipe: the completions of one prompt padded to the longest, one forward pass, log-softmax over the
  whole vocabulary.
* trl: ``DPOTrainer.compute_ref_log_probs`` of TRL 1.16, the function behind
  ``precompute_ref_log_probs``, on batches of its own collator: five pairs, so ten rows, at a time.
  Its head runs in chunks; off CUDA it also runs on prompt and padding, and that is TRL's own choice.

The physical limit is the rate of square matrix products, measured in the same turns. The fraction of
it that a way reaches counts the operations of the tokens as counted, and for the packed way also of
the tokens that it really computes: linear layers, causal attention, head.

Memory: each way in a process of its own, most bytes held above what was held after a first pass.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu import flops
from machine import device, in_own_process, matmul_flops, peak_of, require_same
from timing import alternate
from transformers import AutoModelForCausalLM
from trl_peer import trl_trainer

from kubealign_components.engines.packing import Group
from kubealign_components.engines.scoring import Scorer

COMPLETIONS = 10
LENGTHS = (40, 215)
PROMPT_LENGTHS = (512, 32)
WAYS = ("recipe", "trl", "packed")

Sums = list[list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="float32,bfloat16", help="one or more, with commas")
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--token-budget", type=int, default=4096)
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(measure_memory(options)))
        return
    for dtype in options.dtype.split(","):
        compare_speed(options, dtype)
        compare_memory(options, dtype)


def compare_speed(options: argparse.Namespace, dtype: str) -> None:
    """Print the rates of all ways, and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        scoring = {name: loaded(name, options, dtype, Path(folder)) for name in WAYS}
        model = AutoModelForCausalLM.from_pretrained(options.model, device_map="meta")
        multiply = matmul_flops(getattr(torch, dtype))
        for length in PROMPT_LENGTHS:
            groups = random_groups(options.prompts, length, model.config.vocab_size)
            ways = {name: partial(way, groups) for name, way in scoring.items()}
            seconds, results = alternate(ways | {"matmul": multiply}, options.rounds)
            report(f"{dtype}_{length}", model, groups, seconds, results)


def report(
    name: str, model: Any, groups: Sequence[Group], seconds: dict[str, float], results: dict[str, Any]
) -> None:
    tokens = sum(len(g.prompt) + len(c) for g in groups for c in g.completions)
    limit = results["matmul"] / seconds["matmul"]
    counted, computed = (flops(model, groups, shared=shared) for shared in (False, True))
    print(f"{name}: {tokens} tokens, {sum(g.tokens for g in groups)} with prompts once")
    print(f"  matrix products {limit / 1e9:.0f} GFLOP/s")
    for way in WAYS:
        apart = max(abs(a - b) for x, y in zip(results["recipe"], results[way]) for a, b in zip(x, y))
        print(
            f"  {way}: {tokens / seconds[way]:.0f} tokens/s, {counted / seconds[way] / limit:.2f} of the "
            f"limit as counted, sums within {apart:.4f} nats of the recipe's"
        )
        require_same("sums", apart, 1e-3, name.split("_")[0])
    print(f"  packed: {computed / seconds['packed'] / limit:.2f} of the limit for what it computes")
    print(f"ratio scoring_{name} {seconds['recipe'] / seconds['packed']:.2f}")
    print(f"ratio scoring_{name}_trl {seconds['trl'] / seconds['packed']:.2f}")


def compare_memory(options: argparse.Namespace, dtype: str) -> None:
    """Print the memory of all ways, and how much of the recipe's the packed way needs."""
    arguments = [str(options.model), "--dtype", dtype, "--prompts", str(options.prompts)]
    arguments += ["--token-budget", str(options.token_budget)]
    peaks = {way: in_own_process(sys.argv[0], *arguments, "--memory-of", way)["bytes"] for way in WAYS}
    listed = ", ".join(f"{way} {peak / 2**20:.0f} MiB" for way, peak in peaks.items())
    print(f"{dtype}, prompts of {PROMPT_LENGTHS[0]} tokens, above the weights: {listed}")
    print(f"ratio scoring_memory_{dtype} {peaks['packed'] / peaks['recipe']:.3f}")
    print(f"ratio scoring_memory_{dtype}_trl {peaks['packed'] / peaks['trl']:.3f}")


def measure_memory(options: argparse.Namespace) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        way = loaded(options.memory_of, options, options.dtype, Path(folder))
        vocabulary = AutoModelForCausalLM.from_pretrained(options.model, device_map="meta").config.vocab_size
        way(random_groups(1, 8, vocabulary, completions=2))
        groups = random_groups(options.prompts, PROMPT_LENGTHS[0], vocabulary)
        return {"bytes": peak_of(lambda: way(groups))}


def loaded(
    name: str, options: argparse.Namespace, dtype: str, folder: Path
) -> Callable[[Sequence[Group]], Sums]:
    """The way ``name`` with its model in memory."""
    if name == "packed":
        return Scorer(options.model, dtype=dtype, device=device(), token_budget=options.token_budget).score
    if name == "recipe":
        plain = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, dtype))
        plain = plain.eval().to(device())
        return lambda groups: recipe(plain, groups)
    pair = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}
    trainer = trl_trainer(options.model, dtype, [pair], folder)
    trainer.model.eval()
    return lambda groups: trl(trainer, groups)


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


def trl(trainer: Any, groups: Sequence[Group]) -> Sums:
    """A prompt's completions as pairs, in one batch of TRL's own making."""
    sums = []
    for group in groups:
        half = len(group.completions) // 2
        pairs = [
            {"prompt_ids": list(group.prompt), "chosen_ids": list(one), "rejected_ids": list(other)}
            for one, other in zip(group.completions[:half], group.completions[half:], strict=True)
        ]
        batch = {name: value.to(device()) for name, value in trainer.data_collator(pairs).items()}
        chosen, rejected = trainer.compute_ref_log_probs(trainer.model, batch)
        sums.append([*chosen.tolist(), *rejected.tolist()])
    return sums


def random_groups(prompts: int, length: int, vocabulary: int, completions: int = COMPLETIONS) -> list[Group]:
    """Prompts of ``length`` random tokens with completions of random lengths."""
    source = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [source.randrange(100, vocabulary) for _ in range(count)]

    return [
        Group(tokens(length), [tokens(source.randint(*LENGTHS)) for _ in range(completions)])
        for _ in range(prompts)
    ]


if __name__ == "__main__":
    main()
