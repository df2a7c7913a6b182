"""A user's own functions: where their code is, what of it they use, and how it travels to another machine.

A function is known by what it says and what it refers to in the user's own files, not by the text of a file:
comments, layout and what it does not use are no part of it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import site
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kubealign_components.data.fingerprint import canonical_json, digest
from kubealign_components.errors import ConfigError, StoreError
from kubealign_components.named_paths import FILE, kind_at, named_path
from kubealign_components.store import store_for

MAX_FILE = 2**20
"""Bytes of one file of code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnCode:
    """The file of a function, and the folder that its own imports are looked up in."""

    root: Path
    file: Path
    name: str

    def used(self) -> Used:
        """What the function refers to in the user's own files.

        Raises:
            ConfigError: a file that is no Python.
        """
        used = Used(root=self.root, main=self.file)
        used.follow(self.file, self.name)
        return used

    @property
    def digest(self) -> str:
        """SHA-256 of what the function is."""
        return digest(sorted(self.used().parts))

    def bundle(self) -> bytes:
        """The files that the function uses, as JSON, for :func:`from_bundle`."""
        files = {
            str(p.relative_to(self.root)): p.read_text(encoding="utf-8") for p in sorted(self.used().files)
        }
        return canonical_json({"main": str(self.file.relative_to(self.root)), "files": files}).encode()


def find_code(module: str, name: str, source: str = "") -> OwnCode:
    """Where the code of a function is.

    Args:
        module: path of a Python file, or name of a module that can be imported.
        name: of the function.
        source: URI of a bundle that holds the file.

    Raises:
        ConfigError: no such file or module.
    """
    if source:
        return _from_bundle(source, name)
    if module.endswith(".py"):
        file = named_path(module).absolute()
        if kind_at(file) != FILE:
            raise ConfigError("function", f"{module}:{name}", "a Python file; there is none at this path")
        return OwnCode(root=file.parent, file=file, name=name)
    return _importable(module, name)


def _importable(module: str, name: str) -> OwnCode:
    try:
        spec = importlib.util.find_spec(module)
        problem = f"No module named {module!r}"
    except (ImportError, ValueError, AttributeError) as error:
        spec, problem = None, str(error)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        problem = problem if spec is None else "it has no Python source, by which a change of it is noticed"
        raise ConfigError(
            "function",
            f"{module}:{name}",
            f"an importable module ({problem}); install it in the image of the stage, or name its file: "
            f"path/to/{module.rpartition('.')[2]}.py:{name}",
        )
    file = Path(spec.origin)
    depth = module.count(".") + (file.name == "__init__.py")
    return OwnCode(root=file.parents[depth], file=file, name=name)


def _from_bundle(source: str, name: str) -> OwnCode:
    data = store_for(source).read(source)
    if hashlib.sha256(data).hexdigest() != Path(source).stem:
        raise StoreError(f"{source} is not what its name says; start the run again, which publishes it anew")
    bundle = json.loads(data)
    root = Path(tempfile.mkdtemp(prefix="kubealign-own-code-"))
    for relative, text in bundle["files"].items():
        file = (root / relative).resolve()
        if not file.is_relative_to(root.resolve()):
            raise StoreError(f"{source} holds a file outside its folder: {relative!r}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return OwnCode(root=root, file=root / bundle["main"], name=name)


@dataclass(kw_only=True, slots=True)
class Used:
    """What of the files under ``root`` a function refers to, directly or not."""

    root: Path
    main: Path
    files: set[Path] = field(default_factory=set)
    parts: list[list[str]] = field(default_factory=list)
    """File (empty for the function's own), name and syntax tree of every definition."""
    _seen: set[tuple[Path, str]] = field(default_factory=set)
    _trees: dict[Path, dict[str, list[ast.stmt]]] = field(default_factory=dict)

    def follow(self, file: Path, name: str) -> None:
        """Take in ``name`` of ``file``, ``*`` for all of it, and what it refers to."""
        waiting = [(file, name)]
        while waiting:
            definition = waiting.pop()
            if definition not in self._seen:
                self._seen.add(definition)
                waiting += self._take(*definition)

    def _take(self, file: Path, name: str) -> Iterator[tuple[Path, str]]:
        tree = self._tree(file)
        if file not in self.files:
            self.files.add(file)
            yield file, ""  # what runs on import, whatever is used
        for node in [n for nodes in tree.values() for n in nodes] if name == "*" else tree.get(name, []):
            label = "" if file == self.main else str(file.relative_to(self.root))
            self.parts.append([label, name, ast.dump(_without_docstrings(node), annotate_fields=False)])
            yield from self._referred(file, node, tree)

    def _referred(
        self, file: Path, node: ast.stmt, tree: dict[str, list[ast.stmt]]
    ) -> Iterator[tuple[Path, str]]:
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id in tree:
                yield file, part.id
            elif isinstance(part, ast.Import):
                for alias in part.names:
                    yield from ((module_file, "*") for module_file in self._own(file, alias.name, 0))
            elif isinstance(part, ast.ImportFrom):
                yield from self._imported(file, part)

    def _imported(self, file: Path, node: ast.ImportFrom) -> Iterator[tuple[Path, str]]:
        for alias in node.names:
            below = ".".join(filter(None, [node.module, alias.name]))
            submodule = list(self._own(file, below, node.level))
            if submodule:
                yield from ((module_file, "*") for module_file in submodule)
                continue
            for module_file in self._own(file, node.module or "", node.level):
                yield module_file, alias.name

    def _own(self, file: Path, module: str, level: int) -> Iterator[Path]:
        """The file of ``module`` when it is one of the user's own."""
        start = file.parents[level - 1] if level else self.root
        shared = self.root in _library_folders()
        if shared and not level and module.partition(".")[0] != file.relative_to(self.root).parts[0]:
            return
        stem = start.joinpath(*module.split(".")) if module else start
        for candidate in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
            if candidate.is_file() and candidate.is_relative_to(self.root):
                yield candidate

    def _tree(self, file: Path) -> dict[str, list[ast.stmt]]:
        """The top-level statements of ``file`` by the names that they define; ``""`` for the others."""
        if file not in self._trees:
            tree: dict[str, list[ast.stmt]] = {}
            for node in _parsed(file).body:
                if not _is_docstring(node):
                    for name in _defined(node) or [""]:
                        tree.setdefault(name, []).append(node)
            self._trees[file] = tree
        return self._trees[file]


def _parsed(file: Path) -> ast.Module:
    if file.stat().st_size > MAX_FILE:
        raise ConfigError("function", str(file), f"a file of at most {MAX_FILE} bytes")
    try:
        return ast.parse(file.read_text(encoding="utf-8"), str(file))
    except (SyntaxError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a zero byte
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(
            "function", str(file), f"a file of Python ({type(error).__name__}: {error}{line})"
        ) from error


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
        plain = all(isinstance(target, ast.Name | ast.Tuple) for target in targets)
        return names if plain else []
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).partition(".")[0] for alias in node.names if alias.name != "*"]
    return []


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _without_docstrings(node: ast.stmt) -> ast.stmt:
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            part.body = [inner for inner in part.body if not _is_docstring(inner)] or [ast.Pass()]
    return node


def _library_folders() -> set[Path]:
    paths = sysconfig.get_paths()
    named = [paths["purelib"], paths["platlib"], paths["stdlib"], *site.getsitepackages()]
    return {Path(name) for name in named}
