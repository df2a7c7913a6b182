"""A variant's options count before what a component has of the same settings, and nothing else changes."""

from __future__ import annotations

from typing import Any

from kubealign_components.config import from_parameters
from kubealign_components.evaluate.stage import EvaluateConfig
from kubealign_components.mix.stage import MixConfig
from kubealign_components.train.config import TrainConfig
from kubealign_components.variant import from_variant

TRAIN: dict[str, Any] = {"policy": "p", "beta": 0.1, "options": {"batch_size": 8, "warmup_ratio": 0.2}}


def test_a_variant_counts_before_arguments_and_options() -> None:
    variant = {"train": {"beta": 0.3, "batch_size": 4}, "select": {"strategy": "all"}}
    config = from_variant(TrainConfig, TRAIN | {"variant": variant}, "train")
    assert (config.beta, config.batch_size, config.warmup_ratio) == (0.3, 4, 0.2)


def test_without_a_variant_nothing_changes() -> None:
    plain = from_parameters(TrainConfig, TRAIN, "train")
    for variant in ({}, {"train": {}}, {"select": {"strategy": "all"}}):
        assert from_variant(TrainConfig, TRAIN | {"variant": variant}, "train") == plain
    assert from_variant(TrainConfig, TRAIN, "train") == plain


def test_settings_of_a_group_are_joined_and_other_mappings_are_replaced() -> None:
    sampling = {"temperature": 0.5, "max_new_tokens": 7}
    given = {"policy": "p", "n": 2, "options": {"sampling": sampling}}
    variant = {"evaluate": {"sampling": {"max_new_tokens": 9}}}
    config = from_variant(EvaluateConfig, given | {"variant": variant}, "evaluate")
    assert (config.sampling.temperature, config.sampling.max_new_tokens) == (0.5, 9)
    mixed = {"weights": {"a": 1.0}, "options": {}, "variant": {"mix": {"weights": {"b": 2.0}}}}
    assert from_variant(MixConfig, mixed, "mix").weights == {"b": 2.0}
