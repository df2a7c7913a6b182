"""The judge against one forward pass for every prompt, padded.

    python tests/benchmarks/bench_judge.py MODEL [--pairs 2] [--rounds 2] [--dtype float32]

Real pairs of completions are judged under every principle of the shipped set, in both orders, which makes
22 prompts of a pair. Both ways get the same token ids, in turns, and the median of the rounds counts. A
judgement is a pair under a principle, that is two prompts.

* loop: batches of 16 prompts in the order in which they come, padded to the longest on the left, with an
  attention mask; logits of the last position alone, of which those of the two letters are taken.
* judge: :class:`Judge`, which packs, and computes once what prompts begin with.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import device, require_same
from prepared import tokenized
from timing import alternate
from transformers import AutoModelForCausalLM, AutoTokenizer

from kubealign_components.data.models import find_model
from kubealign_components.data.principles import JUDGE, PrincipleSet, load_principles
from kubealign_components.data.templates import load_judge_template
from kubealign_components.engines.comparison import Comparison
from kubealign_components.engines.judge_model import Judge

BATCH = 16
Tokens = tuple[int, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    template = load_judge_template("judge")
    principles = load_principles("judging").of_stage(JUDGE)
    with Judge(find_model(str(options.model)), template, dtype=options.dtype) as judge:
        prompts = questions(judge, principles, options.model, options.pairs)
        plain = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
        plain = plain.eval().to(device())
        letters = letter_ids(options.model, template.answer)
        ways = {"loop": lambda: loop(plain, prompts, letters), "judge": lambda: judge.preferences(prompts)}
        seconds, scores = alternate(ways, options.rounds)
    judgements = len(prompts) // 2
    apart = max(abs(a - b) for a, b in zip(scores["loop"], scores["judge"], strict=True))
    speeds = ", ".join(
        f"{name} {judgements / s:.2f} pairs × principles a second" for name, s in seconds.items()
    )
    print(
        f"{options.dtype}, {options.pairs} pairs under {len(principles)} principles, {len(prompts)} prompts "
        f"of {sum(map(len, prompts)) / len(prompts):.0f} tokens: {speeds}; scores of "
        f"{min(scores['loop']):.3f} to {max(scores['loop']):.3f} differ by at most {apart:.1e}"
    )
    require_same("scores", apart, 1e-3, options.dtype)
    print(f"ratio judge {seconds['loop'] / seconds['judge']:.2f}")


def questions(judge: Judge, principles: PrincipleSet, model: Path, pairs: int) -> list[Tokens]:
    """Token ids of every question: by pair, by principle, in both orders."""
    with tempfile.TemporaryDirectory() as folder:
        rows = list(tokenized(model, Path(folder), rows=4 * pairs).iter_rows())
    asked: list[Tokens] = []
    for row in [row for row in rows if len(row["completions"]) == 2][:pairs]:
        one, two = (json.loads(c["messages"])[0]["content"] for c in row["completions"])
        for principle in principles:
            shown = {"principle": principle.name, "statement": principle.statement()}
            for first, second in ((one, two), (two, one)):
                messages = json.loads(row["messages"])
                comparison = Comparison(messages=messages, first=first, second=second, **shown)
                asked.append(judge.tokenise(comparison))
    return asked


def letter_ids(model: Path, answer: str) -> list[int]:
    """The tokens of a and b where they follow ``answer``."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [tokenizer.encode(f"{answer}{letter}", add_special_tokens=False)[-1] for letter in "ab"]


@torch.inference_mode()
def loop(model: Any, prompts: list[Tokens], letters: list[int]) -> list[float]:
    """Padded batches, in order."""
    preferences: list[float] = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, -len(prompt) :], mask[row, -len(prompt) :] = torch.tensor(prompt), 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        logits = model(**{name: value.to(model.device) for name, value in inputs.items()}, logits_to_keep=1)
        a, b = logits.logits[:, -1, letters].float().unbind(1)
        preferences += (a - b).tolist()
    return preferences


if __name__ == "__main__":
    main()
