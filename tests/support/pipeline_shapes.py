"""Every shape that a run file can give the pipelines, and the stages that each must show."""

from __future__ import annotations

from typing import Any

REWARD = {"reward_functions": ["kubealign_components.rewards.functions:brevity"]}
OFFLINE = {"import_prompts", "filter", "select", "logprobs", "mix", "train", "evaluate"}
SALMON = {
    "clean_prompts",
    "filter",
    "sample",
    "judge",
    "aggregate",
    "clean_pmp",
    "train_reward_model",
    "rl_prompts",
    "evaluate",
}
FURTHER = {"next_round", "join_rounds"}
"""Stages of rounds after the first one."""
DRAWS = {"draw_more", "join_draws"}
"""Stages between the draws of a range."""
SHAPES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "scored after": ("offline_alignment", {}, OFFLINE | {"sample", "rewards"}),
    "scored before": ("offline_alignment", {"logprobs_order": "before"}, OFFLINE | {"sample", "rewards"}),
    "ranked by a judge": ("offline_alignment", {"rank_judge": "some/judge"}, OFFLINE | {"sample", "rank"}),
    "labels alone": ("offline_alignment", {"sample_n": 0}, OFFLINE),
    "samples to compare with": ("offline_alignment", {"select_strategy": "labels"}, OFFLINE | {"sample"}),
    "labels and a reward": ("offline_alignment", {"sample_n": 0, **REWARD}, OFFLINE | {"rewards"}),
    "a sweep of training": (
        "offline_alignment",
        {"variants": [{"train": {"beta": 0.05}}, {"train": {"beta": 0.2}}], **REWARD},
        OFFLINE | {"sample", "rewards", "choose"},
    ),
    "a sweep of selection": (
        "offline_alignment",
        {"variants": [{"select": {"strategy": "best_random"}}, {"train": {"beta": 0.2}}], **REWARD},
        OFFLINE | {"sample", "rewards", "choose"},
    ),
    "a range of draws": (
        "offline_alignment",
        {"sample_n": {"from": 4, "to": 16}},
        OFFLINE | {"sample", "rewards"} | DRAWS,
    ),
    "measured on benchmarks": (
        "offline_alignment",
        {"benchmark_tasks": ["arc_easy"]},
        OFFLINE | {"sample", "rewards", "benchmark"},
    ),
    "two rounds": ("offline_alignment", {"rounds": 2}, OFFLINE | {"sample", "rewards"} | FURTHER),
    "three rounds, near the last": (
        "offline_alignment",
        {"rounds": 3, "rounds_reference": "last", "logprobs_order": "before"},
        OFFLINE | {"sample", "rewards"} | FURTHER,
    ),
    "ppo": ("salmon", {}, SALMON | {"train_ppo"}),
    "salmon offline": ("salmon", {"rl": "offline"}, SALMON | OFFLINE - {"import_prompts"} | {"rewards"}),
}
