"""Errors as JSON: what a process that failed leaves for the one that started it."""

from __future__ import annotations

from collections.abc import Mapping

from kubealign_components.errors import ConfigError, KubeAlignError, error_kinds

_KINDS = {kind.__name__: kind for kind in error_kinds()}
"""What may be left behind, by name."""


def report_of(error: KubeAlignError) -> dict[str, object]:
    """``error`` as plain JSON values."""
    return {"kind": type(error).__name__, "arguments": _arguments(error)}


def error_from(report: Mapping[str, object]) -> KubeAlignError:
    """The error of :func:`report_of`.

    Raises:
        ValueError, TypeError, KeyError: ``report`` is none.
    """
    arguments = report["arguments"]
    if not isinstance(arguments, list):
        raise TypeError(f"arguments are {type(arguments).__name__}, expected a list")
    return _KINDS[str(report["kind"])](*arguments)


def _arguments(error: KubeAlignError) -> list[object]:
    if not isinstance(error, ConfigError):
        return [str(error)]
    value = error.value
    plain = value is None or isinstance(value, str | int | float)
    return [error.field, value if plain else repr(value), error.expected]
