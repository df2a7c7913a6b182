"""Settings: typed, checked and named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubealign_components.config import (
    assemble,
    execution,
    from_mapping,
    from_parameters,
    near_name,
    require,
    require_choice,
    semantic_params,
)
from kubealign_components.data.fingerprint import canonical_json
from kubealign_components.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    depth: int = 1
    device: str = execution("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    name: str
    rate: float = 0.5
    count: int = 3
    on: bool = False
    limit: int | None = None
    stop: tuple[str, ...] = ()
    caps: dict[str, int] = field(default_factory=dict)
    inner: Inner = Inner()
    layers: tuple[Inner, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    batch: int = execution(16)

    def __post_init__(self) -> None:
        require(self.count > 0, "count", self.count, "a positive number")
        require_choice("name", self.name, ("b", "a"))


def test_a_component_takes_settings_from_its_parameters_and_options_over_them() -> None:
    called_with = {"name": "a", "count": 2.0, "dataset": object(), "options": {"rate": 1, "count": 5}}
    assert from_parameters(Settings, called_with, "stage") == Settings(name="a", rate=1.0, count=5)
    with pytest.raises(ConfigError, match=r"stage\.dataset=1"):
        from_parameters(Settings, called_with | {"options": {"dataset": 1}}, "stage")


def test_semantic_params_leave_out_how_to_run() -> None:
    one = Settings(name="a", inner=Inner(device="cuda"), batch=1, layers=(Inner(device="mps"),))
    two = Settings(name="a", inner=Inner(device="cpu"), batch=2, layers=(Inner(),))
    assert semantic_params(one) == semantic_params(two)
    assert semantic_params(one)["inner"] == {"depth": 1}
    assert "batch" not in semantic_params(one)
    assert semantic_params(Settings(name="b")) != semantic_params(Settings(name="a"))


def test_json_gives_the_config_back() -> None:
    config = Settings(
        name="a", limit=4, stop=("x", "y"), caps={"s": 1}, inner=Inner(depth=2), layers=(Inner(depth=3),)
    )
    values = json.loads(canonical_json(semantic_params(config)))
    assert from_mapping(Settings, values, "here") == config


@given(count=st.integers(1, 10**9), limit=st.none() | st.integers(0, 10**9), caps=st.integers(0, 10**6))
def test_floats_that_kfp_made_of_integers_are_integers_again(
    count: int, limit: int | None, caps: int
) -> None:
    values = {"name": "a", "count": float(count), "rate": 1, "caps": {"s": float(caps)}}
    values["limit"] = None if limit is None else float(limit)
    config = from_mapping(Settings, values, "here")
    assert config == Settings(name="a", count=count, rate=1.0, limit=limit, caps={"s": caps})
    assert isinstance(config.count, int)
    assert isinstance(config.rate, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"here.name=None: expected a value: this setting has no default"),
        ({"name": "a", "colour": 1}, r"here.colour=1: expected a setting of here: one of batch, caps, count"),
        ({"name": 1}, r"here.name=1: expected text"),
        ({"name": "a", "count": 1.5}, r"here.count=1.5: expected a whole number"),
        ({"name": "a", "count": "3"}, r"here.count='3': expected a whole number"),
        ({"name": "a", "count": True}, r"here.count=True: expected a whole number"),
        ({"name": None}, r"here.name=None: expected text"),
        ({"name": "a", "stop": [None]}, r"here.stop\[0\]=None: expected text"),
        ({"name": "a", "rate": "x"}, r"here.rate='x': expected a number"),
        ({"name": "a", "rate": True}, r"here.rate=True: expected a number"),
        ({"name": "a", "on": 1}, r"here.on=1: expected true or false"),
        ({"name": "a", "limit": "x"}, r"here.limit='x': expected a whole number"),
        ({"name": "a", "stop": "x"}, r"here.stop='x': expected a list"),
        ({"name": "a", "stop": ["x", 2]}, r"here.stop\[1\]=2: expected text"),
        ({"name": "a", "caps": [1]}, r"here.caps=\[1\]: expected a mapping"),
        ({"name": "a", "caps": {"s": "x"}}, r"here.caps.s='x': expected a whole number"),
        ({"name": "a", "inner": 3}, r"here.inner=3: expected a mapping of settings"),
        ({"name": "a", "inner": {"width": 3}}, r"here.inner.width=3: expected a setting of here.inner"),
        ({"name": "a", "layers": [{"depth": "x"}]}, r"here.layers\[0\].depth='x'"),
        ({"name": "a", "count": 0}, r"^count=0: expected a positive number"),
        ({"name": "c"}, r"^name='c': expected one of a, b"),
    ],
)
def test_bad_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(Settings, values, "here")


def test_the_error_carries_the_parts() -> None:
    with pytest.raises(ConfigError) as caught:
        require(False, "n", 0, "1 or more")
    assert (caught.value.field, caught.value.value) == ("n", 0)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A config with settings that it shares with another stage."""

    BORROWS: ClassVar[Mapping[str, tuple[str, ...]]] = {"train_options": ("dtype", "adapter")}

    dtype: str = "auto"
    adapter: str = "none"
    budget: int = 1


def test_settings_borrowed_from_another_stage_count_over_an_argument_and_under_own_options() -> None:
    given = {
        "adapter": "none",
        "train_options": {"dtype": "bfloat16", "adapter": "lora", "budget": 7},
        "options": {"dtype": "float32"},
    }
    made = assemble(Scored, given)
    assert from_mapping(Scored, made.values, "scored") == Scored(dtype="float32", adapter="lora")
    assert made.origin(("adapter",)) == ("train_options", "adapter")
    assert made.origin(("dtype",)) == ("options", "dtype")
    assert assemble(Scored, {"adapter": "qlora", "train_options": {}, "options": {}}).values == {
        "adapter": "qlora"
    }


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *(("kubernets", ""), ("deepspeed", ""), ("samples", ""), ("dop", "dpo"), ("sede", "seed")),
        *(("reward", "reward_model"), ("Secret", "secrets"), ("polciy", "policy")),
    ],
)
def test_a_name_is_suggested_where_it_is_near_alone(name: str, meant: str) -> None:
    names = ("dpo", "ipo", "kto", "policy", "reward_model", "secrets", "seed", "stages", "volumes")
    assert near_name(name, names) == meant
