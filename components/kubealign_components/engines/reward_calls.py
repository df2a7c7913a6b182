"""Calls of a user's reward functions, in a process of their own: load, adapt, call and check them."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from kubealign_components.config import did_you_mean
from kubealign_components.engines.reward_input import RewardInput
from kubealign_components.printable import shortened

_loaded: dict[str, Callable[..., Any]] = {}


class NotAReward(Exception):
    """A function gave something other than a finite number."""


def open_function(
    key: str, root: str, file: str, module: str, name: str, settings: Mapping[str, Any]
) -> None:
    """Load a function under ``key``, and hold its signature against its settings.

    Args:
        key: what :func:`call_function` is told.
        root: folder that the function's own imports are looked up in.
        file: the Python file.
        module: name of the module, or empty for a file that is none.
        name: of the function.
        settings: its keyword arguments.

    Raises:
        LookupError: the file has no such function.
        TypeError: it does not take the settings.
    """
    if root not in sys.path:
        sys.path.insert(0, root)
    loaded = importlib.import_module(module) if module else _from_file(Path(file))
    function = getattr(loaded, name, None)
    if not callable(function):
        names = sorted(n for n, f in vars(loaded).items() if inspect.isfunction(f) and n[0] != "_")
        raise LookupError(f"one of {', '.join(names) or 'none'}{did_you_mean(name, names)}")
    adapted = _from_trl(function) if takes_batches(function) else function
    if adapted is function:
        inspect.signature(function).bind(None, **settings)
    _loaded[key] = adapted


def call_function(key: str, item: RewardInput, settings: Mapping[str, Any]) -> float:
    """The reward of one completion.

    Raises:
        NotAReward: what came back is no finite number.
    """
    value = _loaded[key](item, **settings)
    if inspect.iscoroutine(value):
        value = asyncio.run(value)
    return finite(value)


def finite(value: object) -> float:
    """``value`` as a float.

    Raises:
        NotAReward: it is no finite number; the text repeats it.
    """
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise NotAReward(_shown(value))
    return number


def takes_batches(function: Callable[..., Any]) -> bool:
    """Whether a function has TRL's signature: lists of prompts and completions in, rewards out."""
    return "completions" in inspect.signature(function).parameters


def _from_trl(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` for one completion: called with lists of one, so that only its row matters."""
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}

    def adapted(item: RewardInput, **settings: Any) -> Any:
        columns = item.metadata | {
            "prompts": item.messages,
            "completions": item.completion,
            "answer": item.answers[0] if item.answers else None,
            "solution": item.answers[0] if item.answers else None,
            "answers": item.answers,
            "tools": item.tools,
            "finish_reason": item.finish_reason,
            "num_tokens": item.num_tokens,
        }
        lists = {name: [value] for name, value in columns.items() if takes_all or name in named}
        given = function(**lists | settings)
        if inspect.iscoroutine(given):
            given = asyncio.run(given)
        if not isinstance(given, list | tuple) or len(given) != 1:
            raise NotAReward(f"{_shown(given)} for a list of one completion")
        return given[0]

    return adapted


def _from_file(file: Path) -> Any:
    name = f"kubealign_own_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # of a user's own class, or of a number with more digits than Python writes
        text = f"a {type(value).__name__} that cannot be shown"
    return shortened(text, 120)
