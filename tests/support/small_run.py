"""The smallest offline alignment that has something of everything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kubealign_pipelines
from kubealign.runfile import RunFile

TREES = Path(kubealign_pipelines.__file__).parent / "examples" / "trees.jsonl"


def small_run(
    policy: Path, source: Path, rows: Sequence[Mapping[str, str]], **changes: Any
) -> dict[str, Any]:
    """Parameters of a run on ``rows``, which are written to ``source``, in chunks of twelve.

    Each prompt gets three completions of at most ten tokens; short ones are better.

    Args:
        policy: a tiny model.
        changes: parameters that are added, or that take the place of these.
    """
    source.write_text("\n".join(map(json.dumps, rows)))
    return {
        "sources": [{"name": "questions", "uri": str(source)}],
        "policy": str(policy),
        "reward_functions": ["brevity"],
        "validation_fraction": 0.4,
        "work_rows_per_chunk": 12,
        "filter_max_seq_len": 256,
        "filter_max_prompt_len": 128,
        "sample_engine": "transformers",
        "sample_n": 3,
        "sample_max_new_tokens": 10,
        "train_learning_rate": 1e-3,
        "train_options": {"batch_size": 8, "max_steps": 2},
        "evaluate_max_prompts": 6,
        **changes,
    }


def small_salmon(tiny_model: Path, folder: Path, rl: str) -> RunFile:
    """The trees that come with KubeAlign, a dozen human preferences, a dozen sums."""
    preferences = [
        {"prompt": f"Say {word}.", "chosen": f"{word}, gladly.", "rejected": "No."}
        for word in ("ash", "birch", "cedar", "dogwood", "elm", "fir", "hazel", "larch", "maple", "oak")
    ]
    sums = [{"question": f"What is {n} and {n + 1}?", "answer": str(2 * n + 1)} for n in range(12)]
    for name, rows in (("preferences", preferences), ("sums", sums)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return RunFile(
        pipeline="salmon",
        parameters={
            "sources": [{"name": "trees", "uri": str(TREES)}],
            "pmp_sources": [{"name": "human", "uri": str(folder / "preferences.jsonl")}],
            "rl_sources": [
                {
                    "name": "sums",
                    "uri": str(folder / "sums.jsonl"),
                    "kind": "any",
                    "question_type": "reasoning",
                }
            ],
            "policy": str(tiny_model),
            "rl": rl,
            "validation_fraction": 0.3,
            "clean_prompts_languages": ["en"],
            "clean_prompts_max_rows": 16,
            "filter_max_seq_len": 512,
            "filter_max_prompt_len": 256,
            "work_rows_per_chunk": 8,
            "sample_engine": "transformers",
            "sample_max_new_tokens": 8,
            "judge_options": {"min_characters": 1},
            "aggregate_options": {"validation_fraction": 0.3},
            "pmp_max_steps": 1,
            "reward_model_max_steps": 2,
            "reward_model_batch_size": 4,
            "reward_model_options": {"lora_r": 4},
            "ppo_max_new_tokens": 8,
            "ppo_rollout_batch": 4,
            "ppo_step_batch": 2,
            "ppo_max_steps": 2,
            "ppo_options": {"lora_r": 4, "eval_prompts": 4},
            "sample_n": 3,
            "train_options": {"max_steps": 1, "batch_size": 4},
            "evaluate_max_prompts": 4,
        },
    )
