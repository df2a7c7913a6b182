"""``mix`` the slow and obvious way: lists of dicts in memory, plain Python."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from kubealign_components.data.seeds import is_held_out
from kubealign_components.mix.stage import MixConfig
from support.select_oracle import key_of

Row = dict[str, Any]


def examples_of(row: Row) -> list[Row]:
    """The training examples of a selection row, without their split."""
    chosen = [[pair["chosen"], pair["rejected"]] for pair in row["pairs"]]
    made = []
    for places in chosen or [[i] for i in range(len(row["completions"]))]:
        completions = [row["completions"][i] for i in places]
        text = row["prompt_id"] + "".join(c["completion_id"] for c in completions)
        made.append(
            {
                "example_id": hashlib.sha256(text.encode()).hexdigest()[:32],
                **{
                    name: row[name]
                    for name in ("prompt_id", "source", "messages", "tools", "prompt_token_ids")
                },
                "completions": completions,
                "num_references": len(row["reference_rewards"]),
            }
        )
    return made


def mixed(inputs: Sequence[Sequence[Row]], config: MixConfig, kept: dict[str, int]) -> list[Row]:
    """What the mix holds when it keeps ``kept`` examples of each source."""
    unique: dict[str, Row] = {}
    for rows in inputs:
        for example in rows:
            unique.setdefault(example["example_id"], example)
    out: list[Row] = []
    for source, count in kept.items():
        ours = [e for e in unique.values() if e["source"] == source]
        out += sorted(ours, key=lambda e: key_of(e["example_id"], config.seed, "sample"))[:count]
    for example in out:
        held_out = is_held_out(example["prompt_id"], config.validation_fraction, config.seed)
        example["split"] = "validation" if held_out else "train"
    return sorted(out, key=lambda e: key_of(e["example_id"], config.seed, "order"))
