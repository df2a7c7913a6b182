"""The stages by name, and the config of each, without importing what a stage works with."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

CONFIGS: Mapping[str, str] = {
    "aggregate": "aggregate.stage:AggregateConfig",
    "benchmark": "benchmark.config:BenchmarkConfig",
    "choose": "choose.config:ChooseConfig",
    "clean_pmp": "clean_pmp.stage:CleanPmpConfig",
    "clean_prompts": "clean_prompts.stage:CleanPromptsConfig",
    "draw_more": "draw_more.stage:DrawMoreConfig",
    "evaluate": "evaluate.stage:EvaluateConfig",
    "filter": "filter.stage:FilterConfig",
    "import_prompts": "import_prompts.stage:ImportConfig",
    "join_draws": "join_draws.stage:JoinDrawsConfig",
    "join_rounds": "join_rounds.stage:JoinRoundsConfig",
    "judge": "judge.stage:JudgeConfig",
    "logprobs": "logprobs.stage:LogprobsConfig",
    "mix": "mix.stage:MixConfig",
    "rank": "rank.stage:RankConfig",
    "next_round": "next_round.stage:NextRoundConfig",
    "rewards": "rewards.stage:RewardsConfig",
    "rl_prompts": "rl_prompts.stage:RlPromptsConfig",
    "sample": "sample.stage:SampleConfig",
    "select": "select.stage:SelectConfig",
    "split": "split.stage:SplitConfig",
    "train": "train.config:TrainConfig",
    "train_ppo": "train_ppo.config:PpoConfig",
    "train_reward_model": "train_reward_model.config:RewardModelConfig",
}
"""Stages that have settings, and the module and name of their config."""


_OWN: dict[str, type] = {}
"""Configs of stages of users' own, as far as these are loaded."""


def register(stage: str, config: type) -> None:
    """Make the settings of a user's own stage known, which are checked like those of the others."""
    _OWN[stage] = config


def own_stages() -> tuple[str, ...]:
    """Names of the users' own stages that are loaded."""
    return tuple(_OWN)


def config_class(stage: str) -> type | None:
    """The config that the component of ``stage`` builds, or None when it has no settings."""
    if stage not in CONFIGS:
        return _OWN.get(stage)
    module, _, name = CONFIGS[stage].partition(":")
    config: type = getattr(importlib.import_module(f"kubealign_components.{module}"), name)
    return config
