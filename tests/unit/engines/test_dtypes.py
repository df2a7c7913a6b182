"""``auto`` is one precision wherever a model is run; what is kept as it was is called ``saved``."""

from __future__ import annotations

import pytest
import torch

from kubealign_components.engines.dtypes import resolved_dtype
from kubealign_components.engines.generation import SamplingSpec, recorded
from kubealign_components.engines.rewards import RewardSpec, reward_params
from kubealign_components.errors import ConfigError
from kubealign_components.train.config import TrainConfig
from kubealign_components.training.models import compute_dtype


def test_auto_goes_by_where_the_model_runs() -> None:
    assert resolved_dtype("auto", "cuda:1") == "bfloat16"
    assert resolved_dtype("auto", "cpu") == "float32"
    assert resolved_dtype("float16", "cpu") == "float16"


def test_sampling_and_training_mean_the_same_by_it() -> None:
    here = resolved_dtype("auto")
    assert recorded(SamplingSpec(engine="transformers"))["dtype"] == here
    assert compute_dtype("auto") == getattr(torch, here)


def test_what_stays_as_it_was_is_not_called_auto() -> None:
    with pytest.raises(ConfigError, match=r"dtype='auto'.*saved"):
        RewardSpec(functions=(), model="m", dtype="auto")
    with pytest.raises(ConfigError, match=r"save_dtype='auto'.*saved"):
        TrainConfig(policy="p", save_dtype="auto")


def test_a_recipe_names_a_reward_models_precision_only_where_it_is_not_its_own() -> None:
    assert "dtype" not in reward_params(RewardSpec(model="m"))
    assert reward_params(RewardSpec(model="m", dtype="float32"))["dtype"] == "float32"
