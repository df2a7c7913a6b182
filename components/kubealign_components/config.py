"""How a stage's settings are declared: frozen keyword-only dataclasses that check themselves.

A setting is *semantic* unless its field is made with :func:`execution`: semantic settings
determine the rows and enter the recipe, execution settings (batch sizes, parallelism, places)
must change neither the rows nor the fingerprint.

A component takes few settings as arguments and the others in ``options``. :func:`assemble` makes one
mapping of both, and knows which argument each setting came from; the component, the checks before a
run and the estimate all use it.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from kubealign_components.doubles import MAX_DOUBLE, MAX_INTEGER, is_double, is_exact
from kubealign_components.errors import ConfigError
from kubealign_components.refused_names import named_below

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
Path = tuple[str | int, ...]
"""Names and positions that lead to a setting, such as ``("sampling", "stop", 0)``."""

OPTIONS = "options"
"""A component's argument that holds the settings that have no argument of their own."""
GROUPS = "GROUPS"
"""The class attribute in which a config declares its :class:`SettingGroup` members by name."""
BORROWS = "BORROWS"
"""The class attribute that names settings which another stage has been given too, by the argument that holds
that stage's options."""
SHORTHAND = "SHORTHAND"
"""The class attribute that names the field which a plain text stands for."""

_GATHERED: ContextVar[list[ConfigError] | None] = ContextVar("gathered", default=None)
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_UNUSABLE = object()
"""In place of a value that could not be made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingGroup:
    """A nested config whose settings a component takes in several arguments."""

    arguments: Mapping[str, str]
    """Settings of the group by the name of the argument that holds them."""
    options: tuple[str, ...]
    """Places of mappings with further settings, such as ``options.sampling``; later ones win."""
    keys: tuple[str, ...] = ()
    """Settings of which at least one must not be empty, or else the group is left out."""
    of: str = ""
    """The stage whose settings these are where another stage borrows them."""


@dataclass(frozen=True, slots=True)
class Assembled:
    """Settings, and the arguments that they came from."""

    values: dict[str, object]
    """For :func:`from_mapping`."""
    origins: dict[Path, list[Path]]
    """For each setting the places in the arguments that give it, the one that counts last."""

    def origin(self, setting: Path) -> Path | None:
        """The place of ``setting`` in the arguments, or of the nearest thing around it."""
        for length in range(len(setting), 0, -1):
            arguments = self.origins.get(setting[:length])
            if arguments:
                return arguments[-1] + setting[length:]
        return None


@dataclass(frozen=True, slots=True)
class Problem:
    """A setting that cannot be used."""

    path: Path
    """Where it is below the settings that were checked."""
    error: ConfigError


def execution(default: T) -> T:
    """A dataclass field that says how to run, not what comes out; it stays out of the recipe."""
    return dataclasses.field(default=default, metadata={"execution": True})


def gate(default: T) -> T:
    """An :func:`execution` field that decides whether the stage fails: what passed under another value of it
    has not passed under this one."""
    return dataclasses.field(default=default, metadata={"execution": True, "gate": True})


def gates_of(config: DataclassInstance) -> dict[str, object]:
    """The settings of ``config`` that are gates, ready for canonical JSON."""
    gates = [field.name for field in dataclasses.fields(config) if field.metadata.get("gate")]
    return {name: _plain(getattr(config, name)) for name in gates}


def takes_anything(hint: object) -> bool:
    """Whether a setting annotated with ``hint`` is checked by who uses it, not here."""
    return hint in (object, Any)


def expected_of(kind: type, value: object) -> str:
    """What was expected in place of ``value``, and how to write it where YAML has surprised somebody."""
    words = _WORDS.get(kind, f"a value of type {kind.__name__}")
    if kind in (int, float) and isinstance(value, str) and any(map(str.isdigit, value)):
        return f"{words}, as digits alone: without quotes, units, separators or a 0 before it"
    if kind is int and isinstance(value, (int, float)) and abs(value) > MAX_INTEGER:
        return f"{words} of at most {MAX_INTEGER:,}"
    if kind is float and isinstance(value, int) and not is_double(value):
        return f"{words} of at most {MAX_DOUBLE:.1e}"
    if kind is str and isinstance(value, (bool, int, float)):
        return f"{words}; put it in quotes if it is meant as text"
    return words


def list_of(value: object) -> str:
    """How the list of one ``value`` is written."""
    return f", such as [{value}]" if isinstance(value, str) and value else ""


def require(ok: bool, field: str, value: object, expected: str) -> None:
    """Raise :class:`ConfigError` for ``field`` unless ``ok``."""
    if ok:
        return
    error, gathered = ConfigError(field, value, expected), _GATHERED.get()
    if gathered is None:
        raise error
    gathered.append(error)


def require_choice(field: str, value: object, choices: Collection[str]) -> None:
    """Raise :class:`ConfigError` unless ``value`` is one of ``choices``."""
    expected = f"one of {', '.join(sorted(choices))}{did_you_mean(value, choices)}"
    require(value in choices, field, value, expected)


def near_name(name: object, names: Collection[str]) -> str:
    """The one of ``names`` that ``name`` was probably meant to be, or an empty text."""
    word, by_lower = str(name).lower(), {name.lower(): name for name in sorted(names)}
    near = difflib.get_close_matches(word, by_lower, n=3, cutoff=0.6)
    # Farther ones only where a part is missing, or letters have changed places.
    alike = [one for one in near if word in one or one in word or sorted(one) == sorted(word)]
    close = difflib.get_close_matches(word, by_lower, n=1, cutoff=0.7) or alike
    return by_lower[close[0]] if close else ""


def did_you_mean(name: object, names: Collection[str]) -> str:
    """What a message adds when one of ``names`` is near."""
    near = near_name(name, names)
    return f"; did you mean {near}?" if near and near != name else ""


def semantic_params(config: DataclassInstance) -> dict[str, object]:
    """The settings of ``config`` that determine the rows, ready for canonical JSON."""
    return {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if not field.metadata.get("execution")
    }


def from_mapping(cls: type[T], values: Mapping[str, object], where: str) -> T:
    """Build the config ``cls`` from ``values``; unknown or ill-typed names are errors.

    JSON has no tuples and KFP turns integers into floats on the way through ``Collected``:
    lists become tuples and whole floats become integers where the field asks for them.

    Raises:
        ConfigError: an unknown name, a missing name or a value of the wrong type.
    """
    config, problems = check_mapping(cls, values, where)
    if problems:
        raise problems[0].error
    assert config is not None
    return config


def check_mapping(cls: type[T], values: Mapping[str, object], where: str) -> tuple[T | None, list[Problem]]:
    """The config ``cls`` of what is right in ``values``, or None, and everything that is wrong with them.

    What is refused is left out and the rest is looked at again: one mistake does not hide another.
    """
    problems: dict[Path, Problem] = {}
    left_out: set[Path] = set()
    while True:
        fitting = _Fitting(where)
        config = fitting.config(cls, values, ())
        fresh = [problem for problem in fitting.problems if problem.path not in left_out]
        if not fresh:
            # An item of a list that now lacks what it must have is left out whole.
            less = _without_all(values, fitting.problems)
            if less == values:
                return (config if isinstance(config, cls) else None), list(problems.values())
            values = less
            continue
        for problem in fresh:
            if not any(_follows(problem.path, missing) for missing in left_out):
                problems.setdefault(problem.path, problem)
        values = _without_all(values, fresh)
        left_out |= {problem.path for problem in fresh}


def assemble(cls: type, parameters: Mapping[str, object]) -> Assembled:
    """The settings of ``cls`` in what a component was called with.

    Where several give one setting the last of these counts: an argument of its name, the options of another
    stage that it is borrowed from, ``options``. Those of a group come after, the arguments first.
    """
    groups: Mapping[str, SettingGroup] = getattr(cls, GROUPS, {})
    made = Assembled({}, {})
    taken = {argument for group in groups.values() for argument in group.arguments}
    for name in _names(cls) & parameters.keys():
        if name not in groups and name not in taken:
            _put(made, (name,), parameters[name], (name,))
    borrowed: Mapping[str, tuple[str, ...]] = getattr(cls, BORROWS, {})
    for argument, names in borrowed.items():
        given = _mapping(parameters.get(argument))
        for name in (name for name in names if name in given):
            _put(made, (name,), given[name], (argument, name))
    for name, value in _mapping(parameters.get(OPTIONS)).items():
        if name not in groups:
            _put(made, (name,), value, (OPTIONS, name))
    for name, group in groups.items():
        _put_group(made, name, group, parameters)
    return made


def from_parameters(cls: type[T], parameters: Mapping[str, object], where: str) -> T:
    """Build the config ``cls`` from what a component was called with, as :func:`assemble` puts it together.

    Raises:
        ConfigError: as :func:`from_mapping`.
    """
    return from_mapping(cls, assemble(cls, parameters).values, where)


def text_of(path: Path) -> str:
    """``path`` as a user writes it: names joined by points, positions in brackets."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def nested_configs(cls: type) -> dict[str, type]:
    """The fields of ``cls`` that are configs themselves, and their classes."""
    own = _names(cls)
    configs = {name: config_in(hint) for name, hint in hints_of(cls).items() if name in own}
    return {name: config for name, config in configs.items() if config is not None}


