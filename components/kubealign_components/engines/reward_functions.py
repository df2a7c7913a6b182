"""Reward functions by name: shipped ones by a short name, one's own by file or module.

A shipped function runs here; one's own in a process of its own, with a time limit, so that whatever it does
ends in an error that names it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from kubealign_components.config import did_you_mean, execution, require, semantic_params
from kubealign_components.data.fingerprint import canonical_json
from kubealign_components.data.origins import note_origin
from kubealign_components.engines.own_code import OwnCode, find_code
from kubealign_components.engines.reward_calls import NotAReward, call_function, finite, open_function
from kubealign_components.engines.reward_input import Refused, RewardInput
from kubealign_components.engines.worker import CallFailed, TimedOut, Worker, WorkerDied
from kubealign_components.errors import ConfigError, EngineError
from kubealign_components.printable import shortened

SHIPPED_MODULE = "kubealign_components.rewards.functions"
SHIPPED: Mapping[str, int] = {
    "brevity": 1,
    "exact_answer": 5,
    "format_match": 2,
    "generative_judge": 2,
    "target_length": 1,
}
"""The shipped functions and the version of each, raised when it gives other rewards."""
EXECUTION: Mapping[str, Collection[str]] = {"generative_judge": ("key_variable", "patience", "seconds")}
"""Settings of shipped functions that no reward depends on."""
AT_ONCE: Mapping[str, int] = {"generative_judge": 32}
"""Shipped functions that ask a server, and how many of their questions it gets at a time."""

OPEN_SECONDS = 60.0
"""A module of functions must have been imported in so many seconds."""
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_FILE = re.compile(r"[^\0]*[^/\\\0]\.py:[A-Za-z_]\w*")
_CLIP = 300


class RewardWords(NamedTuple):
    """One summand of a reward, for who reads a report."""

    about: str
    """What it rewards."""
    computed: str
    """What computes it, with weight and settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardFunctionSpec:
    """One reward function with its weight and settings; a text is its name."""

    SHORTHAND: ClassVar[str] = "function"

    function: str
    """The name of a shipped one, ``path/to/file.py:function``, or ``module:function``."""
    weight: float = 1.0
    """Factor of its value in the sum."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function, plain JSON."""
    about: str = execution("")
    """What it rewards, in words for who reads the reports; a shipped function has words of its own."""
    seconds: float = execution(60.0)
    """A call that takes longer is an error."""
    source: str = execution("")
    """Where its file is when it is not on this machine; filled in when a run is sent to a cluster."""

    def __post_init__(self) -> None:
        require(
            names_function(self.function),
            "function",
            self.function,
            f"a shipped function ({', '.join(SHIPPED)}), path/to/file.py:function, or module:function"
            f"{did_you_mean(self.function, SHIPPED)}",
        )
        require_weight("weight", self.weight)
        require(self.seconds > 0, "seconds", self.seconds, "a positive number of seconds")
        # KFP turns integers into floats; the settings enter the recipe and must not depend on the way.
        object.__setattr__(self, "settings", {k: _whole(v) for k, v in self.settings.items()})
        try:
            canonical_json(self.settings)
        except (TypeError, ValueError) as error:
            raise ConfigError("settings", self.settings, f"plain JSON values ({error})") from error

    @property
    def name(self) -> str:
        """The function's own name."""
        return self.function.rpartition(":")[2]

    @property
    def module(self) -> str:
        """The module, or the path of the file."""
        return self.function.rpartition(":")[0] or SHIPPED_MODULE

    @property
    def is_file(self) -> bool:
        """Whether it is named by its file."""
        return self.module.endswith(".py")

    @property
    def is_shipped(self) -> bool:
        """Whether it comes along."""
        return self.module == SHIPPED_MODULE

    @property
    def at_once(self) -> int:
        """Completions that it is called for at a time."""
        return AT_ONCE.get(self.name, 1) if self.is_shipped else 1

    @property
    def params(self) -> dict[str, object]:
        """What determines its rewards, for a recipe, under a name that tells no place."""
        own = EXECUTION.get(self.name, ()) if self.is_shipped else ()
        settings = {name: value for name, value in self.settings.items() if name not in own}
        return semantic_params(self) | {"function": self.recipe_name, "settings": settings}

    @property
    def words(self) -> RewardWords:
        """What a reader of a report is told of it."""
        about = self.about
        if not about and self.is_shipped:
            function = import_function(self.function, self.module, self.name, self.settings)
            about = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("``", "")
        weight = [f"weight {self.weight:g}"] if self.weight != 1 else []
        settings = [
            f"{name} {f'“{value}”' if isinstance(value, str) else canonical_json(value)}"
            for name, value in self.settings.items()
        ]
        return RewardWords(
            about.removesuffix(".") or self.recipe_name, ", ".join([self.recipe_name, *weight, *settings])
        )

    @property
    def recipe_name(self) -> str:
        """What a recipe calls it: no place of this machine."""
        return f"{Path(self.module).name if self.is_file else self.module}:{self.name}"


def names_function(text: str) -> bool:
    """Whether ``text`` has the form of a function's name, whether or not there is such a function."""
    return text in SHIPPED or bool(_FILE.fullmatch(text) or _MODULE.fullmatch(text))


def require_one_of_each_name(functions: Sequence[RewardFunctionSpec]) -> None:
    """Raise :class:`ConfigError` where a recipe could not tell two functions apart, by whose names it says
    what they are."""
    first: dict[str, RewardFunctionSpec] = {}
    for function in functions:
        other = first.setdefault(function.recipe_name, function)
        require(
            (other.module, other.source) == (function.module, function.source),
            "functions",
            function.function,
            f"a file of another name: {other.function} is called {function.recipe_name} too",
        )


