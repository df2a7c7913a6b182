"""Arguments of a component and fields of its config are one set of settings with one set of defaults."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

import kubealign_components
from kubealign_components.config import OPTIONS, assemble, from_parameters
from kubealign_components.engines.rewards import RewardFunctionSpec
from kubealign_components.evaluate.stage import EvaluateConfig
from kubealign_components.rewards.stage import RewardsConfig
from kubealign_components.sample.stage import SampleConfig
from kubealign_components.stages import CONFIGS, config_class

ON_PURPOSE = {("evaluate", "judge"): "an empty text, as KFP has no null; the config has none then"}
BREVITY = "kubealign_components.rewards.functions:brevity"


def component(stage: str) -> Any:
    module = importlib.import_module(f"kubealign_components.{stage}.component")
    return getattr(module, stage).python_func


def field_at(config: type, path: tuple[str | int, ...]) -> Any:
    """The default of the field that ``path`` leads to."""
    *outer, name = path
    for part in outer:
        hint = inspect.get_annotations(config, eval_str=True)[str(part)]
        config = next(t for t in getattr(hint, "__args__", (hint,)) if dataclasses.is_dataclass(t))
    entry = {f.name: f for f in dataclasses.fields(config)}[str(name)]
    if entry.default_factory is not dataclasses.MISSING:
        return entry.default_factory()
    return entry.default


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_every_stage_with_a_component_is_known() -> None:
    folder = Path(kubealign_components.__file__).parent
    stages = {path.parent.name for path in folder.glob("*/component.py")}
    assert set(CONFIGS) | {"merge"} == stages
    assert config_class("merge") is None


@pytest.mark.parametrize("stage", CONFIGS)
def test_defaults_of_arguments_and_of_settings_agree(stage: str) -> None:
    config = config_class(stage)
    assert config is not None
    signature = inspect.signature(component(stage)).parameters.values()
    defaults = {p.name: p.default for p in signature if p.default is not inspect.Parameter.empty}
    called = {name: {} if name.endswith(OPTIONS) else default for name, default in defaults.items()}
    compared = 0
    for path, [(argument, *_)] in assemble(config, called).origins.items():
        if (stage, argument) not in ON_PURPOSE:
            assert plain(field_at(config, path)) == plain(defaults[str(argument)]), argument
            compared += 1
    assert compared > 0 or stage == "split"


def test_a_group_takes_arguments_then_borrowed_options_then_its_own() -> None:
    called = {
        "policy": "p",
        "n": 3,
        "temperature": 0.5,
        "sample_options": {"sampling": {"temperature": 0.6, "top_p": 0.9}, "slice_rows": 7},
        "reward_functions": [BREVITY],
        "rewards_options": {"reward": {"over_length": "fail"}},
        "judge": "",
        "judge_options": {"max_length": 9},
        "options": {"sampling": {"top_p": 0.8}, "max_prompts": 5},
    }
    config = from_parameters(EvaluateConfig, called, "evaluate")
    assert (config.sampling.n, config.sampling.temperature, config.sampling.top_p) == (3, 0.6, 0.8)
    assert config.reward.functions == (RewardFunctionSpec(function=BREVITY),)
    assert (config.reward.over_length, config.max_prompts, config.judge) == ("fail", 5, None)
    judged = from_parameters(EvaluateConfig, called | {"judge": "j"}, "evaluate")
    assert judged.judge is not None
    assert (judged.judge.judge, judged.judge.max_length) == ("j", 9)


def test_origins_tell_where_a_setting_was_written() -> None:
    called = {"policy": "p", "n": 3, "options": {"sampling": {"n": 4}, "truncated": "drop"}}
    settings = assemble(SampleConfig, called)
    assert settings.values["sampling"] == {"n": 4}
    assert settings.origins["sampling", "n"] == [("n",), ("options", "sampling", "n")]
    assert settings.origin(("truncated",)) == ("options", "truncated")
    functions = assemble(RewardsConfig, {"reward_functions": [{"function": "f", "weight": 2}]})
    assert functions.origin(("reward", "functions", 0, "weight")) == ("reward_functions", 0, "weight")
