"""The sample stage against bare ``vllm.LLM.generate``.

    python tests/benchmarks/bench_sampling.py MODEL [--prompts 24] [--n 4] [--max-new-tokens 32] [--rounds 5]

The peer is ``LLM.generate`` on the same prompts with the same seeds and lengths, no log-probabilities
and no texts: the least that sampling can do. The project's side is the whole work of a chunk: keys,
sampling with raw log-probabilities, texts, several slices committed, part written. Each has an engine of its
own with the same settings, started before the first round, so that engine starts do not count. Same seeds
give the same tokens, which is checked.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from prepared import tokenized
from timing import alternate

from kubealign_components.data.chunks import Part, plan
from kubealign_components.data.dataset import Dataset
from kubealign_components.data.fingerprint import derive
from kubealign_components.data.models import find_model
from kubealign_components.data.schemas import COMPLETIONS
from kubealign_components.data.seeds import seed_for
from kubealign_components.data.worker import Missing, run_chunk
from kubealign_components.engines.generation import SamplingSpec, end_token_ids
from kubealign_components.sample.stage import SampleConfig, SampleStage

Tokens = list[list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--slice-rows", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    spec = SamplingSpec(
        n=options.n, max_new_tokens=options.max_new_tokens, max_model_len=512, dtype="float32"
    )
    config = SampleConfig(policy=str(options.model), sampling=spec, slice_rows=options.slice_rows)
    stage = SampleStage(config, find_model(str(options.model)))
    with tempfile.TemporaryDirectory(prefix="bench-sampling-") as folder, closing(stage):
        dataset = tokenized(options.model, Path(folder), rows=options.prompts, file="alpaca_en_demo.json")
        rows = list(dataset.iter_rows())
        first = Missing(rows[0], ("0",), (0,))
        list(stage.compute(iter([[first]])))  # starts the engine
        peer = bare_engine(options.model)
        ways = {
            "bare": lambda: bare(peer, config, rows),
            "stage": lambda: chunk(stage, config, dataset, Path(folder)),
        }
        seconds, tokens = alternate(ways, options.rounds)
    assert tokens["bare"] == tokens["stage"], "the two ways sampled other tokens"
    count = sum(len(ids) for row in tokens["stage"] for ids in row)
    for name, taken in seconds.items():
        print(f"{name:6s} {count} tokens in {taken:.2f} s, {count / taken:.0f} tokens/s")
    print(f"ratio sampling {seconds['bare'] / seconds['stage']:.3f}")


def bare_engine(model: Path) -> Any:
    """vLLM as the project starts it on this kind of device."""
    import torch
    from vllm import LLM

    here: dict[str, Any] = {}
    if not torch.cuda.is_available():
        here = {"enforce_eager": True, "kv_cache_memory_bytes": 2 * 2**30, "enable_chunked_prefill": False}
    return LLM(model=str(model), dtype="float32", max_model_len=512, generation_config="vllm", **here)


def bare(peer: Any, config: SampleConfig, rows: list[dict[str, Any]]) -> Tokens:
    """vLLM alone."""
    from vllm import SamplingParams

    ends = list(end_token_ids(Path(config.policy)))
    params = [
        SamplingParams(
            n=config.sampling.n,
            max_tokens=config.sampling.max_new_tokens,
            seed=seed_for(config.sampling.seed, row["prompt_id"]),
            stop_token_ids=ends,
            detokenize=False,
        )
        for row in rows
    ]
    inputs = [{"prompt_token_ids": row["prompt_token_ids"]} for row in rows]
    outputs = peer.generate(inputs, params, use_tqdm=False)
    return [[list(o.token_ids) for o in sorted(row.outputs, key=lambda o: o.index)] for row in outputs]


def chunk(stage: SampleStage, config: SampleConfig, dataset: Dataset, folder: Path) -> Tokens:
    """One whole chunk under the chunk protocol, in a work prefix where nothing is finished."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        [whole] = plan(dataset, work=work, chunks=1)
        part: Part = run_chunk(
            whole,
            dataset,
            stage,
            schema=COMPLETIONS,
            provenance=derive("sample", 1, {}, inputs={"prompts": dataset}),
            slice_rows=config.slice_rows,
        )
        rows = Dataset.open(part.uri).iter_rows()
        return [[c["token_ids"] for c in row["completions"] if c["reference"]] for row in rows]


if __name__ == "__main__":
    main()
