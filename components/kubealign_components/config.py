"""How a stage's settings are declared: frozen keyword-only dataclasses that check themselves.

A setting is *semantic* unless its field is made with :func:`execution`: semantic settings
determine the rows and enter the recipe, execution settings (batch sizes, parallelism, places)
must change neither the rows nor the fingerprint.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from kubealign_components.errors import ConfigError

T = TypeVar("T")


def execution(default: Any) -> Any:
    """A dataclass field that says how to run, not what comes out; it stays out of the recipe."""
    return dataclasses.field(default=default, metadata={"execution": True})


def require(ok: bool, field: str, value: object, expected: str) -> None:
    """Raise :class:`ConfigError` for ``field`` unless ``ok``."""
    if not ok:
        raise ConfigError(field, value, expected)


def require_choice(field: str, value: object, choices: Collection[str]) -> None:
    """Raise :class:`ConfigError` unless ``value`` is one of ``choices``."""
    require(value in choices, field, value, "one of " + ", ".join(sorted(choices)))


def semantic_params(config: Any) -> dict[str, Any]:
    """The settings of ``config`` that determine the rows, ready for canonical JSON."""
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if not field.metadata.get("execution")
    }


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build the config ``cls`` from ``values``; unknown or ill-typed names are errors.

    JSON has no tuples and KFP turns integers into floats on the way through ``Collected``:
    lists become tuples and whole floats become integers where the field asks for them.

    Raises:
        ConfigError: an unknown name, a missing name or a value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for name in values:
        require(
            name in fields,
            f"{where}.{name}",
            values[name],
            f"a setting of {where}: one of {', '.join(sorted(fields))}",
        )
    for name, field in fields.items():
        absent = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        require(not absent or name in values, f"{where}.{name}", None, "a value: this setting has no default")
    return cls(**{name: _fit(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def from_parameters(cls: type[T], parameters: Mapping[str, Any], where: str) -> T:
    """Build the config ``cls`` from what a component was called with: those of its parameters that are
    settings, and the mapping ``options`` over them.

    Raises:
        ConfigError: as :func:`from_mapping`.
    """
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    settings = {name: value for name, value in parameters.items() if name in names}
    return from_mapping(cls, settings | parameters["options"], where)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return semantic_params(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


def _fit(hint: Any, value: Any, name: str) -> Any:
    """``value`` as the annotated type ``hint``, or :class:`ConfigError` naming ``name``."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _fit_union(hint, value, name)
    if origin is tuple:
        require(isinstance(value, (list, tuple)), name, value, "a list")
        return tuple(_fit(typing.get_args(hint)[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping, types.MappingProxyType) or (
        isinstance(origin, type) and issubclass(origin, Mapping)
    ):
        require(isinstance(value, Mapping), name, value, "a mapping")
        item = typing.get_args(hint)[1]
        return {str(k): _fit(item, v, f"{name}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        require(isinstance(value, Mapping), name, value, "a mapping of settings")
        return from_mapping(hint, value, name)
    return _fit_scalar(hint, value, name)


def _fit_union(hint: Any, value: Any, name: str) -> Any:
    options = [a for a in typing.get_args(hint) if a is not type(None)]
    if value is None and len(options) < len(typing.get_args(hint)):
        return None
    for option in options:
        try:
            return _fit(option, value, name)
        except ConfigError:
            if option is options[-1]:
                raise
    raise ConfigError(name, value, str(hint))


def _fit_scalar(hint: Any, value: Any, name: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    wrong_bool = isinstance(value, bool) and hint is not bool
    require(isinstance(value, hint) and not wrong_bool, name, value, f"a value of type {hint.__name__}")
    return value