@cache
def hints_of(cls: type) -> Mapping[str, object]:
    """The annotations of the config ``cls``, read once: each is a text that Python has to compile."""
    return typing.get_type_hints(cls)


def config_in(hint: object) -> type | None:
    """The config that the annotation ``hint`` is, holds in a list, or allows beside nothing."""
    options = [hint, *typing.get_args(hint)]
    return next((o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)), None)


def _follows(path: Path, absent: Path) -> bool:
    """Whether what is wrong at ``path`` may come from having left out ``absent``."""
    shared = min(len(path), len(absent))
    return path[:shared] == absent[:shared]


def _without(values: Mapping[str, object], path: Path) -> Mapping[str, object]:
    """``values`` without what stands at ``path``; the items of a list keep their positions."""
    first, *rest = path
    kept = {name: value for name, value in values.items() if name != first}
    inner = values.get(str(first))
    if rest and isinstance(inner, (Mapping, list, tuple)):
        kept[str(first)] = _inner_without(inner, tuple(rest))
    return kept


def _without_all(values: Mapping[str, object], problems: Sequence[Problem]) -> Mapping[str, object]:
    for problem in problems:
        values = _without(values, problem.path)
    return values


def _inner_without(values: Mapping[str, object] | Sequence[object], path: Path) -> object:
    if isinstance(values, Mapping):
        return _without(values, path) if path[0] in values else values
    first, *rest = path
    if not isinstance(first, int):
        return values
    return [_item_without(item, tuple(rest)) if n == first else item for n, item in enumerate(values)]


