"""Which lines of the source the tests run, at a small part of the cost of tracing.

With ``EXECUTED_LINES`` in the environment modules of the source get marks when they are imported: before the
last statement of every run of plain ones, and before everything that branches. What they have seen is left as
coverage.py's data, whose ``combine`` and ``report`` say what of the source it is. Python 3.11 would trace
each line of every library as well, and tests would take two thirds more of a processor. SlipCover 1.1 marks
as cheaply, but reads what workers of xdist have seen before the last of them has written it.

A line counts if a mark shows that it was begun. So fewer lines count than were begun, never more: of a run of
plain statements none does where one before the last raises, and a handler's where it does not match.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PACKAGES = ("kubealign", "kubealign_pipelines", "kubealign_components")
VARIABLE = "EXECUTED_LINES"
_MARKS = "__executed__"
"""Name in a module of its marks."""
_PLAIN = (
    *(ast.Assert, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Delete, ast.Expr, ast.Global),
    *(ast.Import, ast.ImportFrom, ast.Nonlocal, ast.Pass),
)


class MarkedSource:
    """A module's syntax with marks in it.

    Attributes:
        lines: by mark, those that were begun when it is set.
    """

    def __init__(self, source: bytes | str) -> None:
        self.lines: list[list[int]] = []
        self.tree = ast.parse(source)
        self.tree.body = self._marked(self.tree.body, [], documented=True)
        ast.fix_missing_locations(self.tree)

    def _marked(self, body: list[ast.stmt], begun: list[int], documented: bool = False) -> list[ast.stmt]:
        """``body`` with marks; the lines ``begun`` were when it is reached."""
        made: list[ast.stmt] = []
        pending = list(begun)
        for position, statement in enumerate(body):
            if position == 0 and documented and _is_text(statement):
                made.append(statement)
                continue
            pending += _lines_of(statement)
            following = body[position + 1] if position + 1 < len(body) else None
            ends_run = not isinstance(statement, _PLAIN) or not isinstance(following, _PLAIN)
            if ends_run and not _is_future(statement):
                made.append(self._mark(pending, statement))
                pending = []
            self._enter(statement)
            made.append(statement)
        if pending:  # of a module that ends with an import of the future, before which no mark can stand
            made.append(self._mark(pending, made[-1]))
        return made

    def _enter(self, statement: ast.stmt) -> None:
        """Mark the statements within ``statement``."""
        documented = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for name in ("body", "orelse", "finalbody"):
            if body := getattr(statement, name, None):
                setattr(statement, name, self._marked(body, [], documented))
        for handler in getattr(statement, "handlers", ()):
            handler.body = self._marked(handler.body, [handler.lineno])
        for case in getattr(statement, "cases", ()):
            case.body = self._marked(case.body, [case.pattern.lineno])

    def _mark(self, lines: Sequence[int], where: ast.stmt) -> ast.stmt:
        self.lines.append(list(lines))
        target = ast.Subscript(ast.Name(_MARKS, ast.Load()), ast.Constant(len(self.lines) - 1), ast.Store())
        return ast.copy_location(ast.Assign([target], ast.Constant(1)), where)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_future(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def _lines_of(statement: ast.stmt) -> Iterator[int]:
    for decorator in getattr(statement, "decorator_list", ()):
        yield decorator.lineno
    yield statement.lineno


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads modules with marks; what was compiled without them is not taken."""

    def get_code(self, fullname: str) -> CodeType:
        marked = MarkedSource(self.get_data(self.path))
        # Of a module that is imported again what was seen the first time counts, too.
        _seen.setdefault(self.path, (marked.lines, bytearray(len(marked.lines))))
        return compile(marked.tree, self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        code = self.get_code(module.__name__)
        setattr(module, _MARKS, _seen[self.path][1])
        exec(code, module.__dict__)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)):
                if type(spec.loader) is importlib.machinery.SourceFileLoader:
                    spec.loader = _Loader(spec.loader.name, spec.loader.path)
                return spec
        return None


_seen: dict[str, tuple[list[list[int]], bytearray]] = {}
"""By file, the lines of its marks, and which of the marks were reached."""


def save() -> None:
    """Leave what was seen for ``coverage combine``, and the names of files that were never imported."""
    if not _seen:
        return
    from coverage import CoverageData

    lines = {
        file: {line for begun, reached in zip(marks, seen) if reached for line in begun}
        for file, (marks, seen) in _seen.items()
    }
    roots = [Path(folder) for name in PACKAGES for folder in importlib.import_module(name).__path__]
    data = CoverageData(suffix=True)
    data.add_lines(lines)
    data.touch_files([str(file) for root in roots for file in root.rglob("*.py")])
    data.write()


if VARIABLE in os.environ:
    sys.meta_path.insert(0, _Finder())
