"""The smallest offline alignment that has something of everything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


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
