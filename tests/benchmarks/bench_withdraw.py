"""What is done again when one prompt in a hundred is taken back: rows and processor seconds, stage by stage.

    python tests/benchmarks/bench_withdraw.py MODEL [--rows 20000] [--words 100] [--chunks 4]

MODEL gives tokenizer and template. Pairs that people chose are imported, filtered, rewarded by a function
in a fan-out, selected and mixed; then one prompt in a hundred is withdrawn and all of it runs again over the
same work prefix. What the fan-out computes stands for every stage with an engine (sample, rewards, logprobs,
judge), which go by the same protocol. Seconds are those of all threads of this process.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kubealign_components.data.chunks import merge, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.withdrawals import Withdrawal, withdrawal_text
from kubealign_components.engines.rewards import RewardFunctionSpec, RewardSpec
from kubealign_components.filter.stage import FilterConfig
from kubealign_components.filter.stage import run as run_filter
from kubealign_components.import_prompts.stage import ImportConfig, SourceConfig
from kubealign_components.import_prompts.stage import run as run_import
from kubealign_components.mix.stage import MixConfig
from kubealign_components.mix.stage import run as run_mix
from kubealign_components.rewards.stage import RewardsConfig
from kubealign_components.rewards.stage import run as run_rewards
from kubealign_components.select.stage import SelectConfig
from kubealign_components.select.stage import run as run_select

SHARE = 100
"""One prompt in so many is taken back."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=100, help="of each answer, about")
    parser.add_argument("--chunks", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-withdraw-") as name:
        folder = Path(name)
        words = ["the", "number", "that", "was", "asked", "for", "counts", "as", "one", "more"]
        draw = random.Random(0)
        pairs = folder / "pairs.jsonl"
        with pairs.open("w") as file:
            for i in range(options.rows):
                row = {
                    "prompt": f"What is {i} plus {i}?",
                    "chosen": f"It is {2 * i}: " + " ".join(draw.choices(words, k=options.words)),
                    "rejected": "Who knows: " + " ".join(draw.choices(words, k=options.words)),
                }
                file.write(json.dumps(row) + "\n")
        chain = Chain(folder, options.model, pairs, options.chunks)
        first = chain.run("first", "")
        ids = [row["prompt_id"] for row in chain.prompts.iter_rows(["prompt_id"])][::SHARE]
        withdrawal = folder / "withdrawal.json"
        withdrawal.write_text(withdrawal_text(Withdrawal(prompt_ids=frozenset(ids))))
        again = chain.run("again", str(withdrawal))
    assert chain.prompts.rows == options.rows - len(ids)
    for stage, seconds in first.items():
        print(f"{stage}: {seconds:.2f} s first, {again[stage]:.2f} s after the withdrawal")
    print(f"ratio withdraw_engine_rows {chain.computed / options.rows:.4f}")
    print(f"ratio withdraw_processor {sum(again.values()) / sum(first.values()):.4f}")


class Chain:
    """The stages, one after the other, over a work prefix of their own."""

    def __init__(self, folder: Path, model: Path, pairs: Path, chunks: int) -> None:
        self._folder, self._model, self._pairs, self._chunks = folder, model, pairs, chunks
        self.computed = 0
        """Rows that the last run's fan-out did not find finished."""

    def run(self, name: str, withdrawn: str) -> dict[str, float]:
        """Processor seconds by stage; datasets go to the folder ``name``."""
        seconds: dict[str, float] = {}

        def made(stage: str, work: Callable[[str], object]) -> Dataset:
            output, began = str(self._folder / name / stage), time.process_time()
            work(output)
            seconds[stage] = time.process_time() - began
            return Dataset.open(output)

        source, work = SourceConfig(uri=str(self._pairs)), str(self._folder / "work")
        imported = ImportConfig(sources=(source,), withdrawn=withdrawn, work=work)
        self.prompts = made("import", lambda output: run_import(imported, output=output))
        limits = FilterConfig(policy=str(self._model), max_seq_len=2048, max_prompt_len=512, work=work)
        tokenized = made("filter", lambda output: run_filter(limits, prompts=self.prompts, output=output))
        rewarded = made("rewards", lambda output: self._reward(tokenized, output))
        labels = SelectConfig(strategy="labels", work=work)
        selected = made("select", lambda output: run_select(labels, rewarded=rewarded, output=output))
        mixed = MixConfig(require_logprobs=False, work=work)
        made("mix", lambda output: run_mix(mixed, selections=[selected], output=output))
        return seconds

    def _reward(self, tokenized: Dataset, output: str) -> None:
        reward = RewardSpec(functions=(RewardFunctionSpec(function="brevity"),))
        chunks = plan(tokenized, work=str(self._folder / "work"), chunks=self._chunks)
        parts = [run_rewards(RewardsConfig(reward=reward), chunk=chunk) for chunk in chunks]
        self.computed = tokenized.rows - sum(part.reused_rows for part in parts)
        merge(parts, chunks, output)


if __name__ == "__main__":
    main()