def _item_without(item: object, path: Path) -> object:
    """``item`` of a list without what stands at ``path``; not the item at all where that is what it lacks."""
    return _without(item, path) if path and isinstance(item, Mapping) and path[0] in item else _UNUSABLE


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _names(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _put(made: Assembled, setting: Path, value: object, origin: Path) -> None:
    target = made.values
    for name in setting[:-1]:
        inner = target.setdefault(str(name), {})
        assert isinstance(inner, dict)
        target = inner
    target[str(setting[-1])] = value
    made.origins.setdefault(setting, []).append(origin)


def _put_group(made: Assembled, name: str, group: SettingGroup, parameters: Mapping[str, object]) -> None:
    for argument, setting in group.arguments.items():
        if argument in parameters:
            _put(made, (name, setting), parameters[argument], (argument,))
    for option in group.options:
        path = tuple(option.split("."))
        settings: object = parameters
        for part in path:
            settings = _mapping(settings).get(part, {})
        if not isinstance(settings, Mapping):
            made.origins[name,] = [path]
            made.values[name] = settings
            return
        for setting, value in settings.items():
            _put(made, (name, setting), value, (*path, setting))
    if group.keys and not any(_mapping(made.values.get(name)).get(key) for key in group.keys):
        made.values.pop(name, None)


@contextmanager
def _gathering() -> Iterator[list[ConfigError]]:
    """What :func:`require` refuses in here is gathered, not raised."""
    gathered: list[ConfigError] = []
    token = _GATHERED.set(gathered)
    try:
        yield gathered
    except ConfigError as error:
        gathered.append(error)
    except Exception:  # a check that goes on with what an earlier one has refused
        if not gathered:
            raise
    finally:
        _GATHERED.reset(token)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return semantic_params(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


class _Fitting:
    """Makes values fit annotated types, and keeps what does not.

    Args:
        where: what the settings belong to.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.problems: list[Problem] = []

    def config(self, cls: type, values: Mapping[str, object], path: Path) -> object:
        """An instance of the dataclass ``cls``."""
        before = len(self.problems)
        fields = {f.name: f for f in dataclasses.fields(cls)}
        hints = hints_of(cls)
        for name in values:
            if name not in fields:
                self._refuse((*path, name), values[name], self._alternative(cls, name, path, values))
        for name, entry in fields.items():
            if not _has_default(entry) and name not in values:
                self._refuse((*path, name), None, "a value: this setting has no default")
        fitted = {
            name: self.value(hints[name], value, (*path, name))
            for name, value in values.items()
            if name in fields and not _keeps_default(fields[name], hints[name], value)
        }
        if len(self.problems) > before:
            return _UNUSABLE
        return self._built(cls, fitted, path)

    def _alternative(self, cls: type, name: str, path: Path, values: Mapping[str, object]) -> str:
        """What could stand in the place of the unknown ``name``."""
        nested = [field for field, config in nested_configs(cls).items() if name in _names(config)]
        if nested:
            return f"it under {text_of((*path, nested[0]))}, where it belongs"
        lacking = [f.name for f in dataclasses.fields(cls) if not (_has_default(f) or f.name in values)]
        near = near_name(name, _names(cls)) or ", ".join(lacking)
        names = ", ".join(sorted(_names(cls)))
        return f"a setting of {self._text(path)}" + (
            f"; did you mean {near}?" if near else f": one of {names}"
        )

    def value(self, hint: object, value: object, path: Path) -> object:
        """``value`` as the annotated type ``hint``."""
        origin = typing.get_origin(hint)
        if takes_anything(hint):
            return value
        if origin in (types.UnionType, typing.Union):
            return self._union(hint, value, path)
        if origin is tuple:
            if not isinstance(value, (list, tuple)):
                return self._refuse(path, value, f"a list{list_of(value)}")
            item = typing.get_args(hint)[0]
            usable = [(i, entry) for i, entry in enumerate(value) if entry is not _UNUSABLE]
            return tuple(self.value(item, entry, (*path, i)) for i, entry in usable)
        if origin is not None and issubclass(origin, Mapping):
            if not isinstance(value, Mapping):
                return self._refuse(path, value, "a mapping")
            item = typing.get_args(hint)[1]
            return {str(k): self.value(item, v, (*path, str(k))) for k, v in value.items()}
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self._nested(hint, value, path)
        return self._scalar(hint, value, path)

    def _nested(self, cls: type, value: object, path: Path) -> object:
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and hasattr(cls, SHORTHAND):
            value = {getattr(cls, SHORTHAND): value}
        if not isinstance(value, Mapping):
            return self._refuse(path, value, "a mapping of settings")
        return self.config(cls, value, path)

    def _built(self, cls: type, fitted: Mapping[str, object], path: Path) -> object:
        config = _UNUSABLE
        with _gathering() as refused:
            config = cls(**fitted)
        self.problems += [Problem(named_below(path, error.field, fitted), error) for error in refused]
        return _UNUSABLE if refused else config

    def _union(self, hint: object, value: object, path: Path) -> object:
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if value is None and len(options) < len(typing.get_args(hint)):
            return None
        for option in options:
            attempt = _Fitting(self.where)
            fitted = attempt.value(option, value, path)
            if not attempt.problems:
                return fitted
        if all(option in _WORDS for option in options):
            *others, last = options
            words = [_WORDS[option] for option in others] + [expected_of(last, value)]
            return self._refuse(path, value, " or ".join(words))
        self.problems += attempt.problems
        return _UNUSABLE

    def _scalar(self, hint: object, value: object, path: Path) -> object:
        if hint is float and isinstance(value, int) and not isinstance(value, bool) and is_double(value):
            return float(value)
        if hint is int and isinstance(value, (int, float)) and not is_exact(value):
            return self._refuse(path, value, expected_of(int, value))
        if hint is int and isinstance(value, float):
            return int(value)
        assert isinstance(hint, type)
        if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
        return self._refuse(path, value, expected_of(hint, value))

    def _refuse(self, path: Path, value: object, expected: str) -> object:
        self.problems.append(Problem(path, ConfigError(self._text(path), value, expected)))
        return _UNUSABLE

    def _text(self, path: Path) -> str:
        return text_of((self.where, *path))


def _has_default(field: dataclasses.Field[object]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _keeps_default(field: dataclasses.Field[object], hint: object, value: object) -> bool:
    """Whether ``value`` is the null by which recipes say that a setting decided nothing."""
    may_be_null = takes_anything(hint) or type(None) in typing.get_args(hint)
    return value is None and _has_default(field) and not may_be_null
