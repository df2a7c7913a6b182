"""A sequence-classification reward model against a padded transformers loop.

    python tests/benchmarks/bench_rewards.py MODEL [--prompts 16] [--completions 4] [--rounds 5]

The model is MODEL's body under a random head with one label. Both ways score the same conversations of
random tokens, of mixed lengths, in turns, and the median of the rounds counts; tokens per second count
every conversation whole.

* loop: batches of 16 as the conversations come, padded to the longest on the right, with an attention
  mask, ``AutoModelForSequenceClassification`` in eager inference mode.
* packed: :class:`RewardModel`.

Once with several completions a prompt, as in this pipeline, and once with one, where no prompt is shared
and only the padding is saved.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import device, require_same
from timing import alternate
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kubealign_components.data.models import find_model
from kubealign_components.engines.reward_model import RewardModel

BATCH = 16
PROMPTS = (20, 500)
COMPLETIONS = (20, 300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--completions", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_reward_model(options.model, Path(folder))
        plain = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=getattr(torch, options.dtype)
        )
        plain = plain.eval().to(device())
        packed = RewardModel(find_model(folder), dtype=options.dtype)
        for completions in (options.completions, 1):
            prompts = options.prompts * options.completions // completions
            sequences = conversations(prompts, completions, plain.config)
            tokens = sum(map(len, sequences))
            ways = {"loop": lambda s=sequences: loop(plain, s), "packed": lambda s=sequences: packed.score(s)}
            seconds, scores = alternate(ways, options.rounds)
            apart = max(abs(a - b) for a, b in zip(scores["loop"], scores["packed"], strict=True))
            speeds = ", ".join(f"{name} {tokens / s:.0f} tokens/s" for name, s in seconds.items())
            print(
                f"{options.dtype}, {prompts} prompts with {completions} completion(s) each: {speeds}; scores "
                f"of {min(scores['loop']):.3f} to {max(scores['loop']):.3f} differ by at most {apart:.1e}"
            )
            require_same("scores", apart, 1e-4, options.dtype)
            print(f"ratio rewards_{options.dtype}_{completions} {seconds['loop'] / seconds['packed']:.2f}")


def save_reward_model(model: Path, folder: Path) -> None:
    """A reward model of MODEL's body and a random head, in ``folder``."""
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(model, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def conversations(prompts: int, completions: int, config: Any) -> list[list[int]]:
    """Conversations of random tokens, a prompt's completions one after another."""
    source = random.Random(0)

    def tokens(shortest: int, longest: int) -> list[int]:
        # As in chats, most are short and few are long.
        length = shortest + int((longest - shortest) * source.random() ** 2)
        return [source.randrange(100, config.vocab_size) for _ in range(length)]

    made = []
    for _ in range(prompts):
        prompt = tokens(*PROMPTS)
        made += [[*prompt, *tokens(*COMPLETIONS)] for _ in range(completions)]
    return made


@torch.inference_mode()
def loop(model: Any, sequences: list[list[int]]) -> list[float]:
    """Padded batches, in order."""
    pad = model.config.pad_token_id
    scores: list[float] = []
    for start in range(0, len(sequences), BATCH):
        batch = sequences[start : start + BATCH]
        ids = torch.full((len(batch), max(map(len, batch))), pad)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(batch):
            ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
        scores += logits[:, 0].float().tolist()
    return scores


if __name__ == "__main__":
    main()
