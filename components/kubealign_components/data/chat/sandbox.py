"""Running chat templates: the same text every time, and within bounds.

A template is a program that comes with a model. It gets no clock but a fixed date, no chance, and a limit
for its steps and for the size of what it builds. What it writes is otherwise what ``transformers`` makes
of it (``transformers/utils/chat_template_utils.py``).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from jinja2.parser import Parser
    from jinja2.runtime import Context

MAX_CHARS = 2**24
"""Characters (or members) of the largest value that a template may build."""
MAX_STEPS = 2**19
"""Passes through loops, and calls, in one rendering."""
MAX_WIDTH = 2**16
"""The largest number that a filter or a method of a text is given, such as a width to fill up to."""
_WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*\*|\d{6,}|\{[^}]*\{")
_LOOP_FILTER = "_steps"


class TemplateRefused(Exception):
    """The template does not render these values; says why."""

    @property
    def unsafe(self) -> bool:
        """Whether it was stopped at a limit, or at what no template may do."""
        return isinstance(self.__cause__, SecurityError | OverflowError | RecursionError | MemoryError)


class SandboxedTemplate:
    """A compiled chat template.

    Args:
        text: Jinja.
        today: the date that ``strftime_now`` gives, at midnight.

    Raises:
        TemplateRefused: it is no Jinja text.
    """

    def __init__(self, text: str, today: date) -> None:
        self.text = text
        self._environment = _Environment()
        self._given = {"strftime_now": today.strftime}
        try:
            self.variables = frozenset(find_undeclared_variables(self._environment.parse(text)))
            self._template = self._environment.from_string(text)
        except (TemplateError, RecursionError) as error:
            raise TemplateRefused(f"{type(error).__name__}: {error}") from error

    @property
    def dated(self) -> bool:
        """Whether the text can depend on the date."""
        return "strftime_now" in self.variables

    def render(self, values: dict[str, object]) -> str:
        """The text that the template makes of ``values``.

        Raises:
            TemplateRefused: whatever went wrong in the template.
        """
        self._environment.steps = 0
        try:
            return str(self._template.render(self._given | values))
        except Exception as error:  # a template is a program: it can fail in every way
            text = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            raise TemplateRefused(text) from error


V = TypeVar("V")


class _Generator(CodeGenerator):
    """Compiles ``~`` to a call that bounds its result."""

    def visit_Concat(self, node: nodes.Concat, frame: object) -> None:  # noqa: N802
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class _Generation(Extension):
    """``{% generation %}``, which marks what the assistant says; it writes what is in it."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja as chat templates know it, with everything counted and measured."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.steps = 0
        self.filters = {name: _bounded(f) for name, f in self.filters.items()}
        own: dict[str, Callable[..., object]] = {
            "tojson": _bounded(_tojson),
            "random": _refuse_chance,
            "join": _bounded_join(self.filters["join"]),
            _LOOP_FILTER: self._counted,
        }
        self.filters |= own
        self.globals.pop("lipsum", None)
        self.globals["raise_exception"] = _raise

    def concat(self, parts: Iterable[str]) -> str:
        """What a template writes, or joins with ``~``."""
        texts, size = [], 0
        for part in parts:
            size += len(part)
            _check_size(size)
            texts.append(part)
        return "".join(texts)

    def call(__self, __context: Context, __obj: object, *args: object, **kwargs: object) -> object:  # noqa: N805
        """See :class:`SandboxedEnvironment`; counted."""
        __self._step()
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps the format of texts
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | list | tuple):
            args = tuple(list(a) if isinstance(a, Iterator) else a for a in args)
            _check_method(owner, str(getattr(method, "__name__", "")), args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> object:
        """See :class:`SandboxedEnvironment`; measured before it is computed."""
        _check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            counted = nodes.Filter(loop.iter, _LOOP_FILTER, [], [], None, None, lineno=loop.lineno)
            counted.environment = self
            loop.iter = counted
        return tree

    def _counted(self, values: Iterable[V]) -> Iterator[V]:
        for value in values:
            self._step()
            yield value

    def _step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise SecurityError(f"more than {MAX_STEPS} steps")


def _check_operands(operator: str, left: Any, right: Any) -> None:
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**":
        _check_size(getattr(left, "bit_length", lambda: 1)() * abs(right))
    elif operator == "*" and numbers:
        _check_size(left.bit_length() + right.bit_length())
    elif operator == "*":
        sized, times = (left, right) if hasattr(left, "__len__") else (right, left)
        _check_size(len(sized) * times if hasattr(sized, "__len__") else 0)
    elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
        _check_size(len(left) + len(right))
    elif operator == "%" and isinstance(left, str):
        _check_format(left)


def _check_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, object]) -> None:
    _check_numbers((*args, *kwargs.values()))
    if name in ("format", "format_map"):
        _check_format(owner)
    elif name == "replace" and len(args) > 1:
        _check_size((len(owner) + 1) * max(1, len(args[1])) if args[0] in owner else 0)
    elif name == "join" and args:
        _check_size(sum(len(part) + len(owner) for part in args[0]))


def _check_format(text: str) -> None:
    if _WIDE_FORMAT.search(text):
        raise SecurityError(f"the format {text[:80]!r} can make a text of any length")


def _check_numbers(values: Iterable[object]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_WIDTH:
            raise SecurityError(f"the number {value} is above {MAX_WIDTH}")


def _check_size(size: float) -> None:
    if size > MAX_CHARS:
        raise SecurityError(f"it builds a value of more than {MAX_CHARS} characters")


def _bounded(original: Callable[..., object]) -> Callable[..., object]:
    """A filter that takes no large numbers and no format of any width."""

    @functools.wraps(original)
    def bounded(*args: object, **kwargs: object) -> object:
        _check_numbers((*args, *kwargs.values()) if not hasattr(original, "jinja_pass_arg") else args[1:])
        if original.__name__ == "do_format":
            _check_format(str(args[0]))
        if original.__name__ == "do_replace" and len(args) > 3:
            _check_size((len(str(args[1])) + 1) * max(1, len(str(args[3]))))
        return original(*args, **kwargs)

    return bounded


def _bounded_join(original: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(original)
    def joined(context: Context, value: Iterable[object], d: str = "", attribute: object = None) -> object:
        parts = list(value)
        if attribute is None:
            _check_size(sum(len(str(part)) + len(d) for part in parts))
        return original(context, parts, d, attribute)

    return joined


def _tojson(
    x: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes characters of HTML; this is the one that templates are written for.
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _refuse_chance(*_: object) -> object:
    raise SecurityError("it uses `random`: its text would be another one each time")