class LoadedFunction:
    """A reward function that is ready to be called.

    Args:
        spec: which function.

    Raises:
        ConfigError: no such module, file or function, or it does not take the settings.
    """

    def __init__(self, spec: RewardFunctionSpec) -> None:
        self.spec = spec
        self._code: OwnCode | None = None
        if spec.is_shipped:
            self._function = import_function(spec.function, spec.module, spec.name, spec.settings)
        else:
            self._code = find_code(spec.module, spec.name, spec.source)
            self._worker = Worker(spec.recipe_name)
            self._open()

    @cached_property
    def identity(self) -> str | dict[str, Any]:
        """What a recipe says of it: its version when it is shipped, else a digest of what it is."""
        spec, code = self.spec, self._code
        if code is None:
            return {"version": SHIPPED.get(spec.name, 0)}
        if spec.is_file:  # a module is found by its name
            note_origin(code.digest, spec.source or f"{code.file}:{spec.name}")
        return code.digest

    def __call__(self, item: RewardInput) -> float:
        """The reward of ``item``, of which the function has a copy.

        Raises:
            Refused: the function cannot reward it.
            EngineError: it raised, took too long, ended its process, or gave no finite number.
        """
        try:
            if self._code is None:
                return finite(self._function(item, **self.spec.settings))
            return self._call_own(item)
        except NotAReward as error:
            raise self._failed(f"returned {error}, expected a finite number", item) from error
        except (ConfigError, EngineError, Refused):
            raise
        except Exception as error:
            raise self._failed(f"raised {type(error).__name__}: {error}", item) from error

    def close(self) -> None:
        """End the function's process."""
        if self._code is not None:
            self._worker.close()

    def _call_own(self, item: RewardInput) -> float:
        spec = self.spec
        if not self._worker.is_running:
            self._open()
        try:
            value = self._worker.call(call_function, spec.function, item, spec.settings, seconds=spec.seconds)
        except TimedOut as error:
            text = f"took more than {spec.seconds:g} s; raise its seconds if it may"
            raise self._failed(text, item) from error
        except WorkerDied as error:
            raise self._failed(f"ended its process ({error})", item) from error
        except CallFailed as error:
            if error.kind == Refused.__name__:
                raise Refused(error.text) from error
            if error.kind == NotAReward.__name__:
                raise NotAReward(error.text) from error
            raise self._failed(f"raised {error}", item) from error
        return float(value)

    def _open(self) -> None:
        spec, code = self.spec, self._code
        assert code is not None
        module = "" if spec.is_file else spec.module
        source = (str(code.root), str(code.file), module, spec.name)
        try:
            self._worker.call(open_function, spec.function, *source, spec.settings, seconds=OPEN_SECONDS)
        except TimedOut as error:
            raise ConfigError(
                "function", spec.function, f"a module that is imported within {OPEN_SECONDS:g} s"
            ) from error
        except WorkerDied as error:
            raise ConfigError(
                "function", spec.function, f"a module that can be imported ({error})"
            ) from error
        except CallFailed as error:
            self._worker.close()
            raise _unusable(spec, error.kind, error.text) from error

    def _failed(self, what: str, item: RewardInput) -> EngineError:
        return EngineError(f"reward function {self.spec.function} {what}; its input: {_describe(item)}")


def import_function(
    shown: str, module_name: str, name: str, settings: Mapping[str, Any]
) -> Callable[..., Any]:
    """A function by its module's name, imported here.

    Args:
        shown: how the user names it, for errors.
        module_name: its module.
        name: its name.
        settings: keyword arguments that it must take.

    Raises:
        ConfigError: no such module or function, one that fails on import, or does not take the settings; of a
            shipped one, the setting that cannot be used.
    """
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            "function", shown, f"an importable module ({error}); install it in the image of the stage"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        names = sorted(n for n, f in vars(module).items() if inspect.isfunction(f) and n[0] != "_")
        raise ConfigError(
            "function",
            shown,
            f"a function of {module_name}{did_you_mean(name, names)}: one of {', '.join(names)}",
        )
    own = module.SETTINGS.get(name) if module_name == SHIPPED_MODULE else None
    taken = inspect.signature(own or function)
    try:
        if own is None:
            taken.bind(None, **settings)
        else:
            own(**settings)
    except (AttributeError, TypeError, ValueError) as error:  # of another name or type than it has
        raise ConfigError(
            "settings", dict(settings), f"keyword settings of {shown}{taken} ({error})"
        ) from error
    loaded: Callable[..., Any] = function
    return loaded


def require_weight(name: str, value: float) -> None:
    """Raise :class:`ConfigError` for a weight of ``name`` that is 0 or no number."""
    finite_weight = value == value and abs(value) != float("inf")
    require(finite_weight and value != 0, name, value, "a finite number other than 0")


def _unusable(spec: RewardFunctionSpec, kind: str, text: str) -> ConfigError:
    if kind == "LookupError":
        return ConfigError("function", spec.function, f"a function of {spec.module}: {text}")
    if kind == "TypeError":
        return ConfigError("settings", spec.settings, f"keyword settings of {spec.function} ({text})")
    return ConfigError("function", spec.function, f"a module that can be imported ({kind}: {text})")


def _describe(item: RewardInput) -> str:
    prompt = str(item.messages[-1].get("content") or "") if item.messages else ""
    return f"prompt {clip(prompt)}, completion {clip(item.text)}, answers {clip(str(item.answers))}"


def clip(text: str) -> str:
    """``text`` as an error shows it: its beginning, and how long it is."""
    return repr(shortened(text, _CLIP))


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
